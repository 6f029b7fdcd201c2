"""The state that a node keeps across restarts: its secret, and the sums that it has unmasked.

    secret  seed of the node's noise; the same update always gets the same noise
    sums    start -> the sum for which this node has sent shares. The node sends none for another
            sum of the same start: the difference of both may be the update of one client.

A federation that resumes after a crash repeats a round from the same start. Training is
deterministic to the byte, so the same clients give the same sum, which reveals nothing new.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from fedapt.core.errors import FederationError
from fedapt.core.files import write_secret

_SECRET_BYTES = 32


class Memory:
    """A node's memory.

    Args:
        path: file that keeps the memory; None keeps it in this object only.

    Raises:
        FederationError: the file is damaged.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.secret, self._sums = secrets.token_bytes(_SECRET_BYTES), dict[str, str]()
        if path is not None and path.is_file():
            self.secret, self._sums = _read(path)
        else:
            self._write()

    def keep_sum(self, start: bytes, total: bytes) -> None:
        """Save a sum before this node sends shares for it.

        Args:
            start: hash of the tensors that the clients of the sum were sent.
            total: hash of the clients in the sum and of this node's own update.

        Raises:
            FederationError: the node has unmasked another sum of that start.
        """
        known = self._sums.setdefault(start.hex(), total.hex())
        if known != total.hex():
            raise FederationError(
                where="the node's memory",
                shareable=True,
                found="a second sum of the same start, over other clients or another update",
                expected="one sum, because the difference of two can reveal one client's update",
                next_step="train with the clients that took part before, with the same images and"
                " settings, or begin a new run with another train.seed",
            )
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        text = json.dumps({"secret": self.secret.hex(), "sums": self._sums}, indent=0)
        write_secret(self._path, (text + "\n").encode())


def _read(path: Path) -> tuple[bytes, dict[str, str]]:
    try:
        values = json.loads(path.read_text("utf-8"))
        secret = bytes.fromhex(values["secret"])
        sums = {str(start): str(total) for start, total in values["sums"].items()}
        if len(secret) != _SECRET_BYTES:
            raise ValueError(f"a secret of {len(secret)} bytes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FederationError(
            where=path,
            found=f"{type(error).__name__}",
            expected="the node's saved state",
            next_step="restore the file; without it, this node could reveal one client's update",
        ) from error
    return secret, sums
