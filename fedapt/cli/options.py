"""Options that several commands share, and which option sets which setting or parameter."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from fedapt.core.declarations import declarations
from fedapt.core.settings import Config
from fedapt.core.settings_page import say_default

# settings whose option has another name than the setting
_OPTIONS = {
    "data.root": "--data",
    "data.validation_fraction": "--validation",
    "lrs": "--lr",
    "model.name": "--model",
    "trackers": "--tracker",
}

CheckpointArgument = Annotated[
    Path, typer.Argument(help="A checkpoint.safetensors written by `fedapt train`.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="Device: auto, cpu or cuda.")]
PresetOption = Annotated[
    str, typer.Option("--preset", help="Initial settings: recommended or paper.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
OverrideOption = Annotated[
    list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="Set section.key=value.")
]


def option_of(setting: str) -> str:
    """The option that sets a setting such as `train.rounds`, or a parameter of a function."""
    return _OPTIONS.get(setting, "--" + setting.rpartition(".")[2].replace("_", "-"))


def name_options(text: str, where: str, options: Collection[str]) -> str:
    """Replace settings and parameters in a library's error by the command's options.

    The error names them at its beginning, alone or before a value (`model ViT-B-32`,
    `mixing and precision`), and elsewhere in backticks.

    Args:
        text: the error, which begins with `where`.
        options: the command's.
    """

    def find(name: str) -> str:
        is_name = name in declarations(Config) or name.isidentifier()
        option = option_of(name) if is_name else ""
        return option if option in options else ""

    names = where.split(" and ")
    given = [find(name) for name in names]
    if not all(given):
        names = [where.partition(" ")[0]]
        given = [find(names[0])]
    if all(given):
        text = " and ".join(given) + text.removeprefix(" and ".join(names))
    text = re.sub(r"`(\w+\.\w+) = ([^`]+)`", r"-o \1=\2", text)
    return re.sub(r"`([\w.]+)`", lambda found: find(found[1]) or found[0], text)


def setting_option(name: str) -> Any:
    """An option for one setting; its help text is the setting's own."""
    setting = declarations(Config)[name]
    text = setting.meaning[0].upper() + setting.meaning[1:].replace("`", "")
    default = say_default(setting.default)
    note = f" ({default})" if setting.default not in ("", "lite", "fedapt") else ""
    return typer.Option(option_of(name), help=f"{text}{note}.")
