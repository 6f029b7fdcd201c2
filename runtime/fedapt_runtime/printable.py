"""Untrusted text, made safe for a terminal, a log or a table.

Names of files, folders, classes, domains and nodes, and messages about them, may hold control
characters that change a terminal's behaviour. All displayed text passes through `printable`.
"""

from __future__ import annotations

import json
import re
from typing import Any

# C0 except tab and newline, DEL and C1; line and paragraph separators; marks that change the
# direction of writing
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[{_CONTROLS}]")
# also lone surrogates, which terminals cannot encode
_UNSAFE = re.compile(f"[{_CONTROLS}\ud800-\udfff]")
_UNSAFE_OR_NEWLINE = re.compile(f"{_UNSAFE.pattern[:-1]}\n]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""The text with visible escapes, such as `\x1b`, instead of control characters.

    Args:
        lines: keep newlines, for a text whose lines do not come from untrusted input.
    """
    return (_UNSAFE if lines else _UNSAFE_OR_NEWLINE).sub(_escape, text)


def printable_json(value: Any, indent: int | None = None, *, keep_bytes: bool = False) -> str:
    r"""JSON in UTF-8 with escapes, such as \u009b, instead of control characters.

    Args:
        value: plain values for JSON.
        indent: see `json.dumps`.
        keep_bytes: keep the surrogates that `os.fsdecode` uses for bytes that are not text, for a
            stream that writes these bytes.
    """
    return (_CONTROL if keep_bytes else _UNSAFE).sub(
        lambda found: f"\\u{ord(found[0]):04x}",
        json.dumps(value, ensure_ascii=False, indent=indent),
    )


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
