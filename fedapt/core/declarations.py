"""Declarations of settings: one field each, with its type, default, range and meaning.

The declarations are plain frozen dataclasses. `fedapt.core.config` checks values against them with
pydantic, which reads a field's metadata; `fedapt.core.settings_page` writes docs/settings.md and
the JSON schema from them, and the command line takes its help texts from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

REQUIRED = dataclasses.MISSING


def setting(
    default: Any,
    meaning: str,
    low: float | None = None,
    high: float | None = None,
    *,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a field of settings.

    Args:
        default: used where nothing else is given; REQUIRED for none.
        meaning: one phrase, the help text everywhere.
        low, high: the range of a number, both ends included.
        choices: the allowed texts, if the type does not list them.
    """
    metadata: dict[str, Any] = {"description": meaning}
    if isinstance(default, bool | int | float):
        metadata["strict"] = True  # no value of another type, such as "3" or true for 3
    if low is not None:
        metadata |= {"ge": low, "le": high}
    if choices:
        metadata["json_schema_extra"] = {"enum": list(choices)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Declaration:
    """Declaration of a setting.

    Attributes:
        default: its value where nothing else is given; REQUIRED for none.
        meaning: one phrase.
        values: which values are allowed, in words.
    """

    default: Any
    meaning: str
    values: str

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is REQUIRED


@cache
def declarations(kind: type) -> Mapping[str, Declaration]:
    """All settings of a table and of the tables in it, by flat names such as `train.lr`."""
    known: dict[str, Declaration] = {}
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            known |= {f"{field.name}.{n}": d for n, d in declarations(hints[field.name]).items()}
            continue
        make = field.default_factory
        known[field.name] = Declaration(
            default=field.default if make is dataclasses.MISSING else make(),
            meaning=field.metadata.get("description", ""),
            values=_say_values(hints[field.name], field.metadata),
        )
    return known


def _say_values(hint: Any, metadata: Mapping[str, Any]) -> str:
    if choices := metadata.get("json_schema_extra", {}).get("enum") or (
        get_args(hint) if get_origin(hint) is Literal else ()
    ):
        return f"one of {', '.join(choices)}"
    words = {str: "text", bool: "true or false", int: "an integer", float: "a number"}
    words |= {tuple: "a list of names", Mapping: "a table of names"}
    text = words[get_origin(hint) or hint]
    if "ge" in metadata:
        text += f" from {say_number(metadata['ge'])} to {say_number(metadata['le'])}"
    return text


def say_number(number: float) -> str:
    """A number as text: 1 000 000, 0.5, 1e-6."""
    if number == int(number) and (isinstance(number, int) or abs(number) < 1e10):
        return f"{int(number):,}".replace(",", " ")
    mantissa, e, exponent = f"{number:g}".partition("e")
    return mantissa + e + (str(int(exponent)) if e else "")


class Strict:
    """Base of all tables of settings: unknown names, NaN and infinity are refused."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = {
        "extra": "forbid",
        "allow_inf_nan": False,
    }
