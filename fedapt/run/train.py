"""A run: data and model in, a folder with configuration, records and checkpoint out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from fedapt.core.config import Config, config_to_toml, read_config
from fedapt.core.errors import DataError, UsageError
from fedapt.core.files import write_text
from fedapt.core.records import read_records, write_records
from fedapt.core.report import Reporter
from fedapt.core.versions import software_versions
from fedapt.data.domains import Domain, load_domains
from fedapt.data.folders import ImageFolders, check_complete, scan_folders
from fedapt.data.splits import split_folders
from fedapt.federation.local import LocalClient, LocalEngine
from fedapt.model.adaptive_network import draw_adaptive_network
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint
from fedapt.model.image_encoder import image_encoder
from fedapt.model.prompt import draw_context, draw_keys
from fedapt.model.prompted_clip import GlobalModel, prompted_text, zero_shot_features
from fedapt.train.client import ClientTask, Learned
from fedapt.train.evaluate import Evaluation, accuracy, evaluate
from fedapt.train.loop import Progress, run_rounds


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, written before anything else."""
        return self.path / "config.toml"

    @property
    def records(self) -> Path:
        """One JSON object per round."""
        return self.path / "records.jsonl"

    @property
    def checkpoint(self) -> Path:
        """V, Q and the keys after the last round."""
        return self.path / "checkpoint.safetensors"

    def prepare(self, config: Config, resume: bool) -> bool:
        """Write the configuration; True where there is a checkpoint to go on from.

        Raises:
            UsageError: the folder holds a run already, or one with other settings.
        """
        if self.config.is_file():
            if not resume:
                raise UsageError(
                    where=self.path,
                    found="a run",
                    expected="a new folder",
                    next_step="go on with --resume, or choose another --out",
                )
            self._check_same(config)
        versions = ", ".join(f"{name} {number}" for name, number in software_versions().items())
        write_text(self.config, f"# {versions}\n\n{config_to_toml(config)}")
        return self.checkpoint.is_file()

    def _check_same(self, config: Config) -> None:
        before, now = (
            dataclasses.asdict(dataclasses.replace(c, train=dataclasses.replace(c.train, rounds=1)))
            for c in (read_config(self.config), config)
        )
        changed = [
            f"{section}.{name}"
            for section, values in now.items()
            for name in values
            if before[section][name] != values[name]
        ]
        if changed:
            raise UsageError(
                where=self.config,
                found=f"another value of {', '.join(changed)}",
                expected="the settings that the run began with (train.rounds alone may change)",
                next_step=f"resume with --config {self.config}, or choose another --out",
            )


def choose_device(device: str) -> str:
    """Turn `auto` into `cuda` where there is one, else `cpu`.

    Raises:
        UsageError: an unknown device, or cuda without one.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if device not in ("cpu", "cuda") or (device == "cuda" and not available):
        raise UsageError(
            where="--device",
            found=device,
            expected="auto, cpu or cuda" if available else "auto or cpu: torch sees no CUDA device",
            next_step="choose one of these",
        )
    return device


def load_data(
    config: Config, backbone: Backbone, reporter: Reporter
) -> tuple[ImageFolders, list[Domain]]:
    """Scan, split and encode the images of a configuration.

    Raises:
        DataError: the folders are wrong.
    """
    folders = scan_folders(Path(config.data.root), config.data.class_names)
    check_complete(folders, config.data.allow_missing_classes)
    split = split_folders(folders, config.data.test_fraction, config.data.split_seed)
    encoder = image_encoder(backbone)
    return folders, load_domains(folders, split, encoder, reporter, backbone.device)


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
    # the folders are checked before the run folder is touched: a typo leaves nothing behind
    folders = scan_folders(Path(config.data.root), config.data.class_names)
    check_complete(folders, config.data.allow_missing_classes)
    run = RunFolder(out)
    going_on = run.prepare(config, resume)
    backbone = load_backbone(config.model.name, config.model.pretrained, device)
    reporter.message(f"model: {backbone.label} on {device}")
    folders, domains = load_data(config, backbone, reporter)
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


class Session:
    """The parts of a run that stay the same from round to round."""

    def __init__(
        self, config: Config, backbone: Backbone, folders: ImageFolders, domains: list[Domain]
    ) -> None:
        self._config, self._backbone, self._domains = config, backbone, domains
        self._folders = folders
        seed, prompt = config.train.seed, config.prompt
        self.text = prompted_text(backbone, folders.class_names, prompt.context_length)
        width = backbone.text_tower.width
        self._keys = draw_keys(len(domains), prompt.context_length, width, seed)
        device = backbone.device
        tasks = [
            ClientTask(self.text, self._keys.to(device), n, backbone.logit_scale, config.train)
            for n in range(len(domains))
        ]
        clients = [LocalClient(t, d.train) for t, d in zip(tasks, domains, strict=True)]
        self.engine = LocalEngine(clients, seed)

    def begin(self) -> Progress:
        """V and Q before the first round."""
        seed, prompt = self._config.train.seed, self._config.prompt
        context = draw_context(
            len(self._folders.class_names),
            prompt.context_length,
            self._backbone.text_tower.width,
            seed,
            prompt.class_specific,
        )
        network = draw_adaptive_network(len(self._domains), self._backbone.joint_width, seed)
        device = self._backbone.device
        return Progress(Learned(context.to(device), network.to(device)), 0, ())

    def resume(self, run: RunFolder) -> Progress:
        """V and Q of the run's checkpoint.

        Raises:
            CheckpointError: it is damaged, or of another CLIP.
            DataError: classes or domains have changed since.
        """
        checkpoint = load_checkpoint(run.checkpoint)
        checkpoint.check_backbone(self._backbone)
        names = (checkpoint.info.domains, checkpoint.info.classes)
        now = (self._folders.domains, self._folders.class_names)
        if names != now:
            raise DataError(
                where=self._folders.root,
                found=f"domains {', '.join(now[0])} with {len(now[1])} classes",
                expected=f"those of the run: {', '.join(names[0])} with {len(names[1])} classes",
                next_step="resume with the same data, or train into another folder",
            )
        device = self._backbone.device
        learned = Learned(checkpoint.meta_prompt.to(device), checkpoint.adaptive_network.to(device))
        # a record may be one round ahead of the checkpoint: that round is trained again
        records = read_records(run.records)[: checkpoint.info.rounds]
        return Progress(learned, checkpoint.info.rounds, tuple(records))

    def global_model(self, learned: Learned) -> GlobalModel:
        """The server's model around V and Q."""
        return GlobalModel(
            text=self.text,
            context=learned.context,
            adaptive_network=learned.adaptive_network,
            keys=self._keys.to(self._backbone.device),
            temperature=self._config.prompt.temperature,
            logit_scale=self._backbone.logit_scale,
        )

    def measure(self, learned: Learned) -> dict[str, float]:
        """Test accuracy of every domain that has test images."""
        model = self.global_model(learned)
        banks = model.text_banks()
        return {
            d.name: accuracy(model.logits(d.test.features, banks), d.test.labels)
            for d in self._domains
            if len(d.test)
        }

    def to_checkpoint(self, progress: Progress) -> Checkpoint:
        """The checkpoint after some rounds; a function of settings, data and seed alone."""
        config, backbone = self._config, self._backbone
        info = CheckpointInfo(
            method="fedapt",
            model=backbone.name,
            pretrained=backbone.pretrained,
            clip_sha256=backbone.sha256,
            classes=self._folders.class_names,
            domains=self._folders.domains,
            temperature=config.prompt.temperature,
            rounds=progress.rounds,
            seed=config.train.seed,
            test_fraction=config.data.test_fraction,
            split_seed=config.data.split_seed,
            class_names=dict(config.data.class_names),
            preprocessing=backbone.preprocessing.to_dict(),
            versions=software_versions(),
        )
        return Checkpoint(
            info,
            progress.learned.context.cpu(),
            progress.learned.adaptive_network.cpu(),
            self._keys,
        )

    def saver(self, run: RunFolder):  # type: ignore[no-untyped-def]
        """A function that writes records, then the checkpoint, which is what counts."""

        def save(progress: Progress) -> None:
            write_records(run.records, list(progress.records))
            self.to_checkpoint(progress).save(run.checkpoint)

        return save
