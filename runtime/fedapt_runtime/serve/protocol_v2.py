"""The Open Inference Protocol (v2) over HTTP, which Triton and KServe speak.

Source: Open Inference Protocol, "REST API".
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

import fedapt_runtime
from fedapt_runtime.backends.base import Outputs
from fedapt_runtime.errors import RequestError
from fedapt_runtime.serve.body import answer_in_time, join, open_body
from fedapt_runtime.serve.service import ServedModel, Service
from fedapt_runtime.serve.tensors import (
    LENGTH_HEADER,
    read_images,
    split_body,
    wanted_outputs,
    write_response,
)


async def live(request: Request) -> Response:
    """`GET /v2/health/live`."""
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    """`GET /v2/health/ready`."""
    return JSONResponse({"ready": True})


async def describe_server(request: Request) -> Response:
    """`GET /v2`."""
    return JSONResponse(
        {
            "name": "fedapt-runtime",
            "version": fedapt_runtime.__version__,
            "extensions": ["binary_tensor_data"],
        }
    )


async def describe_model(request: Request) -> Response:
    """`GET /v2/models/{name}`."""
    model = _find(request)
    version = model.current
    manifest = version.classifier.manifest
    height, width = manifest.preprocessing.size
    sizes = (len(manifest.classes), len(manifest.domains), -1)
    return JSONResponse(
        {
            "name": model.name,
            "versions": [version.label],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, height, width, 3]}],
            "outputs": [
                {"name": name, "datatype": "FP32", "shape": [-1, size]}
                for name, size in zip(Outputs._fields, sizes, strict=True)
            ],
        }
    )


async def model_ready(request: Request) -> Response:
    """`GET /v2/models/{name}/ready`."""
    return JSONResponse({"name": _find(request).name, "ready": True})


async def infer(request: Request) -> Response:
    """`POST /v2/models/{name}/infer`."""
    service: Service = request.app.state.service
    model = _find(request)
    async with open_body(request, service.limits, service.bodies) as chunks:
        body = await join(chunks)
        answer = await answer_in_time(
            request,
            _infer(service, model, body, request.headers.get(LENGTH_HEADER)),
            service.limits,
        )
    content, json_length = answer
    if json_length is None:
        return Response(content, media_type="application/json")
    return Response(
        content,
        media_type="application/octet-stream",
        headers={LENGTH_HEADER: str(json_length)},
    )


async def _infer(
    service: Service, model: ServedModel, body: bytes, json_length: str | None
) -> tuple[bytes, int | None]:
    size = model.current.classifier.manifest.preprocessing.size
    fields, binary = split_body(body, json_length)
    wanted = wanted_outputs(fields, Outputs._fields)
    images = read_images(fields, binary, size, service.limits.max_images)
    echo = {"id": fields["id"]} if isinstance(fields.get("id"), str) else {}
    del fields  # the numbers in JSON take much memory
    version, outputs = await service.infer(model, images)
    head = {"model_name": model.name, "model_version": version.label, **echo}
    return write_response(head, outputs._asdict(), wanted)


def _find(request: Request) -> ServedModel:
    service: Service = request.app.state.service
    model = service.find_model(request.path_params["name"])
    asked = request.path_params.get("version")
    if asked is not None and asked != model.current.label:
        raise RequestError(
            404,
            where="version",
            found=repr(asked),
            expected=model.current.label,
            next_step="omit the version, or request this one",
        )
    return model


def _of_model(tail: str, endpoint: Any, method: str) -> list[BaseRoute]:
    paths = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    return [Route(path + tail, endpoint, methods=[method]) for path in paths]


ROUTES: list[BaseRoute] = [
    Route("/v2", describe_server),
    Route("/v2/health/live", live),
    Route("/v2/health/ready", ready),
    *_of_model("", describe_model, "GET"),
    *_of_model("/ready", model_ready, "GET"),
    *_of_model("/infer", infer, "POST"),
]
