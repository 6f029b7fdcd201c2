"""Text files from any editor: UTF-8 with or without a byte order mark, or UTF-16."""

from __future__ import annotations

import codecs

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def detect_encoding(start: bytes) -> tuple[str, int]:
    """(encoding, bytes of the mark) of a text, from its first bytes.

    Without a mark it is UTF-8, but where every second byte of the first four is 0: no text in UTF-8
    begins like that, and every path in UTF-16 does.
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
        UnicodeDecodeError: it is in no encoding that its first bytes tell.
    """
    encoding, mark = detect_encoding(data)
    return data[mark:].decode(encoding)
