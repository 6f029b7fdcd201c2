"""Names, values and parameters of NVIDIA's bindings, as JSON: `python surface.py MODULE`.

pybind11 and Cython write the signature into the first lines of a docstring; overloads are numbered.
It is run in a process of its own, because a version of the bindings excludes the others.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

_SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((.*)\)(?: -> .*)?$")


def read_parameters(docstring: str) -> list[list[str]]:
    """The parameters' names of every overload, without self."""
    lines = [line.strip() for line in docstring.strip().splitlines()]
    found = [_SIGNATURE.match(line) for line in lines]
    texts = [match.group(1) for match in found[:1] if match]
    if "Overloaded function." in lines:
        texts = [match.group(1) for match in found[1:] if match]
    return [_names(text) for text in texts]


def _names(text: str) -> list[str]:
    depth, parts = 0, [""]
    for character in text:
        depth += character in "[(<{"
        depth -= character in "])>}"
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    names = []
    for part in parts:
        # "self: Type", "flags: int = 0", "size_t size"
        name = part.split(":")[0].split("=")[0].strip().split(" ")[-1]
        if name not in ("", "self"):
            names.append(name)
    return names


def describe(thing: Any) -> Any:
    """An enum as its values, a class as what it has, a function as its parameters."""
    if isinstance(thing, type):
        members = getattr(thing, "__members__", None)
        if members is not None:
            return {name: int(value) for name, value in members.items()}
        return {
            name: describe(getattr(thing, name))
            for name in dir(thing)
            if name == "__init__" or not name.startswith("_")
        }
    if callable(thing):
        return read_parameters(thing.__doc__ or "")
    return "value"


if __name__ == "__main__":
    module = importlib.import_module(sys.argv[1])
    names = [name for name in dir(module) if not name.startswith("_")]
    print(json.dumps({name: describe(getattr(module, name)) for name in names}))
