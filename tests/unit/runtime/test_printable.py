"""No control character of a stranger reaches a terminal."""

from __future__ import annotations

import json
import unicodedata

import pytest

from fedapt_runtime.errors import InputError
from fedapt_runtime.printable import printable, printable_json


def test_every_control_character_is_shown() -> None:
    for number in (*range(0x20), *range(0x7F, 0xA0)):
        character = chr(number)
        assert unicodedata.category(character) == "Cc"
        shown = printable(f"a{character}b")
        assert shown == ("a\tb" if character == "\t" else f"a\\x{number:02x}b")
    assert printable("a\nb", lines=True) == "a\nb"
    assert printable("\x1b]0;x\x07", lines=True) == r"\x1b]0;x\x07"


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u200f", "\u2028", "\udc80"])
def test_what_turns_the_line(character: str) -> None:
    assert printable(f"a{character}b") == f"a\\u{ord(character):04x}b"


@pytest.mark.parametrize("text", ["Zürich", "東京", "a b-c_d.e", "مرحبا", "👩🏽‍🔬"])
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text


def test_json_stays_json() -> None:
    value = {"name": "a\x1b\x7f\x9b\u202e\udc80b", "Zürich": ["\n", 1]}
    text = printable_json(value)
    assert json.loads(text) == value
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Bidi") for c in text)
    assert "Zürich" in text
    assert "\n" in printable_json(value, indent=1)


def test_an_error_shows_what_it_found() -> None:
    error = InputError(where="a\x1b[2J.png", found="\x9b", expected="\r", next_step="x")
    assert str(error) == r"a\x1b[2J.png: found \x9b; expected \x0d. To do: x."
