"""What tests/support says of CUDA and of `Gpu` holds on a real GPU. Needs cuda-bindings alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedapt_runtime.backends.cuda import Gpu, import_cuda
from tests.support.cuda_rules import RULES
from tests.support.gpu_checks import CHECKS

runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        runtime.cudaGetDeviceCount()[0] != runtime.cudaError_t.cudaSuccess,
        reason="CUDA finds no GPU",
    ),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_cuda_keeps_the_rules_of_the_fake(rule: Callable[[Any], None]) -> None:
    rule(import_cuda())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_gpu(check: Callable[[Gpu], None]) -> None:
    check(Gpu())


def test_the_gpu_has_a_name_and_a_capability() -> None:
    gpu = Gpu()
    assert gpu.name
    assert gpu.capability.startswith("sm")
    assert gpu.capability[2:].isdecimal()
