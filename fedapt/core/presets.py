"""Settings to start from, by name; a file, overrides and options change them."""

from __future__ import annotations

from collections.abc import Mapping

from fedapt.core.errors import ConfigError

PAPER, RECOMMENDED = "paper", "recommended"

PRESETS: Mapping[str, Mapping[str, object]] = {
    # the defaults of `fedapt.core.settings`, chosen on validation images; see docs/methods.md
    RECOMMENDED: {},
    # those of the paper's code
    PAPER: {
        "prompt.keys": "uniform",
        "train.even_batches": False,
        "train.lr": 0.01,
    },
}


def read_preset(name: str) -> Mapping[str, object]:
    """The settings of a preset that are not the defaults.

    Raises:
        ConfigError: an unknown preset.
    """
    if name not in PRESETS:
        raise ConfigError(
            where="the preset",
            found=repr(name),
            expected=f"one of {', '.join(PRESETS)}",
            next_step="choose one of these",
        )
    return PRESETS[name]
