"""`/v1/classify`, `/v1/models`, `/v1/head`, probes and figures; a status for each refusal."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedapt_runtime import Classifier
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.serve.limits import Limits
from fedapt_runtime.serve.service import Service
from tests.support.serving import TOKEN, as_json, picture, write_renamed_head
from tests.unit.runtime.serve.conftest import Ask

RED, BLUE = picture(), picture((20, 30, 220))
CLASSES = ["blue disc", "red square", "stripes"]


def form(*images: bytes) -> list[Any]:
    return [("image", (f"{i}.png", image, "image/png")) for i, image in enumerate(images)]


def test_a_form_and_json_give_the_rows_of_the_classifier(
    serving: Ask, classifier: Classifier
) -> None:
    arrays = [np.asarray(Image.open(io.BytesIO(image))) for image in (RED, BLUE)]
    expected = classifier(arrays, top_k=2)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        by_form = await client.post(
            "/v1/classify", files=form(RED, BLUE), data={"top_k": "2", "model": "tiny"}
        )
        by_json = await client.post("/v1/classify", json=as_json(RED, BLUE, top_k=2))
        assert (by_form.status_code, by_json.status_code) == (200, 200)
        rows = by_form.json()["predictions"]
        assert [row["name"] for row in rows] == ["0.png", "1.png"]
        assert [row["name"] for row in by_json.json()["predictions"]] == ["#0", "#1"]
        for row, other, prediction in zip(
            rows, by_json.json()["predictions"], expected, strict=True
        ):
            assert row["label"] == other["label"] == prediction.label
            assert dict(row["top_k"]) == pytest.approx(dict(prediction.top_k), abs=1e-5)
            assert row["domain_weights"] == pytest.approx(prediction.domain_weights, abs=1e-5)
            assert row["routed_to"] == prediction.routed_to
            assert set(row) == set(other) == {*prediction.to_dict(), "name"} - {"path"}

    serving(work)


def test_names_and_unknown_signal(serving: Ask, classifier: Classifier) -> None:
    has_signal = classifier.manifest.unknown is not None

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        body = as_json(flag_unknown=True) | {"images": [as_json(RED)["images"][0]]}
        answer = await client.post("/v1/classify", json=body)
        if has_signal:
            assert set(answer.json()["predictions"][0]) >= {"unknown", "unknown_score"}
        else:
            assert answer.status_code == 400
            assert "found a model without a signal for unknown domains" in answer.json()["error"]
        named = {"images": [{"data": as_json(RED)["images"][0], "name": "mug\x1b.png"}]}
        answer = await client.post("/v1/classify", json=named)
        assert answer.json()["predictions"][0]["name"] == "mug\x1b.png"

    serving(work)


def test_a_bad_image_is_a_row_and_nothing_but_bad_ones_is_422(serving: Ask) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post("/v1/classify", files=form(b"text", RED, RED[:60]))
        assert answer.status_code == 200
        errors = [row["error"] for row in answer.json()["predictions"]]
        assert errors[1] is None
        assert errors[0].startswith("0.png: found not an image of a known format")
        assert "image" in errors[2]
        alone = await client.post("/v1/classify", files=form(b"text"))
        assert alone.status_code == 422
        assert alone.json()["predictions"][0]["label"] is None

    serving(work)


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "text that is not JSON"),
        (b"[" * 100_000, 400, "text that is not JSON (RecursionError"),
        (b"[1]", 400, "JSON of a list"),
        (b"{}", 422, "a NoneType, not an array"),
        (b'{"images": []}', 400, "0 images"),
        (b'{"images": [1]}', 422, "neither base64 nor"),
        (b'{"images": [{"name": "a"}]}', 422, "neither base64 nor"),
        (b'{"images": [{"data": 1}]}', 422, "not a string"),
        (b'{"images": ["@@@@"]}', 422, "text that is not base64"),
        (b'{"images": ["\xc3\xa9"]}', 422, "text that is not base64"),
        (b'{"images": ["AAAA"], "top": 1}', 422, "unknown fields top"),
        (b'{"images": ["AAAA"], "top_k": 0}', 422, "not a whole number of at least 1"),
        (b'{"images": ["AAAA"], "top_k": true}', 422, "not a whole number of at least 1"),
        (b'{"images": ["AAAA"], "flag_unknown": 1}', 422, "not a boolean"),
        (b'{"images": ["AAAA"], "model": 1}', 422, "not a string"),
        (b'{"images": ["AAAA"], "model": "other"}', 404, "expected one of tiny"),
    ],
)
def test_malformed_json(serving: Ask, body: bytes, status: int, text: str) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post(
            "/v1/classify", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == status, answer.text
        assert text in answer.json()["error"]

    serving(work)


@pytest.mark.parametrize(
    ("kind", "body", "status", "text"),
    [
        ("multipart/form-data", b"x", 400, "Missing boundary"),
        ("multipart/form-data; boundary=b", b"no boundary at all", 400, "the form"),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--\r\n",
            400,
            "the form",
        ),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 400, "0 images"),
        ("text/plain", b"x", 415, "expected multipart/form-data or application/json"),
    ],
)
def test_malformed_forms(serving: Ask, kind: str, body: bytes, status: int, text: str) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post("/v1/classify", content=body, headers={"content-type": kind})
        assert answer.status_code == status, answer.text
        assert text in answer.json()["error"]

    serving(work)


def test_fields_of_a_form_are_checked(serving: Ask) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        for data, text in (
            ({"top_k": "many"}, "not a whole number"),
            ({"flag_unknown": "yes"}, "not a boolean"),
            ({"colour": "red"}, "unknown fields colour"),
        ):
            answer = await client.post("/v1/classify", files=form(RED), data=data)
            assert (answer.status_code, text in answer.text) == (422, True), answer.text
        twice = [("top_k", (None, "1")), ("top_k", (None, "2"))]
        answer = await client.post("/v1/classify", files=[*form(RED), *twice])
        assert "the field twice" in answer.text

    serving(work)


def test_limits_on_bytes_images_and_pixels(serving: Ask) -> None:
    async def chunked() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"x" * 1000

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        over = await client.post("/v1/classify", files=form(b"x" * 8000))
        assert (over.status_code, "expected 8,000 bytes at most" in over.text) == (413, True)
        endless = await client.post(
            "/v1/classify", content=chunked(), headers={"content-type": "application/json"}
        )
        assert (endless.status_code, "found more bytes" in endless.text) == (413, True)
        many = await client.post("/v1/classify", json=as_json(RED, RED, RED))
        assert (many.status_code, "3 images; expected 1 to 2" in many.text) == (413, True)
        large = await client.post("/v1/classify", files=form(picture(size=(200, 51))))
        assert large.status_code == 422
        error = large.json()["predictions"][0]["error"]
        assert "200 x 51 pixels, over the limit of 10,000" in error
        packed = await client.post(
            "/v1/classify",
            content=b"x",
            headers={"content-type": "application/json", "content-encoding": "gzip"},
        )
        assert packed.status_code == 415

    serving(work, Limits(max_body=8000, max_images=2, max_pixels=10_000))


class Held:
    """A backend that waits until it is let go."""

    def __init__(self, backend: Any) -> None:
        self.manifest, self.description = backend.manifest, backend.description
        self.in_flight, self.default_batch, self.task_size = 1, 1, 0
        self.name, self.compute = backend.name, backend.compute
        self._backend = backend
        self.started, self.may_run = threading.Event(), threading.Event()

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        self.started.set()
        assert self.may_run.wait(60)
        return self._backend.run(images)


def test_a_full_queue_answers_503_and_those_inside_are_answered(
    serving: Ask, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(classifier.backend)
    monkeypatch.setattr(classifier, "_backend", held)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        inside = [
            asyncio.create_task(client.post("/v1/classify", files=form(RED))) for _ in range(2)
        ]
        await asyncio.to_thread(held.started.wait)
        while service.queue.held < 2:
            await asyncio.sleep(0)
        refused = await client.post("/v1/classify", files=form(RED))
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "2 of 2 places for images in use, and 1 requested" in refused.json()["error"]
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200
        held.may_run.set()
        assert [answer.status_code for answer in await asyncio.gather(*inside)] == [200, 200]
        assert (await client.get("/readyz")).status_code == 200

    serving(work, Limits(max_queue=2))


def test_an_answer_that_takes_too_long_is_503(
    serving: Ask, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(classifier.backend)
    monkeypatch.setattr(classifier, "_backend", held)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post("/v1/classify", files=form(RED))
        assert (answer.status_code, "no answer after 0.05 s" in answer.text) == (503, True)
        held.may_run.set()

    serving(work, Limits(answer_s=0.05))


def test_bodies_together_are_bounded(serving: Ask) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        service.bodies.take(900)
        answer = await client.post("/v1/classify", json=as_json(RED))
        service.bodies.give_back(900)
        assert (answer.status_code, "bytes for bodies" in answer.text) == (503, True)

    serving(work, Limits(max_bodies=1000))


def test_tokens(serving: Ask) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/docs", "/v2", "/nothing"):
            answer = await client.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/page.js", "/main.js", "/healthz", "/readyz", "/v2/health/ready"):
            assert (await client.get(path)).status_code == 200, path
        for given in ("Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer \xff"):
            headers = {"authorization": given.encode("latin-1")}
            assert (await client.get("/v1/models", headers=headers)).status_code == 401
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200

    serving(work, tokens=(b"another-token-entirely", TOKEN.encode()))


def test_a_local_server_answers_to_local_names_alone(serving: Ask) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        for host, status in (
            ("localhost:8000", 200),
            ("127.0.0.1", 200),
            ("[::1]:8000", 200),
            ("evil.example", 421),
            ("localhost.evil.example:8000", 421),
        ):
            answer = await client.get("/v1/models", headers={"host": host})
            assert answer.status_code == status, host

    serving(work)


@pytest.fixture(scope="module")
def heads(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from fedapt.cli.app import main

    folder = tmp_path_factory.mktemp("heads")
    plain = folder / "plain.safetensors"
    checkpoint = tiny_run / "checkpoint.safetensors"
    assert main(["export", str(checkpoint), "--head-only", "--out", str(plain)]) == 0
    return {
        "plain": plain,
        "renamed": write_renamed_head(plain, folder / "renamed.safetensors", " two"),
        "checkpoint": checkpoint,
    }


AUTH = {"authorization": f"Bearer {TOKEN}"}


def test_a_head_is_swapped_between_requests_and_not_inside_one(
    serving: Ask,
    classifier: Classifier,
    heads: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = Held(classifier.backend)
    held.with_head = classifier.backend.with_head  # type: ignore[attr-defined]
    monkeypatch.setattr(classifier, "_backend", held)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        before = asyncio.create_task(
            client.post("/v1/classify", files=form(RED, BLUE, RED), headers=AUTH)
        )
        await asyncio.to_thread(held.started.wait)
        swap = await client.post("/v1/head", content=heads["renamed"].read_bytes(), headers=AUTH)
        assert swap.status_code == 200, swap.text
        assert swap.json()["classes"] == [f"{name} two" for name in CLASSES]
        # one batch of the old head is running: the new one has a batcher of its own
        held.may_run.set()
        after = await client.post("/v1/classify", files=form(RED, BLUE), headers=AUTH)
        labels = [row["label"] for row in (await before).json()["predictions"]]
        assert set(labels) <= set(CLASSES)
        assert all(row["label"].endswith(" two") for row in after.json()["predictions"])
        assert after.json()["version"] == swap.json()["version"]
        assert (await before).json()["version"] != swap.json()["version"]
        figures = (await client.get("/metrics", headers=AUTH)).text
        assert 'fedapt_head_swaps_total{model="tiny"} 1.0' in figures

    serving(work, tokens=(TOKEN.encode(),))


def test_heads_that_are_refused_leave_the_old_one(serving: Ask, heads: dict[str, Path]) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        good = heads["plain"].read_bytes()
        damaged = bytearray(good)
        damaged[-1] ^= 1
        for body, status, text in (
            (b"", 422, "no safetensors header"),
            (b"x" * 100, 422, "no safetensors header"),
            (good[:-4], 422, "a damaged file"),
            (bytes(damaged), 422, "content of hash"),
            (heads["checkpoint"].read_bytes(), 422, "a checkpoint"),
        ):
            answer = await client.post("/v1/head", content=body, headers=AUTH)
            assert (answer.status_code, text in answer.text) == (status, True), answer.text
        answer = await client.post("/v1/head?model=other", content=good, headers=AUTH)
        assert answer.status_code == 404
        rows = await client.post("/v1/classify", files=form(RED), headers=AUTH)
        assert rows.json()["predictions"][0]["label"] in CLASSES

    serving(work, tokens=(TOKEN.encode(),))


def test_heads_of_another_clip_do_not_fit(
    serving: Ask, heads: dict[str, Path], tmp_path: Path
) -> None:
    import dataclasses

    from fedapt_runtime.head import read_head
    from tests.support.fusing import save_head

    head = read_head(heads["plain"])
    other = dataclasses.replace(head.manifest, clip={**head.manifest.clip, "sha256": "0" * 64})
    save_head(head.tensors, other, tmp_path / "other.safetensors")

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        content = (tmp_path / "other.safetensors").read_bytes()
        answer = await client.post("/v1/head", content=content, headers=AUTH)
        assert answer.status_code == 409
        assert "a head of a CLIP with hash 000000000000" in answer.json()["error"]

    serving(work, tokens=(TOKEN.encode(),))


def test_heads_need_a_token(serving: Ask, heads: dict[str, Path]) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post("/v1/head", content=heads["plain"].read_bytes())
        assert (answer.status_code, "a server without tokens" in answer.text) == (403, True)

    serving(work)


def test_figures_and_the_log(serving: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await client.post("/v1/classify", files=form(RED, b"text"))
        await client.get("/no%1b[31mthing?secret=1")
        figures = (await client.get("/metrics")).text
        for line in (
            'fedapt_requests_total{method="POST",route="classify",status="200"} 1.0',
            'fedapt_requests_total{method="other",route="none",status="404"} 1.0',
            'fedapt_images_total{model="tiny",outcome="unreadable"} 1.0',
            'fedapt_images_total{model="tiny",outcome="classified"} 1.0',
            'fedapt_batch_images_count{model="tiny"} 1.0',
            "fedapt_decode_seconds_count 2.0",
            "fedapt_queued_images 0.0",
        ):
            assert line in figures.splitlines(), line
        assert 'fedapt_model_info{backend="ONNX Runtime' in figures

    serving(work)
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["path"] == "/v1/classify"
    assert (first["status"], first["images"], first["model"]) == (200, 2, "tiny")
    assert "\x1b" not in second["path"]
    assert "secret" not in json.dumps(second)
    assert third["path"] == "/metrics"


def test_errors_of_routing_are_json(serving: Ask) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        missing = await client.get("/nothing%1b")
        assert (missing.status_code, missing.json()["error"]) == (
            404,
            (
                r"GET /nothing\x1b: found no such path; expected a path of /openapi.json. To do:"
                " correct the path."
            ),
        )
        wrong = await client.get("/v1/classify")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert wrong.json()["error"] == (
            "GET /v1/classify: found an unknown method; expected POST. To do: use this method."
        )

    serving(work)


def test_a_failing_graph_is_500_without_its_inner_words(
    serving: Ask, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Held):
        def run(self, images: NDArray[np.uint8]) -> Outputs:
            raise ValueError("/secret/path")

    monkeypatch.setattr(classifier, "_backend", Failing(classifier.backend))

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post("/v1/classify", files=form(RED))
        assert answer.status_code == 500
        assert answer.json() == {"error": "an internal error; see the server's log"}

    serving(work)


def test_what_the_document_promises_is_there(serving: Ask) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        api = (await client.get("/openapi.json")).json()
        assert api["openapi"] == "3.1.0"
        for path, operations in api["paths"].items():
            real = path.replace("{name}", "tiny").replace(
                "{version}", service.find_model().current.label
            )
            for method in operations:
                answer = await client.request(method, real)
                assert answer.status_code not in (404, 405), path
                assert str(answer.status_code) in operations[method]["responses"], path
        assert "POST /v1/classify" in (await client.get("/docs")).text

    serving(work)
