"""Class names, compared as the tokenizer reads them."""

from __future__ import annotations

import csv
import html
import unicodedata

from ftfy import fix_text

from fedapt.core.errors import DataError


def class_name(folder: str) -> str:
    """Name of a class in the prompt, from its folder: `laptop_computer` becomes two words.

    The name has composed characters (NFC), so a folder from macOS gives the same name as others.
    """
    return unicodedata.normalize("NFC", folder.replace("_", " ").replace("-", " ").strip())


def class_key(name: str) -> str:
    """A name as CLIP's tokenizer cleans it; equal keys are equal prompts.

    Source: open_clip.tokenizer, `basic_clean`, `whitespace_clean` and lower case.
    """
    cleaned = html.unescape(html.unescape(fix_text(name)))
    return " ".join(cleaned.split()).lower()


def split_class_names(text: str) -> tuple[str, ...]:
    """Names separated by commas; a name with a comma is in double quotes."""
    (names,) = csv.reader([" ".join(text.splitlines())], skipinitialspace=True)
    return tuple(name.strip() for name in names or [""])


def check_class_names(where: object, folders: list[str], names: list[str]) -> None:
    """Refuse names that are empty, or equal for the tokenizer.

    Args:
        folders: name of each class in messages.

    Raises:
        DataError: it names the folders, with escapes for characters outside ASCII.
    """
    seen: dict[str, str] = {}
    for folder, name in zip(folders, names, strict=True):
        key = class_key(name)
        if not key:
            raise DataError(
                where=where,
                found=f"a class {folder!a} without a name",
                expected="a word that the text encoder can read",
                next_step="rename the folder, or set the name under [data.class_names]",
            )
        if key in seen:
            raise DataError(
                where=where,
                found=f"the classes {seen[key]!a} and {folder!a}, both read as {key!r}",
                expected="class names that differ",
                next_step="rename or merge them, or name them under [data.class_names]",
            )
        seen[key] = folder
