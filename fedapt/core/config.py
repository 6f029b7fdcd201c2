"""A run's configuration: TOML and overrides -> settings, validated on input.

Every setting has a default. A file names only the settings that it changes, and `section.key=value`
overrides them. Unknown names are refused. `fedapt.core.settings` declares the settings; pydantic
checks the values.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tomli_w

from fedapt.core.declarations import declarations
from fedapt.core.errors import ConfigError
from fedapt.core.names import METHODS, is_path
from fedapt.core.presets import RECOMMENDED, read_preset
from fedapt.core.settings import (
    RENAMED,
    Config,
    DataConfig,
    FederationConfig,
    ModelConfig,
    PromptConfig,
    TrainConfig,
    UnsupervisedConfig,
)
from fedapt_runtime.text import decode_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter, ValidationError

    Settings = TypeVar("Settings", bound=DataclassInstance)

__all__ = [
    "Config",
    "DataConfig",
    "FederationConfig",
    "ModelConfig",
    "PromptConfig",
    "TrainConfig",
    "UnsupervisedConfig",
    "config_from_dict",
    "config_to_toml",
    "flatten",
    "read_config",
    "read_settings",
    "remove_folders",
    "remove_paths",
]


def read_config(
    path: Path | None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    preset: str = RECOMMENDED,
) -> Config:
    """Read a TOML file and apply overrides, then single values.

    Args:
        path: the file; None for the defaults.
        overrides: `section.key=value` with a TOML value, or a bare word for a string.
        values: `section.key` -> value; None means not given.
        preset: initial settings, see `fedapt.core.presets`.

    Raises:
        ConfigError: unreadable, not TOML, an unknown name, a wrong type, or out of range; it names
            the setting or the override that a wrong value came from, else the file.
    """
    tables = _read_toml(path) if path is not None else {}
    sources: dict[str, str] = {}
    for name, value in read_preset(preset).items():
        section, _, key = name.partition(".")
        table = tables.setdefault(section, {})
        if isinstance(table, dict):  # `_build` refuses any other value
            table.setdefault(key, value)
    for override in overrides:
        name, equals, text = override.partition("=")
        parts = name.strip().split(".")
        if not equals or len(parts) < 2:
            raise ConfigError(
                where=override or "an empty override",
                found="an override without a setting and a value",
                expected="section.key=value, such as train.rounds=3",
                next_step="use this form",
            )
        _set(tables, sources, parts, _parse_value(text.strip()), override)
    for name, value in (values or {}).items():
        if value is not None:
            _set(tables, sources, name.split("."), value, name)
    return _build(Config, tables, str(path), sources)  # without a file, `sources` has all names


def read_settings(kind: type[Settings], path: Path) -> Settings:
    """A TOML file as any table of settings, with the checks of a run's configuration.

    Raises:
        ConfigError: unreadable, not TOML, an unknown or missing name, or a wrong value.
    """
    return _build(kind, _read_toml(path), str(path))


def config_from_dict(tables: Any, where: str, *, skip_unknown: bool = False) -> Config:
    """Settings from nested tables, as `dataclasses.asdict` gives them; others have their defaults.

    Args:
        where: source of the tables, for errors.
        skip_unknown: ignore names that this version does not know. A later version with the
            same schema may have written them.

    Raises:
        ConfigError: an unknown name, a wrong type, or out of range.
    """
    if skip_unknown and isinstance(tables, dict):
        known = dataclasses.asdict(Config())
        tables = {
            section: {k: v for k, v in table.items() if k in known[section]}
            if isinstance(table, dict)
            else table
            for section, table in tables.items()
            if section in known
        }
    return _build(Config, tables, where)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = decode_text(path.read_bytes())
        return tomllib.loads(text.replace("\r\n", "\n"))  # as text files are read
    except (OSError, ValueError, RecursionError) as error:  # tomllib passes on int's ValueError
        found = getattr(error, "strerror", None) or f"no valid TOML ({error})"
        raise ConfigError(
            where=path, found=found, expected="a TOML file", next_step="check the path and the file"
        ) from error


def _set(
    tables: dict[str, Any], sources: dict[str, str], parts: Sequence[str], value: Any, where: str
) -> None:
    """Put a value into nested tables; record its source for every name on its path."""
    table = tables
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise _unknown(where, ".".join(parts), Config)
    table[parts[-1]] = value
    sources.update((".".join(parts[: n + 1]), where) for n in range(len(parts)))


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # a bare word


@cache
def _adapter(kind: type[Settings]) -> TypeAdapter[Settings]:
    from pydantic import TypeAdapter  # imported here: it takes 0.2 s

    return TypeAdapter(kind)


def _build(
    kind: type[Settings], tables: Any, where: str, sources: Mapping[str, str] = {}
) -> Settings:
    """Settings of a table; an error names the source of the name, or `where`."""
    from pydantic import ValidationError

    try:
        settings: Settings = _adapter(kind).validate_python(tables)
    except ValidationError as error:
        raise _explain(kind, tables, error, where, sources) from error
    if isinstance(settings, Config) and settings.train.method not in METHODS:
        name, found = "train.method", settings.train.method
        raise _wrong_value(sources.get(name, where), name, found, f"one of {', '.join(METHODS)}")
    return settings


def _explain(
    kind: type, tables: Any, error: ValidationError, where: str, sources: Mapping[str, str]
) -> ConfigError:
    """The first error of pydantic as found and expected."""
    fault = error.errors(include_url=False, include_context=False)[0]
    parts = [str(part) for part in fault["loc"]]
    name = ".".join(parts)
    known = declarations(kind)
    while name and name not in known and ".".join(parts[:-1]) in known:
        parts, name = parts[:-1], ".".join(parts[:-1])  # a key of a table, an item of a list
    source = sources.get(name, where)
    if fault["type"] in ("unexpected_keyword_argument", "missing"):
        if fault["type"] == "missing":
            needed = ", ".join(n for n, d in known.items() if d.is_required)
            return ConfigError(
                where=source,
                found=f"no {name}",
                expected=f"a value for each of {needed}",
                next_step="add it",
            )
        return _unknown(source, name, kind)
    value = tables
    for part in parts:
        value = value[part]
    if name in known:
        return _wrong_value(source, name, value, known[name].values)
    expected = f"a table [{name}]" if name else "a table"
    return _wrong_value(source, name, value, expected, "write it as a table")


def _wrong_value(
    where: str, name: str, value: Any, expected: str, next_step: str = "correct the value"
) -> ConfigError:
    return ConfigError(
        where=where,
        found=f"{name} = {_show(value)}" if name else _show(value),
        expected=expected,
        next_step=next_step,
    )


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _unknown(where: str, name: str, kind: type) -> ConfigError:
    prefix = name.rpartition(".")[0]
    prefix = prefix and prefix + "."
    names = (n.removeprefix(prefix) for n in declarations(kind) if n.startswith(prefix))
    known = ", ".join(dict.fromkeys(n.partition(".")[0] for n in names))
    new = RENAMED.get(name)
    return ConfigError(
        where=where,
        found=f"the unknown name {name!r}",
        expected=new or f"one of {known}",
        next_step=f"write {new}, its new name" if new else "check the spelling",
    )


def flatten(config: Config) -> dict[str, Any]:
    """All settings under flat names, such as `train.lr`."""
    return {
        f"{section}.{name}": value
        for section, values in dataclasses.asdict(config).items()
        for name, value in values.items()
    }


def remove_folders(config: Config) -> Config:
    """Settings without the paths of images and of a joined checkpoint; a CLIP's path stays."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=""),
        federation=dataclasses.replace(config.federation, join=""),
    )


def remove_paths(config: Config) -> Config:
    """Settings that may leave the machine: the path of a CLIP's folder is removed."""
    model = config.model
    named = dataclasses.replace(
        model,
        name="" if is_path(model.name) else model.name,
        pretrained="" if is_path(model.pretrained) else model.pretrained,
    )
    return dataclasses.replace(remove_folders(config), model=named)


def config_to_toml(config: Config) -> str:
    """All settings as TOML; reading it back gives an equal `Config`."""
    return tomli_w.dumps(dataclasses.asdict(config))
