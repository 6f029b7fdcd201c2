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
from typing import TYPE_CHECKING, Any, TypeVar, get_origin, get_type_hints

import tomli_w

from fedapt.core.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)

# each stands in one file of fedapt/train/methods
METHODS = (
    "fedapt",
    "fedapt-unsupervised",
    "zero-shot",
    "local",
    "promptfl",
    "adapt",
    "cocoop",
    "fedclip",
    "linear-probe",
    "full",
)


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
        validation_fraction: share of the remaining images of each class and domain that choose
            the round instead of training; the same for every method.
        shots: training images of each class and domain, 0 for all.
        leave_out: a domain that trains nothing and is only tested on.
        allow_missing_classes: let a domain lack images of a class.
        class_names: folder name -> name in the prompt, where the two should differ.
    """

    root: str = ""
    test_fraction: float = 0.2
    split_seed: int = 0
    validation_fraction: float = 0.0
    shots: int = 0
    leave_out: str = ""
    allow_missing_classes: bool = False
    class_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptConfig:
    """The meta prompt.

    Attributes:
        context_length: M, learned context tokens.
        class_specific: one context per class, or one for all.
        start: `random`, or a phrase whose tokens the context ends with at the start.
        temperature: tau of the domain weights.
        keys: how keys are drawn, `uniform` in [0, 1), `normal`, or `orthogonal` to each other.
        n_keys: keys, 0 for one per domain; fewer are shared by domains, more are dealt out to the
            clients of a domain.
    """

    context_length: int = 24
    class_specific: bool = True
    start: str = "random"
    temperature: float = 0.01
    keys: str = "uniform"
    n_keys: int = 0


@dataclass(frozen=True)
class FederationConfig:
    """Who takes part.

    Attributes:
        clients_per_domain: parties that share a domain, their labels drawn from Dirichlet(alpha).
        alpha: small for clients with few classes each, large for equal ones.
        least_images: of a client, whatever was drawn.
        sampled: clients of a round, drawn from all; 0 for every client.
        sampled_per_domain: clients of a round, drawn from each domain; 0 for every client.
        join: a federation's checkpoint to go on from; domains that are new to it get new keys.
        aggregation: of the clients' replies, `mean`, `median`, `trimmed-mean` or `krum`.
        trimmed: share of the replies that the trimmed mean drops at either end.
        faulty: replies of a round that krum takes to be wrong.
        clip: largest norm of a client's update in the aggregate, longer ones are shortened; 0 for
            none.
        noise: of differential privacy, as a multiple of `clip`; 0 for none.
        delta: of the epsilon that is reported with noise.
        node_clip: largest norm of an update as a node sends it, longer ones are shortened; 0 for
            none.
        node_noise: that each node adds to its update, as a multiple of `node_clip`; 0 for none.
        secure: secure aggregation: the server learns the sum of a round's updates, no single one.
        secure_threshold: share of a client and its neighbours that has to stay to a round's end.
        secure_neighbours: clients with which each one shares masks; 0 for all, or about 2 log2(n)
            of more than 32.
        secure_range: change of a single value above which a node cuts it off.
        least_replies: usable replies without which a round fails.
        round_seconds: how long a round, or a stage of a secure one, waits for other machines.
        largest_update: norm of an update above which a reply from another machine is refused.
    """

    clients_per_domain: int = 1
    alpha: float = 0.5
    least_images: int = 10
    sampled: int = 0
    sampled_per_domain: int = 0
    join: str = ""
    aggregation: str = "mean"
    trimmed: float = 0.2
    faulty: int = 1
    clip: float = 0.0
    noise: float = 0.0
    delta: float = 1e-5
    node_clip: float = 0.0
    node_noise: float = 0.0
    secure: bool = False
    secure_threshold: float = 2 / 3
    secure_neighbours: int = 0
    secure_range: float = 16.0
    least_replies: int = 1
    round_seconds: float = 3600.0
    largest_update: float = 1000.0


@dataclass(frozen=True)
class TrainConfig:
    """Federated training with the settings of the paper's code.

    Attributes:
        method: see `fedapt methods`.
        rounds: rounds of federation.
        local_epochs: passes of each client over its images in a round.
        batch_size: images in a step of SGD.
        images_per_round: most images of a client in a round; 0 for all, or what the method says.
        lr, momentum, weight_decay: of SGD; momentum starts afresh every round.
        schedule: of the learning rate over the rounds, `constant` or `cosine`.
        proximal: mu of FedProx, which pulls a client towards the aggregate; 0 for none.
        weighting: of clients in the average, `uniform` or `samples`.
        precision: of the tower's matrix products while training; what is learned, and every
            evaluation, is float32.
        evaluate_every: rounds from one evaluation to the next; the last round always has one.
        patience: evaluations without a better validation accuracy before training stops; 0 for
            never.
        seed: everything random in the run follows from it.
    """

    method: str = "fedapt"
    rounds: int = 50
    local_epochs: int = 1
    batch_size: int = 256
    images_per_round: int = 0
    lr: float = 0.01
    schedule: str = "constant"
    momentum: float = 0.9
    weight_decay: float = 1e-5
    proximal: float = 0.0
    weighting: str = "uniform"
    precision: str = "float32"
    evaluate_every: int = 5
    patience: int = 0
    seed: int = 0


@dataclass(frozen=True)
class UnsupervisedConfig:
    """The method `fedapt-unsupervised`, with the settings of the paper's code.

    Attributes:
        warm_up_rounds: rounds on pseudo-labels of zero-shot CLIP.
        confidence: of a pseudo-label that is used.
        views: strongly augmented views of each image, one for a round in turn.
        neighbours: nearest images in feature space whose predictions an image should share.
        dispersion: weight of the term that keeps predictions of a batch apart.
    """

    warm_up_rounds: int = 10
    confidence: float = 0.75
    views: int = 4
    neighbours: int = 5
    dispersion: float = 0.5


@dataclass(frozen=True)
class Config:
    """All of a run's settings, written to `RUN/config.toml` before training begins."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    federation: FederationConfig = FederationConfig()
    train: TrainConfig = TrainConfig()
    unsupervised: UnsupervisedConfig = UnsupervisedConfig()


_RANGES: dict[str, tuple[float, float]] = {
    "data.test_fraction": (0.0, 0.9),
    "data.validation_fraction": (0.0, 0.9),
    "data.shots": (0, 1_000_000),
    "prompt.context_length": (1, 64),
    "prompt.temperature": (1e-6, 1e3),
    "prompt.n_keys": (0, 10_000),
    "federation.clients_per_domain": (1, 100_000),
    "federation.alpha": (1e-6, 1e6),
    "federation.least_images": (1, 1_000_000),
    "federation.sampled": (0, 1_000_000),
    "federation.sampled_per_domain": (0, 1_000_000),
    "federation.trimmed": (0.0, 0.49),
    "federation.faulty": (0, 1_000_000),
    "federation.clip": (0.0, 1e9),
    "federation.noise": (0.0, 1e6),
    "federation.delta": (1e-15, 0.5),
    "federation.node_clip": (0.0, 1e9),
    "federation.node_noise": (0.0, 1e6),
    "federation.secure_threshold": (0.5, 1.0),
    "federation.secure_neighbours": (0, 1_000_000),
    "federation.secure_range": (1e-6, 1e6),
    "federation.least_replies": (1, 1_000_000),
    "federation.round_seconds": (0.1, 1e7),
    "federation.largest_update": (1e-9, 1e12),
    "train.rounds": (1, 1_000_000),
    "train.local_epochs": (1, 10_000),
    "train.batch_size": (1, 1_000_000),
    "train.images_per_round": (0, 1_000_000_000),
    "train.lr": (1e-9, 1e3),
    "train.proximal": (0.0, 1e6),
    "train.evaluate_every": (1, 1_000_000),
    "train.patience": (0, 1_000_000),
    "train.momentum": (0.0, 0.9999),
    "train.weight_decay": (0.0, 10.0),
    "train.seed": (0, 2**63 - 1),
    "data.split_seed": (0, 2**63 - 1),
    "unsupervised.warm_up_rounds": (0, 1_000_000),
    "unsupervised.confidence": (0.0, 1.0),
    "unsupervised.views": (1, 100),
    "unsupervised.neighbours": (1, 1_000),
    "unsupervised.dispersion": (0.0, 1e3),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "train.method": METHODS,
    "federation.aggregation": ("mean", "median", "trimmed-mean", "krum"),
    "train.weighting": ("uniform", "samples"),
    "train.schedule": ("constant", "cosine"),
    "train.precision": ("float32", "bfloat16", "float16"),
    "prompt.keys": ("uniform", "normal", "orthogonal"),
}
# the commands' options that are not called after their setting
_OPTIONS = {
    "data.root": "--data",
    "data.validation_fraction": "--validation",
    "model.name": "--model",
}


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
        ConfigError: unreadable, not TOML, an unknown name, a wrong type, or out of range; it names
            the option or the override that a wrong value came from, else the file.
    """
    tables = _read_toml(path) if path is not None else {}
    sources: dict[str, str] = {}
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
        _set(tables, sources, parts, _parse_value(text.strip()), f"-o {override}")
    for name, value in (options or {}).items():
        if value is not None:
            option = "--" + name.rpartition(".")[2].replace("_", "-")
            _set(tables, sources, name.split("."), value, _OPTIONS.get(name, option))
    config: Config = _build(Config, tables, str(path), "", sources)  # no file: all have a source
    return config


def read_settings(kind: type[Settings], path: Path) -> Settings:
    """A TOML file as any frozen dataclass of settings, with the checks of a run's configuration.

    Raises:
        ConfigError: unreadable, not TOML, an unknown or missing name, or a wrong type.
    """
    tables = _read_toml(path)
    needed = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(needed - set(tables)):
        raise ConfigError(
            where=path,
            found=f"no {', '.join(missing)}",
            expected=f"a value for each of {', '.join(sorted(needed))}",
            next_step="add it",
        )
    settings: Settings = _build(kind, tables, str(path), "")
    return settings


def config_from_dict(tables: Any, where: str) -> Config:
    """Settings from nested tables, as `dataclasses.asdict` gives them; others have their defaults.

    Args:
        where: the tables come from, for errors.

    Raises:
        ConfigError: an unknown name, a wrong type, or out of range.
    """
    config: Config = _build(Config, tables, where, "")
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # tomllib passes on int's ValueError
        found = getattr(error, "strerror", None) or f"no valid TOML ({error})"
        raise ConfigError(
            where=path, found=found, expected="a TOML file", next_step="check the path and the file"
        ) from error


def _set(
    tables: dict[str, Any], sources: dict[str, str], parts: Sequence[str], value: Any, where: str
) -> None:
    """Put a value into nested tables, and where it is from beside every name on the way to it."""
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


def _unknown(where: str, name: str, kind: type) -> ConfigError:
    known = ", ".join(f.name for f in dataclasses.fields(kind))
    return ConfigError(
        where=where,
        found=f"the unknown name {name!r}",
        expected=f"one of {known}",
        next_step="check the spelling",
    )


def _build(kind: type, table: Any, where: str, prefix: str, sources: Mapping[str, str] = {}) -> Any:
    """A dataclass of a table; what is wrong came from its name's source, or from `where`."""
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
        source = sources.get(prefix + name, where)
        if name not in hints:
            raise _unknown(source, prefix + name, kind)
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], value, where, f"{prefix}{name}.", sources)
        else:
            values[name] = _check(prefix + name, value, hints[name], source)
    return kind(**values)


def _check(name: str, value: Any, hint: Any, where: str) -> Any:
    kind = get_origin(hint) or hint
    expected = ""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if kind is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = tuple(value)
    if kind is Mapping:
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            expected = "a table of names"
    elif type(value) is not kind:
        expected = "a list of names" if kind is tuple else f"a value of type {kind.__name__}"
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


def flatten(config: Config) -> dict[str, Any]:
    """All settings under flat names, such as `train.lr`."""
    return {
        f"{section}.{name}": value
        for section, values in dataclasses.asdict(config).items()
        for name, value in values.items()
    }


def remove_folders(config: Config) -> Config:
    """Settings without the paths of images and of a joined checkpoint; that of a CLIP stays."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=""),
        federation=dataclasses.replace(config.federation, join=""),
    )


def remove_paths(config: Config) -> Config:
    """Settings that may leave the machine: a CLIP in a folder goes without its name."""
    model = config.model
    named = dataclasses.replace(
        model,
        name="" if _is_path(model.name) else model.name,
        pretrained="" if _is_path(model.pretrained) else model.pretrained,
    )
    return dataclasses.replace(remove_folders(config), model=named)


def _is_path(name: str) -> bool:
    # hf-hub:organisation/repository is a name
    return ("/" in name or "\\" in name) and not name.startswith("hf-hub:")


def config_to_toml(config: Config) -> str:
    """All settings as TOML; reading it back gives an equal `Config`."""
    return tomli_w.dumps(dataclasses.asdict(config))
