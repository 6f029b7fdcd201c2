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
from fedapt.run.session import Session


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
