"""Clients of others: Triton's, KServe's, and what schemathesis makes of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fedapt_runtime import Classifier
from tests.support.serving import Server, running

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server"), tiny_model, "--device", "cpu") as server:
        yield server


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient(server: Server, tiny_model: Path, binary: bool) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    expected = Classifier.load(tiny_model, device="cpu").backend.run(IMAGES)
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("model")
        assert client.get_server_metadata()["name"] == "fedapt-runtime"
        (images,) = client.get_model_metadata("model")["inputs"]
        assert images["shape"] == [-1, 64, 64, 3]
        tensor = triton.InferInput("images", IMAGES.shape, "UINT8")
        tensor.set_data_from_numpy(IMAGES, binary_data=binary)
        names = ("logits", "domain_weights", "features")
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
        answer = client.infer("model", [tensor], outputs=outputs, request_id="7")
        for name in names:
            np.testing.assert_allclose(answer.as_numpy(name), getattr(expected, name), atol=1e-4)
        assert answer.get_response()["id"] == "7"
        with pytest.raises(triton.InferenceServerException, match="expected one of model"):
            client.infer("other", [tensor])
    finally:
        client.close()


def test_kserve(server: Server, tiny_model: Path) -> None:
    kserve: Any = pytest.importorskip("kserve", reason="needs kserve, a package of some 500 MB")
    import asyncio

    expected = Classifier.load(tiny_model, device="cpu").backend.run(IMAGES)

    async def ask() -> Any:
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", timeout=60))
        tensor = kserve.InferInput("images", list(IMAGES.shape), "UINT8")
        tensor.set_data_from_numpy(IMAGES, binary_data=True)
        request = kserve.InferRequest("model", [tensor])
        assert await client.is_server_ready(server.url)
        return await client.infer(server.url, request, model_name="model")

    answer = asyncio.run(ask())
    found = {output.name: output.as_numpy() for output in answer.outputs}
    np.testing.assert_allclose(
        np.reshape(found["logits"], expected.logits.shape), expected.logits, atol=1e-4
    )


def test_schemathesis(server: Server) -> None:
    """Requests made from the document, and near misses: the answers keep what it promises."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=5,
            deadline=None,
            phases=[Phase.generate],
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Any) -> None:
            answer = case.call(base_url=server.url)
            assert answer.status_code != 500, answer.text
            promised = case.operation.definition.raw["responses"]
            assert str(answer.status_code) in promised, (case.path, answer.status_code)

        check()
    assert httpx.get(f"{server.url}/healthz", timeout=60).status_code == 200
