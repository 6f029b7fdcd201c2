"""A hash of a file's content inside the file: damage in transit or on disk is detected at load.

The hash is in the file's JSON description, as `content_sha256`. It covers the rest of the
description and the content that it describes. It protects against accidents only: an attacker can
write a new hash. A description without a hash, as in older versions, is not checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Part = bytes | memoryview
KEY = "content_sha256"


def seal(description: Mapping[str, Any], content: Iterable[Part]) -> str:
    """One line of JSON with sorted keys and the hash; equal input gives equal text.

    Args:
        description: plain values.
        content: the bytes that it describes, in parts.
    """
    return _to_json({**description, KEY: _hash(description, content)})


def find_damage(text: str, content: Iterable[Part]) -> str:
    """The damage of a description (valid JSON) or of its content; empty if there is none."""
    description: dict[str, Any] = json.loads(text)
    known = description.pop(KEY, None)
    if known is None:
        return ""
    found = _hash(description, content)
    return "" if found == known else f"content of hash {found[:12]}, not {str(known)[:12]}"


def list_content(tensors: Mapping[str, NDArray[Any]]) -> Iterator[Part]:
    """Tensors as content: names, dtypes, shapes and bytes, sorted by name."""
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tensor.dtype} {tensor.shape}\n".encode()
        yield np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def _to_json(description: Mapping[str, Any]) -> str:
    return json.dumps(description, sort_keys=True, ensure_ascii=False)


def _hash(description: Mapping[str, Any], content: Iterable[Part]) -> str:
    digest = hashlib.sha256(_to_json(description).encode("utf-8", "surrogatepass"))
    for part in content:
        digest.update(part)
    return digest.hexdigest()
