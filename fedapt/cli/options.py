"""Options that several commands share, and which option sets which setting or parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedapt.core.settings import Config, declarations
from fedapt.core.settings_page import say_default

# settings whose option has another name than the setting
_OPTIONS = {
    "data.root": "--data",
    "data.validation_fraction": "--validation",
    "model.name": "--model",
}

CheckpointArgument = Annotated[
    Path, typer.Argument(help="A checkpoint.safetensors written by `fedapt train`.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="Device: auto, cpu or cuda.")]
PresetOption = Annotated[
    str, typer.Option("--preset", help="Settings to start from: paper, or recommended.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
OverrideOption = Annotated[
    list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="Set section.key=value.")
]


def option_of(setting: str) -> str:
    """The option that sets a setting such as `train.rounds`, or a parameter of a function."""
    return _OPTIONS.get(setting, "--" + setting.rpartition(".")[2].replace("_", "-"))


def names_option(place: str) -> bool:
    """Whether an error's place can be a setting or a parameter: `model.json` is neither."""
    return place in declarations(Config) or place.isidentifier()


def setting_option(name: str) -> Any:
    """An option for one setting; its help text is the setting's own."""
    setting = declarations(Config)[name]
    text = setting.meaning[0].upper() + setting.meaning[1:].replace("`", "")
    default = say_default(setting.default)
    note = f" ({default})" if setting.default not in ("", "lite", "fedapt") else ""
    return typer.Option(option_of(name), help=f"{text}{note}.")
