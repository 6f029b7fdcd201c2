"""Middleware of every request: token, idle timer of the connection, metrics, log line."""

from __future__ import annotations

import hmac
import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedapt_runtime.printable import printable
from fedapt_runtime.serve import page
from fedapt_runtime.serve.connections import Connections
from fedapt_runtime.serve.metrics import Metrics

# paths that need no token: probes, and the page, which asks for the token itself
OPEN_PATHS = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", *page.PATHS)
OPEN_FOLDERS = ("/web/",)
GONE = 499  # nginx's status for a client that disconnected; only in the log and the metrics
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


class Access:
    """ASGI middleware that checks, records and logs each request.

    Args:
        app: the application behind it.
        tokens: a request must carry one of these in `Authorization: Bearer`. An empty tuple accepts
            every request.
        local: without tokens, refuse a `Host` header that does not name this machine. This stops
            DNS rebinding: a web page that reaches the server through a local user's browser.
        connections: connections of the server, whose idle timers stop during a request.
        metrics: counts each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        tokens: tuple[bytes, ...],
        local: bool,
        connections: Connections,
        metrics: Metrics,
    ) -> None:
        self._app, self._tokens, self._local = app, tokens, local
        self._connections, self._metrics = connections, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, or refuse it with status 401 or 421."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = tuple(scope["client"] or ("", 0))
        self._connections.begin_request(client)
        started, status, sent = time.perf_counter(), GONE, 0

        async def count(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            refusal = self._check(scope)
            await (refusal or self._app)(scope, receive, count)
        except ClientDisconnect:
            status = GONE
        except Exception:
            status = 500
            raise
        finally:
            self._connections.end_request(client)
            self._record(scope, status, time.perf_counter() - started, sent)

    def _check(self, scope: Scope) -> ASGIApp | None:
        """The response that refuses a request; None if it may pass."""
        headers, path = Headers(scope=scope), scope["path"]
        if self._local and not self._tokens:
            host = headers.get("host", "localhost")
            if host.rsplit(":", 1)[0] not in _LOCAL_HOSTS and host not in _LOCAL_HOSTS:
                error = f"Host: found {printable(host[:200])}; expected localhost"
                return JSONResponse({"error": error}, 421)
        if not self._tokens or path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip().encode()
        known = [hmac.compare_digest(given, token) for token in self._tokens]  # all, in equal time
        if scheme.lower() == "bearer" and any(known):
            return None
        error = "Authorization: found no token of this server; expected `Bearer TOKEN`"
        return JSONResponse({"error": error}, 401, {"WWW-Authenticate": "Bearer"})

    def _record(self, scope: Scope, status: int, seconds: float, sent: int) -> None:
        endpoint: Any = scope.get("endpoint")
        route = getattr(endpoint, "__name__", "none")
        method = scope["method"] if endpoint is not None else "other"
        self._metrics.requests.labels(route, method, status).inc()
        self._metrics.request_s.labels(route).observe(seconds)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": (scope["client"] or ("",))[0],
            "method": scope["method"],
            "path": printable(scope["path"][:200]),
            "status": status,
            "bytes": sent,
            "ms": round(1e3 * seconds, 1),
            **scope.get("state", {}).get("log", {}),
        }
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        sys.stdout.flush()
