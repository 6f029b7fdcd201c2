"""The training job: images and settings in, a run folder out."""

from __future__ import annotations

from pathlib import Path

from fedapt.core.config import Config, flatten
from fedapt.core.errors import UsageError
from fedapt.core.files import claim_folder
from fedapt.core.report import Reporter
from fedapt.data.collection import open_collection
from fedapt.data.domains import digest_images
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.device import choose_device
from fedapt.run.folder import RunFolder
from fedapt.run.session import Session
from fedapt.run.simulation import check_engine, open_engine
from fedapt.run.trackers import check_trackers, track
from fedapt.training.evaluate import Evaluation, tell_low_routing, tell_untested
from fedapt.training.loop import Progress
from fedapt.training.methods import METHODS


def train(
    config: Config,
    out: Path,
    *,
    resume: bool,
    device: str,
    reporter: Reporter,
    trackers: tuple[str, ...] = (),
    engine: str = "local",
) -> Evaluation:
    """Train a method, and evaluate the selected round: by validation, or the last.

    Args:
        config: all settings; `data.root` names the images.
        out: the run folder.
        resume: continue from the checkpoint in `out`; the result has the same bytes as an
            uninterrupted run.
        device: `auto`, `cpu` or `cuda`.
        trackers: names of experiment trackers that are sent every record, see `run.trackers`.
        engine: `local`, or `flower` for Flower's simulation runtime; the result is the same.

    Raises:
        ReportedError: see `core.errors`; every file in `out` is complete at any moment.
    """
    run = RunFolder(out)
    if not config.data.root:
        if resume and not run.config.is_file():
            raise UsageError(
                where=out,
                found="no run",
                expected="a run to resume",
                next_step="check `out`, or begin a run with `data`",
            )
        raise UsageError(
            where="data",
            found="nothing",
            expected="the folder with the domains",
            next_step="name it with `data`",
        )
    check_trackers(trackers)
    check_engine(engine, config)
    with claim_folder(out):
        return _train(config, run, resume, choose_device(device), reporter, trackers, engine)


def _train(
    config: Config,
    run: RunFolder,
    resume: bool,
    device: str,
    reporter: Reporter,
    trackers: tuple[str, ...],
    engine: str,
) -> Evaluation:
    # check images and CLIP before the run folder is created
    collection = open_collection(config.data)
    join = config.federation.join
    joined = load_checkpoint(Path(join)) if join else None
    resolved = METHODS[config.train.method].resolve(config)
    for change in list_changes(config, resolved):
        reporter.message(f"{config.train.method}: {change}")
    run.check(resolved, resume)
    depth: str = config.data.preprocess
    if run.checkpoint.is_file():  # an older run without this setting continues unchanged
        depth = load_checkpoint(run.checkpoint).info.preprocessing.depth
    backbone = load_backbone(config.model.name, config.model.pretrained, device, depth)
    going_on = run.begin(resolved)
    if resume and not going_on:
        reporter.message(f"nothing to resume in {run.path}: a new run begins")
    reporter.message(f"model: {backbone.label} on {device}")
    domains = collection.load(image_encoder(backbone), reporter, backbone.device)
    if not run.keep_images(digest_images(domains), going_on):
        reporter.message(f"images or their split have changed since {run.path} began")
    folders = collection.folders
    session = Session(resolved, backbone, folders, domains, reporter=reporter, joined=joined)
    start = session.resume(run) if going_on else session.begin()
    count, share = session.count_parameters(start)
    reporter.message(f"trained: {count:,} values, {100 * share:.2f} % of the CLIP")
    if going_on:
        reporter.message(f"resuming after round {start.rounds}")
    write = session.saver(run)
    with (
        track(trackers, run.path, resolved, reporter) as log,
        open_engine(engine, session, device, reporter) as opened,
    ):

        def save(progress: Progress) -> None:
            write(progress)
            log(progress.records[-1])

        done = session.run(start, save, reporter, opened)
    if not done.records:  # zero-shot: a result without training
        write(done)
    if (best := done.best_round) is not None:
        reporter.message(f"best round on validation: {best} ({run.best})")
        learned = session.fit(load_checkpoint(run.best))
        done = Progress(learned, best, done.records[:best])
    evaluation = session.evaluate(done)
    tell_untested(evaluation, reporter)
    tell_low_routing(evaluation, reporter)
    return evaluation


def list_changes(before: Config, after: Config) -> list[str]:
    """Settings that a method changes, as `section.name = value, not value`."""
    old = flatten(before)
    return [
        f"{name} = {value!r}, not {old[name]!r}"
        for name, value in flatten(after).items()
        if value != old[name]
    ]
