"""Settings of aggregation and privacy that do not go together, and those that do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedapt.core.config import read_config
from fedapt.core.errors import ConfigError
from fedapt.core.report import Reporter
from fedapt.data.domains import load_domains
from fedapt.data.folders import scan_folders
from fedapt.data.splits import split_as_configured
from fedapt.federation.local import LocalEngine
from fedapt.model.backbone import Backbone
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.aggregation import check_privacy
from fedapt.run.session import Session
from fedapt.run.simulation import check_engine
from fedapt.training.methods import METHODS
from fedapt.training.privacy import measure_length
from tests.support.tiny import write_tiny_images


def run_session(images: Path, backbone: Backbone, *settings: str) -> Session:
    few = ("train.rounds=1", "train.batch_size=8", "prompt.context_length=4", "train.lr=0.1")
    config = read_config(None, [*few, *settings])
    folders = scan_folders(images)
    split = split_as_configured(folders, config.data)
    domains = load_domains(folders, split, image_encoder(backbone), Reporter())
    return Session(config, backbone, folders, domains)


@pytest.mark.parametrize("aggregation", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_two_clients_outvote_nobody(
    aggregation: str, tiny_images: Path, tiny_backbone: Backbone
) -> None:
    session = run_session(tiny_images, tiny_backbone, f"federation.aggregation={aggregation}")
    with pytest.raises(ConfigError) as caught:
        session.run(session.begin(), lambda progress: None, Reporter())
    needed = 3 if aggregation == "median" else 5
    assert caught.value.where == f"federation.aggregation = '{aggregation}'"
    assert caught.value.found == "2 clients in a round"
    assert caught.value.expected == f"{needed} or more, to outvote federation.faulty = 1"


@pytest.mark.parametrize("setting", ["train.weighting=samples", "train.method=adapt"])
def test_a_vote_counts_replies_alike(
    setting: str, tiny_images: Path, tiny_backbone: Backbone
) -> None:
    session = run_session(tiny_images, tiny_backbone, "federation.aggregation=median", setting)
    with pytest.raises(ConfigError, match="expected uniform weights, and a method with shared"):
        session.run(session.begin(), lambda progress: None, Reporter())


def test_the_local_engine_takes_a_vote(tmp_path: Path, tiny_backbone: Backbone) -> None:
    images = write_tiny_images(tmp_path / "data", 4, ("a", "b", "c"))
    session = run_session(images, tiny_backbone, "federation.aggregation=median")
    start, clients = session.begin(), session.method.setting.clients
    done = session.run(start, lambda progress: None, Reporter())
    assert "epsilon" not in done.records[0]
    replies = LocalEngine(session.method).train_clients(start.learned, clients, 0)
    learned = [reply.learned for reply in replies]
    for name, tensor in done.learned.items():
        median = torch.stack([one[name] for one in learned]).median(0).values
        torch.testing.assert_close(tensor, median, rtol=0, atol=1e-6)


def test_the_aggregate_shortens_long_updates(tiny_images: Path, tiny_backbone: Backbone) -> None:
    session = run_session(tiny_images, tiny_backbone, "federation.clip=0.001")
    start = session.begin()
    done = session.run(start, lambda progress: None, Reporter())
    moved = {name: tensor - start.learned[name] for name, tensor in done.learned.items()}
    assert 0 < measure_length(moved) <= 0.001 * (1 + 1e-3)


def test_noise_is_accounted_for(tiny_images: Path, tiny_backbone: Backbone) -> None:
    settings = ("federation.clip=0.5", "federation.noise=2.0")
    session = run_session(tiny_images, tiny_backbone, *settings)
    (record,) = session.run(session.begin(), lambda progress: None, Reporter()).records
    assert 0 < record["epsilon"] < 10
    for wrong in ("federation.clip=0.0", "train.weighting=samples", "train.method=adapt"):
        session = run_session(tiny_images, tiny_backbone, *settings, wrong)
        with pytest.raises(ConfigError, match=r"federation\.noise = 2"):
            session.run(session.begin(), lambda progress: None, Reporter())


SECURE, NOISE = "federation.secure=true", ("federation.node_clip=1.0", "federation.node_noise=1.0")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((SECURE, "train.method=adapt"), "the method adapt, whose contexts belong to one domain"),
        ((SECURE, "federation.aggregation=median"), "aggregation = 'median', for which the server"),
        ((SECURE, "federation.clip=1.0"), "clip = 1.0, for which the server has to see every"),
        ((SECURE, "federation.clip=1.0", "federation.noise=1.0"), "clip = 1.0, for which"),
        ((SECURE, "federation.max_update=5.0"), "max_update = 5.0, for which the server"),
        ((SECURE, *NOISE, "train.weighting=samples"), "weighting = 'samples' in a secure sum"),
        ((SECURE, *NOISE, "federation.secure_range=8.9"), "found noise of width 1, whose tail"),
        (
            ("federation.node_noise=1.0",),
            "node_clip = 0, clip = 0, noise = 0; expected a node_clip",
        ),
        ((*NOISE, "federation.clip=1.0"), "no clip or noise of the server's"),
        ((*NOISE, "federation.clip=1.0", "federation.noise=1.0"), "node_clip = 1, clip = 1, noise"),
    ],
)
def test_what_a_secure_sum_or_noise_of_nodes_excludes(
    settings: tuple[str, ...], message: str
) -> None:
    config = read_config(None, settings)
    for check in (
        lambda: check_privacy(config, local=False),
        lambda: check_engine("flower", config),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            check()
        assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "settings",
    [
        (),
        *((SECURE, f"train.method={n}") for n, m in METHODS.items() if m.sends and not m.owned),
        (SECURE, "train.weighting=samples", "federation.node_clip=1.0"),
        (SECURE, *NOISE, "federation.secure_range=9.0"),
        (*NOISE, "train.method=adapt", "train.weighting=samples", "federation.secure_range=0.1"),
    ],
)
def test_what_goes_with_it(settings: tuple[str, ...]) -> None:
    check_privacy(read_config(None, settings), local=False)


@pytest.mark.parametrize("setting", [SECURE, "federation.node_clip=1.0"])
def test_one_process_has_nothing_to_hide(
    setting: str, tiny_images: Path, tiny_backbone: Backbone
) -> None:
    expected = "clients in this process; expected clients on nodes"
    with pytest.raises(ConfigError, match=expected):
        check_engine("local", read_config(None, [setting]))
    session = run_session(tiny_images, tiny_backbone, setting)
    with pytest.raises(ConfigError, match=expected):
        session.run(session.begin(), lambda progress: None, Reporter())
