"""Which aggregate a run's settings ask for; the local engine has Flower's too."""

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
from fedapt.model.backbone import Backbone
from fedapt.model.image_encoder import image_encoder
from fedapt.run.aggregation import check_privacy
from fedapt.run.session import Session
from fedapt.run.simulation import check_engine
from fedapt.train.methods import METHODS


def run_session(images: Path, backbone: Backbone, *settings: str) -> Session:
    few = ("train.rounds=1", "train.batch_size=8", "prompt.context_length=4", "train.lr=0.1")
    config = read_config(None, [*few, *settings])
    folders = scan_folders(images)
    split = split_as_configured(folders, config.data)
    domains = load_domains(folders, split, image_encoder(backbone), Reporter())
    return Session(config, backbone, folders, domains)


def test_the_median_of_two_is_their_mean(tiny_images: Path, tiny_backbone: Backbone) -> None:
    found = []
    for aggregation in ("mean", "median", "krum"):
        faulty = "federation.faulty=0"
        session = run_session(
            tiny_images, tiny_backbone, f"federation.aggregation={aggregation}", faulty
        )
        if aggregation == "krum":
            with pytest.raises(Exception, match="found 2 replies; expected at least 3"):
                session.run(session.begin(), lambda progress: None, Reporter())
            continue
        done = session.run(session.begin(), lambda progress: None, Reporter())
        assert "epsilon" not in done.records[0]
        found.append(done.learned)
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-6)


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
        ((SECURE, *NOISE, "federation.secure_range=8.9"), "found noise of width 1, of which"),
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
    expected = "clients that are all in this process; expected clients that are nodes"
    with pytest.raises(ConfigError, match=expected):
        check_engine("local", read_config(None, [setting]))
    session = run_session(tiny_images, tiny_backbone, setting)
    with pytest.raises(ConfigError, match=expected):
        session.run(session.begin(), lambda progress: None, Reporter())
