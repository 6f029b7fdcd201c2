"""Weights from a hub: an unreachable hub is reported within seconds, and the cache is used at once.

Hugging Face's client asks the hub before it reads a file from its cache, and retries for a minute
for each file if the hub does not answer. This module asks the hub once. If the hub does not answer,
the client is offline inside the block and reads the cache only.

The client compares the size of a download with the hub's value, but not its hash. The hash of every
large file is the name of its blob in the cache, and this module compares it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedapt.core.errors import ModelError
from fedapt.core.files import hash_file

_ANSWER_S = 5.0
_RESOLVE_S = 3.0  # in addition, for name servers, whose time cannot be limited
_SHA256 = re.compile(r"[0-9a-f]{64}")  # files in git have another hash, of 40 digits


@contextmanager
def ask_hub_once() -> Iterator[str]:
    """Allow downloads inside the block, or only the cache if the hub does not answer.

    Yields:
        The reason why the hub does not answer; empty if it does.

    Raises:
        ModelError: a downloaded file has another hash than the hub's; it is removed.
    """
    # not public: the only switch of the client that works after its import
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    silent = "HF_HUB_OFFLINE is set" if before else _find_silence(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = before or bool(silent)
    begun = time.time()
    try:
        yield silent
    finally:
        constants.HF_HUB_OFFLINE = before
        if not silent:
            _check_downloads(Path(constants.HF_HUB_CACHE), begun)


def describe_cache() -> str:
    """The client's cache folder, and the address of its hub."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT} (HF_ENDPOINT), cache {constants.HF_HUB_CACHE} (HF_HUB_CACHE)"


def _check_downloads(cache: Path, begun: float) -> None:
    """Compare the files written since then with the hub's hashes."""
    for blob in cache.glob("models--*/blobs/*"):
        if not _SHA256.fullmatch(blob.name) or blob.stat().st_mtime < begun - 1:
            continue
        if (found := hash_file(blob)) != blob.name:
            blob.unlink()  # the client downloads it again
            raise ModelError(
                where=blob.parent.parent,
                found=f"a download of hash {found[:12]}, which was removed",
                expected=f"the hub's hash {blob.name[:12]}",
                next_step="run again; if it fails again, a proxy or the hub changes the file",
            )


def _find_silence(endpoint: str) -> str:
    from huggingface_hub import get_session

    found: list[str] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=_ANSWER_S)  # every status counts as an answer
            found.append("")
        except Exception as error:  # the client raises many types; each means no answer
            reason = " ".join(str(error).split())[:200]
            found.append(f"{endpoint} does not answer ({reason or type(error).__name__})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_S + _RESOLVE_S)
    return (
        found[0] if found else f"{endpoint} does not answer within {_ANSWER_S + _RESOLVE_S:.0f} s"
    )
