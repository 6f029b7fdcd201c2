"""Configuration: the paper's defaults, what a file may change, and how a mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedapt.core.config import Config, ModelConfig, TrainConfig, config_to_toml, read_config
from fedapt.core.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_defaults_are_the_papers() -> None:
    config = read_config(None)
    assert config == Config()
    assert config.prompt.context_length == 24
    assert config.prompt.temperature == 0.01
    assert config.prompt.class_specific is True
    assert config.train.rounds == 50
    assert config.train.local_epochs == 1
    assert config.train.batch_size == 256
    assert config.train.lr == 0.01
    assert config.train.momentum == 0.9
    assert config.train.weight_decay == 1e-5
    assert config.train.weighting == "uniform"
    assert config.data.test_fraction == 0.2


def test_the_default_model_needs_no_download() -> None:
    assert read_config(None).model == ModelConfig(name="lite", pretrained="")


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, "[train]\nrounds = 3\n"))
    assert config.train == TrainConfig(rounds=3)
    assert config.prompt == Config().prompt


def test_a_configuration_survives_the_trip_through_toml(tmp_path: Path) -> None:
    config = read_config(
        None,
        [
            "train.lr=0.125",
            "train.seed=9223372036854775807",
            "data.allow_missing_classes=true",
            'data.class_names.back_pack="back pack"',
            'data.class_names.naïve="na\\u00efve \'quoted\' \\"text\\""',
            "data.root='C:\\photos'",
        ],
    )
    assert config.data.class_names["naïve"] == "naïve 'quoted' \"text\""
    assert config.data.root == "C:\\photos"
    assert read_config(write(tmp_path, config_to_toml(config))) == config
    assert read_config(write(tmp_path, config_to_toml(Config()))) == Config()


def test_the_toml_names_every_setting() -> None:
    text = config_to_toml(Config())
    for line in ("[model]", "[data]", "[prompt]", "[train]", "rounds = 50", "lr = 0.01"):
        assert line in text.splitlines()


def test_class_names_are_a_table(tmp_path: Path) -> None:
    path = write(tmp_path, '[data.class_names]\nback_pack = "back pack"\n"a.b" = "dotted"\n')
    assert read_config(path).data.class_names == {"back_pack": "back pack", "a.b": "dotted"}


@pytest.mark.parametrize("value", ['"mug"', "{ mug = 1 }", "['mug']"])
def test_class_names_that_are_no_table_of_names_are_refused(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, f"[data]\nclass_names = {value}\n")
    with pytest.raises(ConfigError, match=r"data\.class_names = .* expected a table of names"):
        read_config(path)


def test_an_override_beats_the_file_and_an_option_beats_both(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nrounds = 1\nseed = 1\nbatch_size = 1\n")
    config = read_config(
        path, ["train.rounds=2", "train.seed=2"], {"train.rounds": 3, "train.batch_size": None}
    )
    assert (config.train.rounds, config.train.seed, config.train.batch_size) == (3, 2, 1)


def test_the_last_of_two_equal_overrides_counts() -> None:
    assert read_config(None, ["train.rounds=2", "train.rounds=7"]).train.rounds == 7


@pytest.mark.parametrize(
    ("override", "root"),
    [
        ("data.root=photos", "photos"),
        ("data.root = photos/office ", "photos/office"),
        ('data.root="true"', "true"),
        ("data.root=a=b", "a=b"),
    ],
)
def test_a_bare_word_is_a_string(override: str, root: str) -> None:
    assert read_config(None, [override]).data.root == root


def test_an_integer_is_good_where_a_float_is_wanted() -> None:
    lr = read_config(None, ["train.lr=1"]).train.lr
    assert lr == 1.0
    assert type(lr) is float


@pytest.mark.parametrize("override", ["rounds", "train.rounds", "rounds=3", "=3", ""])
def test_an_override_without_section_key_and_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"found no section\.key=value; .*-o train\.rounds=3"):
        read_config(None, [override])


@pytest.mark.parametrize(
    ("text", "name", "known"),
    [
        ("[trian]\nrounds = 3\n", "trian", "model, data, prompt, train"),
        ("rounds = 3\n", "rounds", "model, data, prompt, train"),
        ("[train]\nepochs = 3\n", "train.epochs", "rounds, local_epochs, batch_size, lr"),
        ("[prompt]\nlength = 2\n", "prompt.length", "context_length"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    tmp_path: Path, text: str, name: str, known: str
) -> None:
    with pytest.raises(ConfigError, match=f"the unknown name '{name}'; expected one of {known}"):
        read_config(write(tmp_path, text))


def test_an_unknown_name_in_an_override_or_an_option_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the unknown name 'train\.round'"):
        read_config(None, ["train.round=3"])
    with pytest.raises(ConfigError, match=r"the unknown name 'tune'"):
        read_config(None, [], {"tune.rounds": 3})


@pytest.mark.parametrize(
    ("override", "found", "expected"),
    [
        ("train.rounds=ten", "'ten'", "type int"),
        ("train.rounds=3.0", "3.0", "type int"),
        ("train.rounds=true", "True", "type int"),
        ("train.rounds=[3]", r"\[3\]", "type int"),
        ("train.rounds.x=3", r"\{'x': 3\}", "type int"),
        ("train.lr=false", "False", "type float"),
        ("train.lr='0.1'", "'0.1'", "type float"),
        ("prompt.class_specific=1", "1", "type bool"),
        ("data.root=7", "7", "type str"),
        ("model.name=2024-01-01", r"datetime\.date\(2024, 1, 1\)", "type str"),
    ],
)
def test_a_value_of_another_type_is_refused(override: str, found: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"= {found}; expected a value of {expected}"):
        read_config(None, [override])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.rounds=0", "from 1 to 1e\\+06"),
        ("train.rounds=-1", "from 1 to 1e\\+06"),
        ("train.lr=0", "from 1e-09 to 1000"),
        ("train.lr=nan", "from 1e-09 to 1000"),
        ("train.lr=inf", "from 1e-09 to 1000"),
        ("train.momentum=1.0", "from 0 to 0.9999"),
        ("train.weight_decay=-1e-9", "from 0 to 10"),
        ("train.seed=-1", "from 0 to"),
        ("train.seed=9223372036854775808", "from 0 to"),
        ("data.test_fraction=0.91", "from 0 to 0.9"),
        ("prompt.context_length=65", "from 1 to 64"),
        ("prompt.temperature=0", "from 1e-06 to 1000"),
        ("prompt.temperature=nan", "from 1e-06 to 1000"),
    ],
)
def test_a_value_out_of_range_is_refused(override: str, expected: str) -> None:
    name = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{name} = .*; expected a number {expected}"):
        read_config(None, [override])


@pytest.mark.parametrize(
    "override",
    [
        "train.rounds=1",
        "train.momentum=0",
        "train.weight_decay=0",
        "data.test_fraction=0",
        "data.test_fraction=0.9",
        "prompt.context_length=64",
        "prompt.temperature=1000",
        "train.seed=0",
    ],
)
def test_the_ends_of_a_range_belong_to_it(override: str) -> None:
    section, key = override.partition("=")[0].split(".")
    config = read_config(None, [override])
    assert getattr(getattr(config, section), key) == float(override.partition("=")[2])


def test_weighting_is_one_of_two_words() -> None:
    assert read_config(None, ["train.weighting=samples"]).train.weighting == "samples"
    with pytest.raises(ConfigError, match=r"'size'; expected one of uniform, samples"):
        read_config(None, ["train.weighting=size"])


def test_a_number_of_absurd_length_is_refused_like_any_other() -> None:
    with pytest.raises(ConfigError, match=r"train\.lr = .*expected a number from 1e-09 to 1000"):
        read_config(None, ["train.lr=1" + 400 * "0"])
    with pytest.raises(ConfigError, match=r"train\.rounds = .*expected a value of type int"):
        read_config(None, ["train.rounds=" + 5000 * "1"])


def test_a_section_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found train = 3; expected a table \[train\]"):
        read_config(write(tmp_path, "train = 3\n"))
    with pytest.raises(
        ConfigError, match=r"-o train\.rounds=3: found the unknown name 'train\.rounds'"
    ):
        read_config(write(tmp_path, "train = 3\n"), ["train.rounds=3"])


@pytest.mark.parametrize("text", ["[train\n", "rounds 3", "[train]\nlr = 1\nlr = 2\n"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=r"found no valid TOML \(.*\); expected a TOML file") as e:
        read_config(path)
    assert e.value.where == str(path)


def test_a_file_of_other_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfe\x00[train]")
    with pytest.raises(ConfigError, match=r"found no valid TOML \('utf-8' codec"):
        read_config(path)


def test_a_file_of_endless_brackets_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a = " + 20_000 * "[")
    with pytest.raises(ConfigError, match="found no valid TOML"):
        read_config(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; expected a TOML file"):
        read_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="Is a directory; expected a TOML file"):
        read_config(tmp_path)


@pytest.mark.parametrize("options", [None, {}, {"train.rounds": None}])
def test_no_options_change_nothing(options: dict[str, Any] | None) -> None:
    assert read_config(None, (), options) == Config()
