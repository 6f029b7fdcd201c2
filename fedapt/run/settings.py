"""Resolve the settings of a run from files, options and presets, and find its images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedapt.core.config import Config, flatten, read_config
from fedapt.core.errors import UsageError
from fedapt.core.names import is_path
from fedapt.core.presets import RECOMMENDED
from fedapt.data.hugging_face import is_split, write_table

AnyPath = str | Path
Settings = Config | Mapping[str, Any] | AnyPath | None
# a folder of domains, a table of images, or a split of Hugging Face `datasets`
Images = AnyPath | Any


def read_run_settings(
    settings: Settings,
    data: Images | None,
    named: Mapping[str, Any],
    overrides: Sequence[str] = (),
    preset: str = RECOMMENDED,
) -> Config:
    """Resolve the settings of a run from all sources; later sources win.

    Args:
        settings: a TOML file, a `Config`, or `section.key` -> value.
        data: the images, relative to the working folder.
        named: short name -> value, such as `rounds`; `section.key` is allowed too.
        overrides: `section.key=value`, see `read_config`.
        preset: initial settings.

    Raises:
        ConfigError: an unknown setting, or a wrong value.
    """
    base = Path(settings) if isinstance(settings, str | Path) else None
    values: dict[str, Any] = {}
    if isinstance(settings, Config):
        values = flatten(settings)
    elif isinstance(settings, Mapping):
        values = dict(settings)
    values |= {_SHORT.get(name, name): value for name, value in named.items() if value is not None}
    if data is not None:
        values["data.root"] = str(find_images(data).resolve())
    # the full path, so that the checkpoint finds the images from any folder
    for name in ("model.name", "model.pretrained"):
        if is_path(str(values.get(name, ""))) and Path(values[name]).exists():
            values[name] = str(Path(values[name]).resolve())
    if values.get("federation.join"):
        values["federation.join"] = str(Path(values["federation.join"]).resolve())
    return read_config(base, overrides, values, preset)


def find_images(data: Images) -> Path:
    """The folder or table of images; a split of `datasets` is written as a table into the cache.

    Raises:
        DataError: a split without the required columns.
        UsageError: another type.
        FileError: the cache cannot be written.
    """
    if is_split(data):
        return write_table(data)
    if isinstance(data, str | os.PathLike):
        return Path(data)
    raise UsageError(
        where="data",
        found=f"a {type(data).__name__}",
        expected="a folder of domains, a CSV or Parquet table, or a split of `datasets`",
        next_step="pass one of these",
    )


def _short_names() -> dict[str, str]:
    """Short name -> setting: keys that only one section has, and the names of options."""
    short: dict[str, str] = {}
    seen: set[str] = set()
    for name in flatten(Config()):
        key = name.partition(".")[2]
        if key not in seen:
            short[key] = name
        elif key in short:
            del short[key]
        seen.add(key)
    for name in ("name", "root"):
        short.pop(name, None)
    return short | {"model": "model.name", "validation": "data.validation_fraction"}


_SHORT = _short_names()
