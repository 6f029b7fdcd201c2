"""Damage, as Hypothesis draws it: edits of bytes, and odd values in the place of JSON's."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

# written as text behind json.dumps, which cannot write them itself
_DEEP, _LONG = "@deep@", "@long@"
_TEXTS = {_DEEP: "[" * 60_000 + "]" * 60_000, _LONG: "9" * 6_000}
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e308, 1e-320),
    *(float("inf"), float("nan"), "", "x", "0", "\ud800", "\0", "../../x", "é" * 300, _DEEP, _LONG),
    *([], {}, [[]], [None], {"": 0}, {"x": {"y": []}}, [1] * 70, ["x", 1, None], list(range(3000))),
)
places = st.integers(0, 2**24)
small = st.binary(min_size=1, max_size=8)
edits = st.one_of(
    st.tuples(st.just("flip"), places, st.integers(1, 255)),
    st.tuples(st.just("cut"), places, st.just(0)),
    st.tuples(st.just("insert"), places, small),
    st.tuples(st.just("overwrite"), places, small),
    st.tuples(st.just("delete"), places, st.integers(1, 64)),
    st.tuples(st.just("double"), places, st.integers(1, 4096)),
)


def edit_bytes(data: bytes, changes: list[Any]) -> bytes:
    """The bytes after each change in turn; half of all places are in the first 512."""
    for kind, place, value in changes:
        at = place // 2 % max(1, min(len(data), 512) if place % 2 else len(data))
        head, tail = data[:at], data[at:]
        if kind == "flip" and tail:
            data = head + bytes([tail[0] ^ value]) + tail[1:]
        elif kind == "cut":
            data = head
        elif kind == "insert":
            data = head + value + tail
        elif kind == "overwrite":
            data = head + value + tail[len(value) :]
        elif kind == "delete":
            data = head + tail[value:]
        elif kind == "double":
            data = head + tail[:value] + tail
    return data


def edit_json(text: str, changes: list[tuple[int, int, int]]) -> str:
    """A document with values replaced, left out or renamed; (which one, how, by what)."""
    value = json.loads(text)
    for which, how, by in changes:
        spots = list(_spots(value))
        if not spots:
            break
        holder, key = spots[which % len(spots)]
        if how == 0 and isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        elif how == 1:
            del holder[key]
        else:
            holder[key] = deepcopy(ODD[by % len(ODD)])  # later changes may be inside it
    text = json.dumps(value)
    for name, long in _TEXTS.items():
        text = text.replace(f'"{name}"', long)
    return text


json_changes = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 5), st.integers(0, len(ODD) - 1)), max_size=3
)
byte_changes = st.lists(edits, max_size=4)


def _spots(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        holder = left.pop()
        keys = list(holder) if isinstance(holder, dict) else range(min(len(holder), 20))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                left.append(holder[key])
    return found
