"""Configuration: the paper's defaults, what a file may change, and how a mistake is told."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from fedapt.core.config import (
    Config,
    FederationConfig,
    ModelConfig,
    TrainConfig,
    UnsupervisedConfig,
    config_from_dict,
    config_to_toml,
    flatten,
    read_config,
    remove_paths,
)
from fedapt.core.errors import ConfigError
from fedapt.core.names import METHODS, is_path

SECTIONS = "model, data, prompt, federation, train, unsupervised"


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_settings_of_the_paper() -> None:
    config = read_config(None, preset="paper")
    assert config.train.router_lr == 0.0  # the rate of the rest
    assert config.prompt.context_length == 24
    assert config.prompt.temperature == 0.01
    assert config.prompt.class_specific is True
    assert config.prompt.start == "random"
    assert (config.prompt.keys, config.prompt.n_keys) == ("uniform", 0)
    assert config.train.method == "fedapt"
    assert config.train.rounds == 50
    assert config.train.local_epochs == 1
    assert config.train.batch_size == 256
    assert config.train.lr == 0.01
    assert config.train.momentum == 0.9
    assert config.train.weight_decay == 1e-5
    assert config.train.weighting == "uniform"
    assert config.train.schedule == "constant"
    assert config.train.precision == "float32"
    assert (config.train.proximal, config.train.images_per_round) == (0.0, 0)
    assert (config.train.evaluate_every, config.train.patience) == (5, 0)
    assert config.data.test_fraction == 0.2


def test_by_default_every_image_and_every_domain_trains_in_every_round() -> None:
    config = read_config(None)
    data = config.data
    assert (data.validation_fraction, data.shots, data.leave_out) == (0.0, 0, "")
    assert config.federation == FederationConfig(
        clients_per_domain=1, alpha=0.5, min_images=10, sampled=0, sampled_per_domain=0, join=""
    )


def test_the_defaults_of_the_unsupervised_method_are_the_papers() -> None:
    assert read_config(None).unsupervised == UnsupervisedConfig(
        warm_up_rounds=10, confidence=0.75, views=4, neighbours=5, dispersion=0.5
    )


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
            "data.leave_out=dslr",
            "prompt.start='a photo of a'",
            "federation.alpha=0.1",
            "train.method=promptfl",
            "unsupervised.views=2",
        ],
    )
    assert config.data.class_names["naïve"] == "naïve 'quoted' \"text\""
    assert config.data.root == "C:\\photos"
    assert read_config(write(tmp_path, config_to_toml(config))) == config
    assert read_config(write(tmp_path, config_to_toml(Config()))) == Config()


def test_the_toml_names_every_setting() -> None:
    text = config_to_toml(Config())
    sections = ("model", "data", "prompt", "federation", "train", "unsupervised")
    for line in (*(f"[{name}]" for name in sections), "rounds = 50", "lr = 0.3"):
        assert line in text.splitlines()
    tables = dataclasses.asdict(Config())
    assert tuple(tables) == sections
    for name in (name for table in tables.values() for name in table):
        assert any(line.startswith((f"{name} = ", f"[data.{name}]")) for line in text.splitlines())


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
    with pytest.raises(ConfigError, match=r"found an override without a .*train\.rounds=3"):
        read_config(None, [override])


@pytest.mark.parametrize(
    ("text", "name", "known"),
    [
        ("[trian]\nrounds = 3\n", "trian", SECTIONS),
        ("rounds = 3\n", "rounds", SECTIONS),
        (
            "[train]\nepochs = 3\n",
            "train.epochs",
            "method, rounds, local_epochs, batch_size, even_batches, images_per_round, lr",
        ),
        ("[prompt]\nlength = 2\n", "prompt.length", "context_length"),
        (
            "[federation]\nclients = 2\n",
            "federation.clients",
            "clients_per_domain, alpha, min_images, sampled, sampled_per_domain, join",
        ),
        ("[unsupervised]\nrounds = 2\n", "unsupervised.rounds", "warm_up_rounds, confidence"),
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
        ("train.rounds=ten", "'ten'", "an integer from"),
        ("train.rounds=3.0", "3.0", "an integer from"),
        ("train.rounds=true", "True", "an integer from"),
        ("train.rounds=[3]", r"\[3\]", "an integer from"),
        ("train.rounds.x=3", r"\{'x': 3\}", "an integer from"),
        ("train.lr=false", "False", "a number from"),
        ("train.lr='0.1'", "'0.1'", "a number from"),
        ("prompt.class_specific=1", "1", "true or false"),
        ("data.root=7", "7", "text"),
        ("data.shots=1.5", "1.5", "an integer from"),
        ("train.method=1", "1", "one of fedapt, "),
        ("federation.alpha=small", "'small'", "a number from"),
        ("model.name=2024-01-01", r"datetime\.date\(2024, 1, 1\)", "text"),
    ],
)
def test_a_value_of_another_type_is_refused(override: str, found: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"= {found}; expected {expected}"):
        read_config(None, [override])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.rounds=0", "from 1 to 1 000 000"),
        ("train.rounds=-1", "from 1 to 1 000 000"),
        ("train.lr=0", "from 1e-9 to 1 000"),
        ("train.lr=nan", "from 1e-9 to 1 000"),
        ("train.lr=inf", "from 1e-9 to 1 000"),
        ("train.momentum=1.0", "from 0 to 0.9999"),
        ("train.weight_decay=-1e-9", "from 0 to 10"),
        ("train.seed=-1", "from 0 to"),
        ("train.seed=9223372036854775808", "from 0 to"),
        ("data.test_fraction=0.91", "from 0 to 0.9"),
        ("prompt.context_length=65", "from 1 to 64"),
        ("prompt.temperature=0", "from 1e-6 to 1 000"),
        ("prompt.temperature=nan", "from 1e-6 to 1 000"),
        ("data.validation_fraction=0.91", "from 0 to 0.9"),
        ("data.validation_fraction=-0.1", "from 0 to 0.9"),
        ("data.shots=-1", "from 0 to 1 000 000"),
        ("prompt.n_keys=-1", "from 0 to 10 000"),
        ("federation.clients_per_domain=0", "from 1 to 100 000"),
        ("federation.alpha=0", "from 1e-6 to 1 000 000"),
        ("federation.alpha=-0.5", "from 1e-6 to 1 000 000"),
        ("federation.alpha=inf", "from 1e-6 to 1 000 000"),
        ("federation.min_images=0", "from 1 to 1 000 000"),
        ("federation.sampled=-1", "from 0 to 1 000 000"),
        ("federation.sampled_per_domain=-1", "from 0 to 1 000 000"),
        ("train.images_per_round=-1", "from 0 to 1 000 000 000"),
        ("train.proximal=-0.1", "from 0 to 1 000 000"),
        ("train.proximal=nan", "from 0 to 1 000 000"),
        ("train.evaluate_every=0", "from 1 to 1 000 000"),
        ("train.patience=-1", "from 0 to 1 000 000"),
        ("unsupervised.warm_up_rounds=-1", "from 0 to 1 000 000"),
        ("unsupervised.confidence=1.01", "from 0 to 1"),
        ("unsupervised.views=0", "from 1 to 100"),
        ("unsupervised.neighbours=0", "from 1 to 1 000"),
        ("unsupervised.dispersion=-1", "from 0 to 1 000"),
    ],
)
def test_a_value_out_of_range_is_refused(override: str, expected: str) -> None:
    name = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{name} = .*; expected an? (number|integer) {expected}"):
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
        "data.validation_fraction=0.9",
        "federation.alpha=1e-6",
        "federation.clients_per_domain=1",
        "federation.min_images=1",
        "prompt.n_keys=10000",
        "train.evaluate_every=1",
        "train.proximal=0",
        "unsupervised.confidence=1",
        "unsupervised.warm_up_rounds=0",
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


@pytest.mark.parametrize(
    ("name", "choices", "wrong"),
    [
        ("train.method", METHODS, "fedavg"),
        ("train.method", METHODS, "FedAPT"),
        ("train.schedule", ("constant", "cosine"), "linear"),
        ("train.precision", ("float32", "bfloat16", "float16"), "half"),
        ("prompt.keys", ("uniform", "normal", "signs", "orthogonal"), ""),
    ],
)
def test_a_word_is_one_of_those_known(name: str, choices: tuple[str, ...], wrong: str) -> None:
    section, key = name.split(".")
    for choice in choices:
        assert getattr(getattr(read_config(None, [f"{name}={choice}"]), section), key) == choice
    expected = re.escape(f"{name} = {wrong!r}; expected one of {', '.join(choices)}. To do:")
    with pytest.raises(ConfigError, match=expected):
        read_config(None, [f"{name}='{wrong}'"])


def test_plain_tables_are_read_like_a_file() -> None:
    config = read_config(None, ["train.lr=0.5", "data.class_names.a=b", "prompt.keys=normal"])
    assert config_from_dict(dataclasses.asdict(config), "here") == config
    assert config_from_dict({}, "here") == Config()
    with pytest.raises(ConfigError, match=r"here: found the unknown name 'train\.round'") as caught:
        config_from_dict({"train": {"round": 3}}, "here")
    assert caught.value.where == "here"
    for tables in ([], "text", None):
        with pytest.raises(ConfigError, match=r"here: found .*expected a table"):
            config_from_dict(tables, "here")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.rounds", 0),
        ("train.batch_size", 0),
        ("data.validation_fraction", 2),
        ("data.root", 7),
        ("model.name", 7),
    ],
)
def test_a_wrong_value_is_told_with_where_it_is_from(tmp_path: Path, name: str, value: int) -> None:
    section, key = name.split(".")
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(f"[{section}]\n[train]\nlr = 0.5\n" if section != "train" else "[train]\n")
    bad.write_text(f"[{section}]\n{key} = {value}\n")
    more = ["train.lr=0.1", "prompt.n_keys=2"]  # of the same section, and of another
    for path in (None, good):
        with pytest.raises(ConfigError, match=rf"{name} = {value}.*; expected ") as caught:
            read_config(path, more, {name: value})
        assert caught.value.where == name
        with pytest.raises(ConfigError, match=rf"{name} = {value}.*; expected ") as caught:
            read_config(path, [f"{name}={value}", *more])
        assert caught.value.where == f"{name}={value}"
    with pytest.raises(ConfigError, match=rf"{name} = {value}.*; expected ") as caught:
        read_config(bad, more, {"train.seed": 1})
    assert caught.value.where == str(bad)


@pytest.mark.parametrize("override", ["train.foo=1", "tune.lr=1", "data.class_names.mug=1"])
def test_a_wrong_override_is_told_as_it_was_given(tmp_path: Path, override: str) -> None:
    for path in (None, write(tmp_path, "[train]\nrounds = 3\n")):
        with pytest.raises(ConfigError) as caught:
            read_config(path, [override, "train.seed=1"])
        assert caught.value.where == override


def test_flat_names_are_those_of_an_override() -> None:
    config = read_config(None, ["train.lr=0.5", "data.class_names.a=b"])
    flat = flatten(config)
    assert flat["train.lr"] == 0.5
    assert flat["data.class_names"] == {"a": "b"}
    assert len(flat) == sum(len(dataclasses.fields(t)) for t in vars(config).values())
    assert read_config(None, (), flat) == config


def test_a_number_of_absurd_length_is_refused_like_any_other() -> None:
    with pytest.raises(ConfigError, match=r"train\.lr = .*expected a number from 1e-9 to 1 000"):
        read_config(None, ["train.lr=1" + 400 * "0"])
    with pytest.raises(ConfigError, match=r"train\.rounds = .*expected an integer from"):
        read_config(None, ["train.rounds=" + 5000 * "1"])


def test_a_section_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found train = 3; expected a table \[train\]"):
        read_config(write(tmp_path, "train = 3\n"))
    with pytest.raises(
        ConfigError, match=r"train\.rounds=3: found the unknown name 'train\.rounds'"
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
    path.write_bytes(b"\xe9\xfe\x00[train]")
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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("federation.least_images", "federation.min_images"),
        ("federation.least_replies", "federation.min_replies"),
        ("federation.largest_update", "federation.max_update"),
    ],
)
def test_a_name_of_before_is_refused_with_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=f"{old}'; expected {new}. To do: write {new}"):
        read_config(None, [f"{old}=1"])
    assert read_config(None, [f"{new}=1"]) is not None


def test_names_of_a_later_version_are_left_out_on_request() -> None:
    tables = {"train": {"rounds": 3, "warp": 9}, "teleport": {"range": 1}}
    assert config_from_dict(tables, "here", skip_unknown=True) == read_config(
        None, ["train.rounds=3"]
    )
    with pytest.raises(ConfigError, match="the unknown name"):
        config_from_dict(tables, "here")
    with pytest.raises(ConfigError, match=r"train\.rounds = 0"):
        config_from_dict({"train": {"rounds": 0, "warp": 9}}, "here", skip_unknown=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lite", False),
        ("ViT-B-32", False),
        ("laion2b_s34b_b79k", False),
        ("hf-hub:organisation/repository", False),
        ("", False),
        ("clips/mine", True),
        ("/home/someone/clip", True),
        ("local-dir:/home/someone/clip", True),
        ("C:\\clips\\mine", True),
        ("weights.pt", True),
        ("patient_clip.SAFETENSORS", True),
    ],
)
def test_a_path_is_told_from_a_name(name: str, expected: bool) -> None:
    assert is_path(name) is expected
    model = remove_paths(read_config(None, [], {"model.name": name})).model
    assert model.name == ("" if expected else name)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes("[train]\r\nrounds = 7\r\n".encode(encoding))
    assert read_config(path).train.rounds == 7
