"""The routes of the service."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from fedapt_runtime.errors import ReportedError, RequestError
from fedapt_runtime.serve import page, protocol_v2
from fedapt_runtime.serve.access import Access
from fedapt_runtime.serve.body import answer_in_time, join, open_body
from fedapt_runtime.serve.connections import Connections
from fedapt_runtime.serve.forms import read_question
from fedapt_runtime.serve.metrics import CONTENT_TYPE
from fedapt_runtime.serve.openapi import describe_api
from fedapt_runtime.serve.service import Service


def create_app(
    service: Service,
    *,
    tokens: tuple[bytes, ...] = (),
    local: bool = True,
    web: Path | None = None,
    connections: Connections | None = None,
) -> Starlette:
    """The service as an ASGI application.

    Args:
        service: the models; the application opens and closes it.
        tokens, local: see `Access`.
        web: a folder of static files for /web/, see `page.web_routes`; None omits the route.
        connections: connections of the server that runs the application; None where that server
            reports none.
    """
    if connections is None:  # an empty object is false
        connections = Connections(service.limits)
    service.metrics.watch("fedapt_connections", "Open connections", lambda: len(connections))

    @asynccontextmanager
    async def run(app: Starlette) -> AsyncIterator[None]:
        service.open()
        yield
        await service.close()

    routes: list[BaseRoute] = [
        Route("/v1/classify", classify, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/v1/head", swap_head, methods=["POST"]),
        *protocol_v2.ROUTES,
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        *page.ROUTES,
        *(page.web_routes(web) if web is not None else ()),
    ]
    app = Starlette(
        routes=routes,
        lifespan=run,
        middleware=[
            Middleware(
                Access,
                tokens=tokens,
                local=local,
                connections=connections,
                metrics=service.metrics,
            )
        ],
        exception_handlers={
            HTTPException: _answer_http_exception,
            ReportedError: _answer_error,
            Exception: _answer_bug,
        },
    )
    app.router.redirect_slashes = False
    app.state.service, app.state.has_tokens = service, bool(tokens)
    return app


async def classify(request: Request) -> Response:
    """`POST /v1/classify`: status 200 if at least one image is readable, else 422."""
    service: Service = request.app.state.service
    async with open_body(request, service.limits, service.bodies) as chunks:
        question = await read_question(request, chunks, service.limits)
        model = service.find_model(question.model)
        version, predictions = await answer_in_time(
            request,
            service.classify(model, question.images, question.options),
            service.limits,
        )
    request.state.log = {"model": model.name, "images": len(predictions)}
    fields = [prediction.to_dict(question.options.flag_unknown) for prediction in predictions]
    rows = [{"name": row.pop("path"), **row} for row in fields]
    readable = any(prediction.error is None for prediction in predictions)
    content = {"model": model.name, "version": version.label, "predictions": rows}
    return JSONResponse(content, 200 if readable else 422)


async def list_models(request: Request) -> Response:
    """`GET /v1/models`: the served models; the first is the default."""
    service: Service = request.app.state.service
    return JSONResponse({"models": [_describe(model) for model in service.models.values()]})


def _describe(model: Any) -> dict[str, Any]:
    manifest = model.current.classifier.manifest
    return {
        "name": model.name,
        "version": model.current.label,
        "classes": manifest.classes,
        "domains": manifest.domains,
        "method": manifest.method,
        "precision": manifest.precision,
        "backend": model.current.classifier.description,
        "flags_unknown": manifest.unknown is not None,
    }


async def swap_head(request: Request) -> Response:
    """`POST /v1/head?model=NAME`: swap the head; the body is a head file. Requires a token."""
    service: Service = request.app.state.service
    if not request.app.state.has_tokens:
        raise RequestError(
            403,
            where="/v1/head",
            found="a server without tokens",
            expected="a server that requires tokens for head swaps",
            next_step="start the server with a token file",
        )
    model = service.find_model(request.query_params.get("model"))
    async with open_body(request, service.limits, service.bodies) as chunks:
        head = await join(chunks)
        started = time.perf_counter()
        version = await model.swap_head(head)
    return JSONResponse(_describe(model) | {"version": version.label, "swap_ms": _ms(started)})


def _ms(started: float) -> float:
    return round(1e3 * (time.perf_counter() - started), 1)


async def healthz(request: Request) -> Response:
    """`GET /healthz`: the process answers."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """`GET /readyz`: every model is loaded, and the queue has room for an image."""
    service: Service = request.app.state.service
    with service.queue.hold(1):
        return PlainTextResponse("ready\n")


async def metrics(request: Request) -> Response:
    """`GET /metrics`: the metrics in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.show(), headers={"Content-Type": CONTENT_TYPE})


async def openapi(request: Request) -> Response:
    """`GET /openapi.json`: the OpenAPI document."""
    return JSONResponse(describe_api(request.app.state.service.limits))


async def _answer_error(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, RequestError) else 500
    retry = error.retry_after_s if isinstance(error, RequestError) else None
    headers = {} if retry is None else {"Retry-After": str(retry)}
    return JSONResponse({"error": str(error)}, status, headers)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """The router's errors: 404 without such a path, 405 for another method."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    where, allowed = f"{request.method} {request.url.path[:200]}", headers.get("Allow")
    if allowed is None:
        found, expected, fix = "no such path", "a path of /openapi.json", "correct the path"
    else:
        found, expected, fix = "an unknown method", allowed, "use this method"
    refusal = RequestError(
        error.status_code, where=where, found=found, expected=expected, next_step=fix
    )
    return JSONResponse({"error": str(refusal)}, error.status_code, headers)


async def _answer_bug(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "an internal error; see the server's log"}, 500)
