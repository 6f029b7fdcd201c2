"""The only module that imports OpenCLIP.

OpenCLIP and timm need only torchvision's pure-Python transforms and layers. `import torchvision`
fails if its compiled operators cannot be loaded. This happens with every CPU build of torch beside
the torchvision of the default package index (built for CUDA). This module declares the operators
that torchvision describes, which makes the pure-Python part importable. A call of such an operator
still raises an error, and fedapt calls none.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_MISSING_OPERATOR = re.compile(r"operator torchvision::(\w+) does not exist")
_MAX_OPERATORS = 32


def _import_torchvision() -> None:
    from torch import library

    for _ in range(_MAX_OPERATORS):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = _MISSING_OPERATOR.search(str(error))
            if missing is None:
                raise
            library.define(f"torchvision::{missing[1]}", "(Tensor x) -> Tensor")
            for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[name]


@contextmanager
def _hide_transformers() -> Iterator[None]:
    """Hide transformers, whose import takes seconds, while the block imports OpenCLIP.

    OpenCLIP imports it for the text towers of Hugging Face's, which fedapt refuses. A tokenizer of
    Hugging Face's imports it later.
    """
    before = {name: sys.modules[name] for name in ("transformers",) if name in sys.modules}
    sys.modules["transformers"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["transformers"]
        sys.modules.update(before)


@functools.cache
def import_open_clip() -> ModuleType:
    """Return the module `open_clip`, importable beside a CPU build of torch too.

    Raises:
        ImportError: open_clip_torch, timm or torchvision is not installed.
    """
    # the hub's client reads it at import; downloads then send no versions of other packages
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    with _hide_transformers():
        _import_torchvision()
        return importlib.import_module("open_clip")
