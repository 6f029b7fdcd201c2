"""A service in this process, and a client of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedapt_runtime import Classifier
from fedapt_runtime.serve.app import create_app
from fedapt_runtime.serve.limits import Limits
from fedapt_runtime.serve.service import Service

Ask = Callable[..., Any]


@pytest.fixture(scope="session")
def classifier(tiny_model: Path) -> Classifier:
    return Classifier.load(tiny_model, device="cpu", performance_hint="throughput")


@pytest.fixture
def serving(classifier: Classifier) -> Ask:
    """Runs `work(client, service)` against a service with some limits and tokens."""

    def run(
        work: Callable[[httpx.AsyncClient, Service], Awaitable[None]],
        limits: Limits = Limits(),  # noqa: B008
        **options: Any,
    ) -> None:
        async def main() -> None:
            service = Service({"tiny": classifier}, limits)
            app = create_app(service, **options)
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app, raise_app_exceptions=False)
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://localhost"
                ) as client:
                    await work(client, service)
                assert (service.queue.held, service.bodies.held) == (0, 0)

        asyncio.run(main())

    return run
