"""Settings to start from, by name; a file, overrides and options change them."""

from __future__ import annotations

from collections.abc import Mapping

from fedapt.core.errors import ConfigError

PAPER, RECOMMENDED = "paper", "recommended"

PRESETS: Mapping[str, Mapping[str, object]] = {
    PAPER: {},  # the defaults of `fedapt.core.settings`
    # keys that lie apart, and steps that are large enough for the rounds; see docs/methods.md
    RECOMMENDED: {
        "prompt.keys": "normal",
        "prompt.key_std": 1.0,
        "train.lr": 0.3,
        "train.router_lr": 0.3,
    },
}


def read_preset(name: str) -> Mapping[str, object]:
    """The settings of a preset that are not the defaults.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(
            where="the preset",
            found=repr(name),
            expected=f"one of {', '.join(PRESETS)}",
            next_step="choose one of these",
        )
    return PRESETS[name]
