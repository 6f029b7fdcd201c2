"""Training as a job: images and settings in, a run folder out."""

from __future__ import annotations

from pathlib import Path

from fedapt.core.config import Config
from fedapt.core.errors import UsageError
from fedapt.core.report import Reporter
from fedapt.data.domains import load_domains
from fedapt.data.folders import check_complete, scan_folders
from fedapt.data.splits import split_folders
from fedapt.model.backbone import load_backbone
from fedapt.model.image_encoder import image_encoder
from fedapt.model.prompted_clip import zero_shot_features
from fedapt.run.device import choose_device
from fedapt.run.folder import RunFolder
from fedapt.run.session import Session
from fedapt.train.evaluate import Evaluation, evaluate
from fedapt.train.loop import run_rounds


def train(
    config: Config, out: Path, *, resume: bool, device: str, reporter: Reporter
) -> Evaluation:
    """Train FedAPT with one client per domain, and evaluate the result.

    Args:
        config: all settings; `data.root` names the images.
        out: the run folder.
        resume: go on from the checkpoint in `out`; the result has the same bytes as an
            uninterrupted run.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ReportedError: see `core.errors`; every file in `out` is whole at any moment.
    """
    if not config.data.root:
        raise UsageError(
            where="--data",
            found="nothing",
            expected="the folder with the domains",
            next_step="pass --data ROOT",
        )
    device = choose_device(device)
    # the images are checked before the run folder is touched: a typo leaves nothing behind
    folders = scan_folders(Path(config.data.root), config.data.class_names)
    check_complete(folders, config.data.allow_missing_classes)
    split = split_folders(folders, config.data.test_fraction, config.data.split_seed)
    run = RunFolder(out)
    going_on = run.prepare(config, resume)
    backbone = load_backbone(config.model.name, config.model.pretrained, device)
    reporter.message(f"model: {backbone.label} on {device}")
    domains = load_domains(folders, split, image_encoder(backbone), reporter, backbone.device)
    session = Session(config, backbone, folders, domains)
    start = session.resume(run) if going_on else session.begin()
    if going_on:
        reporter.message(f"resuming after round {start.rounds}")
    done = run_rounds(
        session.engine, start, config.train, session.measure, session.saver(run), reporter
    )
    return evaluate(
        session.global_model(done.learned),
        domains,
        folders.domains,
        zero_shot_features(backbone, folders.class_names),
    )
