"""Text files from any editor: UTF-8 with or without a byte order mark, or UTF-16."""

from __future__ import annotations

import codecs

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def detect_encoding(start: bytes) -> tuple[str, int]:
    """Encoding of a text, and length of its byte order mark in bytes.

    A text without a mark is UTF-8, or UTF-16 if every second byte of the first four is 0. Paths in
    UTF-16 begin like that; text in UTF-8 does not.

    Args:
        start: the first bytes, four or more if there are as many.
    """
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding, len(mark)
    zeros = [byte == 0 for byte in start[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le", 0
    return ("utf-16-be" if zeros == [True, False, True, False] else "utf-8"), 0


def decode_text(data: bytes) -> str:
    """The text without its byte order mark.

    Raises:
        UnicodeDecodeError: the bytes are not valid in the detected encoding.
    """
    encoding, mark = detect_encoding(data)
    return data[mark:].decode(encoding)
