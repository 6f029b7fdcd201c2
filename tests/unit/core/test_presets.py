"""Presets lie under files, overrides and options; a resumed run has its own settings anyway."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedapt.core.config import Config, config_to_toml, flatten, read_config
from fedapt.core.errors import ConfigError
from fedapt.core.presets import PRESETS


def test_the_recommended_settings_are_the_defaults() -> None:
    assert read_config(None) == read_config(None, preset="recommended") == Config()
    found = Config()
    assert (found.prompt.keys, found.train.lr) == ("normal", 0.3)


def test_a_preset_changes_what_it_names_and_nothing_else() -> None:
    before, after = flatten(Config()), flatten(read_config(None, preset="paper"))
    changed = {name: value for name, value in after.items() if value != before[name]}
    assert changed == dict(PRESETS["paper"])
    # section "Settings of the paper's code": keys in [0, 1), a last batch of what is left
    assert changed == {"prompt.keys": "uniform", "train.even_batches": False, "train.lr": 0.01}


def test_a_file_and_overrides_change_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[train]\nlr = 0.5\n")
    found = read_config(path, ["prompt.key_std=2"], {"train.router_lr": 0.7}, "paper")
    assert (found.train.lr, found.prompt.key_std, found.train.router_lr) == (0.5, 2.0, 0.7)
    assert found.prompt.keys == "uniform"
    # a run's own file names everything, so that no preset reaches it
    path.write_text(config_to_toml(Config()))
    assert read_config(path, preset="paper") == Config()


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="the preset: found 'papr'; expected one of recommended, paper"
    ):
        read_config(None, preset="papr")


def test_what_is_no_table_is_refused_with_a_preset_too(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("train = 3\n")
    with pytest.raises(ConfigError, match="train = 3"):
        read_config(path, preset="paper")
