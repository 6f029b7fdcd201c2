"""The parts of a run that stay the same from round to round, put together once."""

from __future__ import annotations

from collections.abc import Callable

from fedapt.core.config import Config
from fedapt.core.errors import DataError
from fedapt.core.records import read_records, write_records
from fedapt.core.versions import software_versions
from fedapt.data.domains import Domain
from fedapt.data.folders import ImageFolders
from fedapt.federation.local import LocalClient, LocalEngine
from fedapt.model.adaptive_network import draw_adaptive_network
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint
from fedapt.model.prompt import draw_context, draw_keys
from fedapt.model.prompted_clip import GlobalModel, prompted_text
from fedapt.run.folder import RunFolder
from fedapt.train.client import ClientTask, Learned
from fedapt.train.evaluate import accuracy
from fedapt.train.loop import Progress


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
        banks = model.text_banks
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

    def saver(self, run: RunFolder) -> Callable[[Progress], None]:
        """A function that writes records, then the checkpoint, which is what counts."""

        def save(progress: Progress) -> None:
            write_records(run.records, list(progress.records))
            self.to_checkpoint(progress).save(run.checkpoint)

        return save
