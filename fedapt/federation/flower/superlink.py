"""The server's process: Flower's SuperLink, with the keys of the nodes that may connect.

The SuperLink starts a process of its own for the ServerApp when a run is submitted
(`fedapt.run.deployment`), in the server's folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supercore.logger import FLOWER_LOGGER, set_logger_propagation
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.cli import flower_superlink

from fedapt.core.errors import FederationError, ReportedError
from fedapt.core.report import Reporter
from fedapt.federation.flower.control import Control
from fedapt.federation.flower.door import watch_door
from fedapt.federation.flower.refusals import Refusals
from fedapt.federation.flower.settings import ServerSettings, split_address

_POLL_S = 2.0
STATE = "state"


def run_superlink(folder: Path, settings: ServerSettings, reporter: Reporter) -> None:
    """Serve until this process is ended.

    Raises:
        FederationError: the SuperLink does not start, such as on a port that is taken.
    """
    host, port = split_address(settings.address, folder)
    state = folder / STATE
    state.mkdir(exist_ok=True)
    arguments = ["--host", host, "--port", str(port), "--database", str(state / "superlink.db")]
    arguments.append("--disable-runtime-dependency-installation")
    door: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if settings.insecure:
        arguments.append("--insecure")
    else:
        nodes = folder / settings.nodes
        door = watch_door(Refusals(reporter, nodes, lambda key: key in _read_public_keys(nodes)))
        arguments += ["--ssl-ca-certfile", str(folder / settings.authority)]
        arguments += ["--ssl-certfile", str(folder / settings.certificate)]
        arguments += ["--ssl-keyfile", str(folder / settings.key), "--enable-supernode-auth"]
        thread = threading.Thread(target=_admit, args=(folder, settings, reporter), daemon=True)
        thread.start()
    with flower_process(folder, ["flower-superlink", *arguments]), door:
        flower_superlink()


@contextlib.contextmanager
def flower_process(folder: Path, arguments: list[str]) -> Iterator[None]:
    """Let one of Flower's programs run in this process, with its files below `folder`.

    Raises:
        FederationError: it ended with an error, which it has told.
    """
    os.environ["FLWR_HOME"] = str((folder / STATE / "flwr").resolve())
    # Flower starts its own programs by their names
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.chdir(folder)
    # a library that has set up logging would print Flower's own lines once more
    set_logger_propagation(FLOWER_LOGGER, False)
    sys.argv = arguments
    try:
        yield
    except SystemExit as stop:
        if stop.code:
            raise FederationError(
                where=arguments[0],
                found=f"it ended with code {stop.code}; its messages stand above",
                expected="a program that runs",
                next_step="see to what it says",
            ) from stop


def _admit(folder: Path, settings: ServerSettings, reporter: Reporter) -> None:
    """Register every public key in the folder, also those that come later."""
    admitted: set[Path] = set()
    while True:
        new = sorted(set((folder / settings.nodes).glob("*.pub")) - admitted)
        for path in new:
            try:
                with Control(folder, settings) as control:
                    control.register(read_public_key(path), path.stem)
            except OSError:
                break  # the server is not up yet
            except ReportedError as error:
                reporter.message(f"error: {error}")
            else:
                reporter.message(f"{path.stem}: may connect")
            admitted.add(path)
        time.sleep(_POLL_S)


def _read_public_keys(folder: Path) -> set[bytes]:
    keys = set()
    for path in folder.glob("*.pub"):
        with contextlib.suppress(FederationError):  # told when it was to be registered
            keys.add(read_public_key(path))
    return keys


def read_public_key(path: Path) -> bytes:
    """A node's public key as Flower keeps it.

    Raises:
        FederationError: no public key of an elliptic curve.
    """
    try:
        key = load_ssh_public_key(path.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("no key of an elliptic curve")
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise FederationError(
            where=path,
            found=str(error) or type(error).__name__,
            expected="a node's public key, as `fedapt federation init` writes it",
            next_step="copy the node's own .pub file there",
        ) from error
    return public_key_to_bytes(key)
