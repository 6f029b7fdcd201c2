"""The Open Inference Protocol, its tensors as numbers and as bytes, and malformed ones."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from fedapt_runtime import Classifier
from fedapt_runtime.serve.limits import Limits
from fedapt_runtime.serve.service import Service
from tests.unit.runtime.serve.conftest import Ask

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
URL = "/v2/models/tiny/infer"


def tensor(**changes: Any) -> dict[str, Any]:
    return {
        "name": "images",
        "datatype": "UINT8",
        "shape": [2, 64, 64, 3],
        "data": IMAGES.ravel().tolist(),
    } | changes


def test_metadata_and_health(serving: Ask, classifier: Classifier) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        version = service.find_model().current.label
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}
        server = (await client.get("/v2")).json()
        assert server["extensions"] == ["binary_tensor_data"]
        for path in ("/v2/models/tiny", f"/v2/models/tiny/versions/{version}"):
            model = (await client.get(path)).json()
            assert (model["name"], model["versions"]) == ("tiny", [version])
            (images,) = model["inputs"]
            assert images == {"name": "images", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}
            assert [output["shape"] for output in model["outputs"]] == [[-1, 3], [-1, 2], [-1, -1]]
            assert (await client.get(path + "/ready")).json() == {"name": "tiny", "ready": True}
        for path in ("/v2/models/other", "/v2/models/tiny/versions/1"):
            assert (await client.get(path)).status_code == 404

    serving(work)


@pytest.mark.parametrize("nested", [False, True])
def test_numbers_in_json(serving: Ask, classifier: Classifier, nested: bool) -> None:
    expected = classifier.backend.run(IMAGES)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        data = IMAGES.tolist() if nested else IMAGES.ravel().tolist()
        answer = await client.post(URL, json={"id": "7", "inputs": [tensor(data=data)]})
        assert answer.status_code == 200, answer.text
        fields = answer.json()
        assert (fields["id"], fields["model_name"]) == ("7", "tiny")
        for output in fields["outputs"]:
            found = np.array(output["data"], np.float32).reshape(output["shape"])
            np.testing.assert_allclose(found, getattr(expected, output["name"]), atol=1e-5)

    serving(work)


def test_bytes_behind_json(serving: Ask, classifier: Classifier) -> None:
    expected = classifier.backend.run(IMAGES)
    asked = tensor(parameters={"binary_data_size": IMAGES.nbytes})
    del asked["data"]
    outputs = [
        {"name": "logits", "parameters": {"binary_data": True}},
        {"name": "domain_weights", "parameters": {"binary_data": False}},
    ]
    head = json.dumps({"inputs": [asked], "outputs": outputs}).encode()

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post(
            URL,
            content=head + IMAGES.tobytes(),
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        assert answer.headers["content-type"] == "application/octet-stream"
        length = int(answer.headers["inference-header-content-length"])
        fields = json.loads(answer.content[:length])
        logits, weights = fields["outputs"]
        assert logits["parameters"] == {"binary_data_size": 4 * 2 * 3}
        found = np.frombuffer(answer.content[length:], "<f4").reshape(2, 3)
        np.testing.assert_allclose(found, expected.logits, atol=1e-5)
        np.testing.assert_allclose(
            np.reshape(weights["data"], (2, 2)), expected.domain_weights, atol=1e-5
        )

    serving(work)


@pytest.mark.parametrize(
    ("request_fields", "text"),
    [
        ({}, "inputs: found not one tensor"),
        ({"inputs": [1]}, "inputs: found not one tensor"),
        ({"inputs": [tensor(), tensor()]}, "inputs: found not one tensor"),
        ({"inputs": [tensor(name="x")]}, "'x' of 'UINT8'"),
        ({"inputs": [tensor(datatype="FP32")]}, "'images' of 'FP32'"),
        ({"inputs": [tensor(shape=[2, 64, 64])]}, "where images are [n, 64, 64, 3]"),
        ({"inputs": [tensor(shape=[0, 64, 64, 3])]}, "where images are"),
        ({"inputs": [tensor(shape=[-1, 64, 64, 3])]}, "shape: found"),
        ({"inputs": [tensor(shape=[1e9, 64, 64, 3])]}, "shape: found"),
        ({"inputs": [tensor(shape=[1, 64, 64, 3])]}, "24576 numbers of [1, 64, 64, 3]"),
        ({"inputs": [tensor(data=[300] * IMAGES.size)]}, "numbers outside 0 to 255"),
        ({"inputs": [tensor(data=[-1] * IMAGES.size)]}, "numbers outside 0 to 255"),
        ({"inputs": [tensor(data=[0.5] * IMAGES.size)]}, "other than an array of whole numbers"),
        ({"inputs": [tensor(data=[True] * IMAGES.size)]}, "other than an array of whole numbers"),
        ({"inputs": [tensor(data=["9" * 99, "1"])]}, "other than an array of whole numbers"),
        ({"inputs": [tensor(data=[[1], 2])]}, "a mixture of arrays and numbers"),
        ({"inputs": [tensor(data=None)]}, "other than an array of whole numbers"),
        ({"inputs": [tensor(parameters={"binary_data_size": 5})]}, "binary_data_size: found 5"),
        ({"inputs": [tensor()], "outputs": [{"name": "x"}]}, "not one of logits"),
        ({"inputs": [tensor()], "outputs": 1}, "a value that is not an array of objects"),
        (
            {"inputs": [tensor()], "parameters": 1},
            "parameters: found a value that is not an object",
        ),
        (
            {"inputs": [tensor()], "outputs": [{"name": "logits", "parameters": {"x": 1}}]},
            "parameters of logits other than binary_data",
        ),
    ],
)
def test_malformed_requests(serving: Ask, request_fields: dict[str, Any], text: str) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post(URL, json=request_fields)
        assert answer.status_code == 400, answer.text
        assert text in answer.json()["error"]

    serving(work)


@pytest.mark.parametrize("length", ["x", "-1", "99", "9" * 400])
def test_wrong_lengths_of_the_json(serving: Ask, length: str) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        headers = {"Inference-Header-Content-Length": length}
        answer = await client.post(URL, content=b"{}", headers=headers)
        assert answer.status_code == 400
        assert "inference-header-content-length: found" in answer.json()["error"]

    serving(work)


def test_too_many_images(serving: Ask) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post(URL, json={"inputs": [tensor()]})
        assert (answer.status_code, "2 images, over the limit of 1" in answer.text) == (413, True)

    serving(work, Limits(max_images=1))
