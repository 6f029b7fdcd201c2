"""Untrusted text, made safe for a terminal, a log or a table.

Names of files, folders, classes, domains and nodes, and messages about them, may hold control
characters that change a terminal's behaviour. All displayed text passes through `printable`.
"""

from __future__ import annotations

import json
import re
from typing import Any

# C0 but tab and newline, DEL and C1; line and paragraph separators; marks that turn the direction
# of writing
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[{_CONTROLS}]")
# and halves of surrogate pairs, which no encoding of a terminal has
_UNSAFE = re.compile(f"[{_CONTROLS}\ud800-\udfff]")
_UNSAFE_OR_NEWLINE = re.compile(f"{_UNSAFE.pattern[:-1]}\n]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""The text with `\x1b` instead of an escape character, and so on.

    Args:
        lines: leave newlines, of a text that has several lines of our own.
    """
    return (_UNSAFE if lines else _UNSAFE_OR_NEWLINE).sub(_escape, text)


def printable_json(value: Any, indent: int | None = None, *, keep_bytes: bool = False) -> str:
    r"""JSON in UTF-8 that shows no control character: \u009b instead of the character.

    Args:
        keep_bytes: leave what stands for bytes of a file's name that are no text
            (`os.fsdecode`), for a stream that writes them as they were.
    """
    return (_CONTROL if keep_bytes else _UNSAFE).sub(
        lambda found: f"\\u{ord(found[0]):04x}",
        json.dumps(value, ensure_ascii=False, indent=indent),
    )


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
