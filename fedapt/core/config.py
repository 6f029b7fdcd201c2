"""A run's configuration: TOML and overrides -> frozen dataclasses, checked at the border.

Every field has a default, the paper's where the paper has one. A file names only what it changes,
and `-o section.key=value` changes it once more; a name that does not exist is refused.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import tomli_w

from fedapt.core.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """Which CLIP. `pretrained`: a tag, a weights file, or `random`; empty for lite and folders."""

    name: str = "lite"
    pretrained: str = ""


@dataclass(frozen=True)
class DataConfig:
    """How images become training and test sets.

    Attributes:
        root: the folder with the domains.
        test_fraction: share of each class and domain kept for testing, where the data has no split.
        split_seed: seed of that split.
        allow_missing_classes: let a domain lack images of a class.
        class_names: folder name -> name in the prompt, where the two should differ.
    """

    root: str = ""
    test_fraction: float = 0.2
    split_seed: int = 0
    allow_missing_classes: bool = False
    class_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptConfig:
    """The meta prompt.

    Attributes:
        context_length: M, learned context tokens.
        class_specific: one context per class, or one for all.
        temperature: tau of the domain weights.
    """

    context_length: int = 24
    class_specific: bool = True
    temperature: float = 0.01


@dataclass(frozen=True)
class TrainConfig:
    """Federated training with the settings of the paper's code.

    Attributes:
        rounds: rounds of federation.
        local_epochs: passes of each client over its images in a round.
        batch_size: images in a step of SGD.
        lr, momentum, weight_decay: of SGD; momentum starts afresh every round.
        weighting: of clients in the average, `uniform` or `samples`.
        seed: everything random in the run follows from it.
    """

    rounds: int = 50
    local_epochs: int = 1
    batch_size: int = 256
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-5
    weighting: str = "uniform"
    seed: int = 0


@dataclass(frozen=True)
class Config:
    """All of a run's settings, written to `RUN/config.toml` before anything else happens."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    train: TrainConfig = TrainConfig()


_RANGES: dict[str, tuple[float, float]] = {
    "data.test_fraction": (0.0, 0.9),
    "prompt.context_length": (1, 64),
    "prompt.temperature": (1e-6, 1e3),
    "train.rounds": (1, 1_000_000),
    "train.local_epochs": (1, 10_000),
    "train.batch_size": (1, 1_000_000),
    "train.lr": (1e-9, 1e3),
    "train.momentum": (0.0, 0.9999),
    "train.weight_decay": (0.0, 10.0),
    "train.seed": (0, 2**63 - 1),
    "data.split_seed": (0, 2**63 - 1),
}
_CHOICES = {"train.weighting": ("uniform", "samples")}


def read_config(
    path: Path | None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Read a TOML file and apply overrides, then the command's own options.

    Args:
        path: the file; None for the defaults.
        overrides: `section.key=value` with a TOML value, or a bare word for a string.
        options: `section.key` -> value; None means not given.

    Raises:
        ConfigError: unreadable, not TOML, an unknown name, a wrong type, or out of range.
    """
    tables = _read_toml(path) if path is not None else {}
    for override in overrides:
        name, equals, text = override.partition("=")
        parts = name.strip().split(".")
        if not equals or len(parts) < 2:
            raise ConfigError(
                where=f"-o {override}",
                found="no section.key=value",
                expected="for example -o train.rounds=3",
                next_step="write it that way",
            )
        _set(tables, parts, _parse_value(text.strip()), f"-o {override}")
    for name, value in (options or {}).items():
        if value is not None:
            _set(tables, name.split("."), value, "options")
    config: Config = _build(Config, tables, str(path) if path is not None else "-o", "")
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # tomllib passes on int's ValueError
        found = getattr(error, "strerror", None) or f"no valid TOML ({error})"
        raise ConfigError(
            where=path, found=found, expected="a TOML file", next_step="check the path and the file"
        ) from error


def _set(tables: dict[str, Any], parts: Sequence[str], value: Any, where: str) -> None:
    table = tables
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise _unknown(where, ".".join(parts), Config)
    table[parts[-1]] = value


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # a bare word


def _unknown(where: str, name: str, kind: type) -> ConfigError:
    known = ", ".join(f.name for f in dataclasses.fields(kind))
    return ConfigError(
        where=where,
        found=f"the unknown name {name!r}",
        expected=f"one of {known}",
        next_step="check the spelling",
    )


def _build(kind: type, table: Any, where: str, prefix: str) -> Any:
    if not isinstance(table, dict):
        raise ConfigError(
            where=where,
            found=f"{prefix.rstrip('.')} = {table!r}",
            expected=f"a table [{prefix.rstrip('.')}]",
            next_step="write it as a table",
        )
    hints = get_type_hints(kind)
    values = {}
    for name, value in table.items():
        if name not in hints:
            raise _unknown(where, prefix + name, kind)
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], value, where, f"{prefix}{name}.")
        else:
            values[name] = _check(prefix + name, value, hints[name], where)
    return kind(**values)


def _check(name: str, value: Any, hint: Any, where: str) -> Any:
    kind = get_origin(hint) or hint
    expected = ""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if kind is Mapping:
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            expected = "a table of names"
    elif type(value) is not kind:
        expected = f"a value of type {kind.__name__}"
    if not expected and name in _RANGES:
        low, high = _RANGES[name]
        if not (low <= value <= high and math.isfinite(value)):
            expected = f"a number from {low:g} to {high:g}"
    if not expected and name in _CHOICES and value not in _CHOICES[name]:
        expected = f"one of {', '.join(_CHOICES[name])}"
    if expected:
        raise ConfigError(
            where=where,
            found=f"{name} = {value!r}",
            expected=expected,
            next_step="correct the value",
        )
    return value


def config_to_toml(config: Config) -> str:
    """All settings as TOML; reading it back gives an equal `Config`."""
    return tomli_w.dumps(dataclasses.asdict(config))
