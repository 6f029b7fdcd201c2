"""Federations over Flower: the server's engine, the nodes, and their messages."""

from __future__ import annotations

import importlib
import os

from fedapt.core.errors import DependencyError

# Flower reads these at import: no telemetry leaves the federation
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def require_flower(module: str = "flwr") -> None:
    """Import Flower, without its telemetry; call this before anything imports `flwr`.

    Args:
        module: a further package that is needed, such as `ray`.

    Raises:
        DependencyError: it is not installed.
    """
    os.environ.update(_QUIET)
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            where="federation over Flower",
            found=f"no {module} ({error})",
            expected="the packages flwr, ray and dp-accounting",
            next_step="pip install 'fedapt[flower]'",
        ) from error
