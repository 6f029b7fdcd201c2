"""The page at `/`, the page of the API, and static files of a browser bundle."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedapt_runtime.serve.openapi import describe_api

# the files of the page that the browser bundle shares, and the service's own files
_FOLDERS = (files("fedapt_runtime") / "page", files("fedapt_runtime.serve") / "page")
_TYPES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    "page.js": "text/javascript",
    "camera.js": "text/javascript",
    "main.js": "text/javascript",
}
PATHS = ("/", *(f"/{name}" for name in _TYPES if name != "index.html"))
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def page_file(request: Request) -> Response:
    """`GET /` and the files of that page, which classifies images in a browser."""
    name = request.scope["path"].removeprefix("/") or "index.html"
    (content,) = (folder / name for folder in _FOLDERS if (folder / name).is_file())
    return Response(content.read_bytes(), media_type=_TYPES[name], headers=_HEADERS)


async def docs(request: Request) -> Response:
    """`GET /docs`: the content of /openapi.json as HTML."""
    api = describe_api(request.app.state.service.limits)
    rows = [
        _row(method.upper(), path, operation)
        for path, operations in api["paths"].items()
        for method, operation in operations.items()
    ]
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(api['info']['title'])}</title>"
        '<link rel="stylesheet" href="style.css"><main>'
        f"<h1>{html.escape(api['info']['title'])}</h1>"
        '<p>The same as <a href="/openapi.json">OpenAPI</a>.</p>'
        f"{''.join(rows)}</main></html>"
    )
    return HTMLResponse(text, headers=_HEADERS)


def _row(method: str, path: str, operation: dict[str, Any]) -> str:
    answers = "".join(
        f"<li><b>{html.escape(status)}</b> {html.escape(answer['description'])}</li>"
        for status, answer in operation["responses"].items()
    )
    types = ", ".join(operation.get("requestBody", {}).get("content", {}))
    body = f"<p>Body: {html.escape(types)}</p>" if types else ""
    return (
        f"<section><h2><code>{method} {html.escape(path)}</code></h2>"
        f"<p>{html.escape(operation['summary'])}</p>{body}<ul>{answers}</ul></section>"
    )


ROUTES: list[BaseRoute] = [
    *(Route(path, page_file) for path in PATHS),
    Route("/docs", docs),
]


class _Isolated:
    """Adds the headers that let WebAssembly use more than one thread."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"cross-origin-opener-policy", b"same-origin"),
                    (b"cross-origin-embedder-policy", b"require-corp"),
                    (b"cross-origin-resource-policy", b"same-origin"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, add)


def web_routes(folder: Path) -> Sequence[BaseRoute]:
    """A folder of static files under /web/, such as `fedapt export --web` writes."""
    return [Mount("/web", _Isolated(StaticFiles(directory=folder, html=True)), name="web")]
