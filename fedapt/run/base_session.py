"""Base of every run, local or remote: a method, its clients, and the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fedapt.core.config import Config, remove_folders
from fedapt.core.errors import CheckpointError
from fedapt.core.names import ADAPTIVE_NETWORK, KEYS
from fedapt.core.records import write_records
from fedapt.core.versions import software_versions
from fedapt.data.domains import ImageTable
from fedapt.data.partition import ClientInfo, name_keys
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint, CheckpointInfo
from fedapt.run.folder import RunFolder
from fedapt.training.loop import Progress
from fedapt.training.methods import METHODS, Learned, Method, Setting
from fedapt.training.methods.base import Views, n_parameters
from fedapt.training.sampling import check_sampling


@dataclass(frozen=True)
class Images:
    """Images on this machine.

    Attributes:
        table: all of them.
        views: features of augmented ones, computed on request.
    """

    table: ImageTable
    views: Views


class BaseSession:
    """A method and its clients.

    Args:
        config: settings as the method resolves them.
        classes: names in the order of the labels.
        trained: names of the domains that train, in the order of their indices.
        joined: a checkpoint that the run continues; new domains come after its domains.
        images: the images, if they are in this process.

    Raises:
        ReportedError: the settings and the clients do not go together.
    """

    def __init__(
        self,
        config: Config,
        backbone: Backbone,
        classes: tuple[str, ...],
        trained: Sequence[str],
        clients: tuple[ClientInfo, ...],
        joined: Checkpoint | None,
        images: Images | None,
    ) -> None:
        self.config, self.backbone, self.trained = config, backbone, tuple(trained)
        self._classes, self._joined = classes, joined
        check_sampling(config.federation, len(clients))
        n_keys = config.prompt.n_keys or len(trained)
        self._key_names = name_keys(clients, trained, n_keys)
        setting = Setting(
            config=config,
            backbone=backbone,
            class_names=classes,
            n_keys=n_keys,
            clients=clients,
            known_keys=None if joined is None else joined.keys,
            table=None if images is None else images.table,
            views=None if images is None else images.views,
        )
        self.method: Method = METHODS[config.train.method](setting)

    def count_parameters(self, progress: Progress) -> tuple[int, float]:
        """Number of values that a client trains, and their share of the CLIP."""
        client = self.method.setting.clients[0]
        count = n_parameters(self.method.share(progress.learned, client))
        return count, count / sum(p.numel() for p in self.backbone.clip.parameters())

    def begin(self) -> Progress:
        """Learned tensors before the first round."""
        learned = self.method.begin()
        if self._joined is not None:
            self._joined.check_backbone(self.backbone)
            _check_classes(self._joined, self._classes)
            learned = _extend(learned, self._joined, {*self.method.owned, ADAPTIVE_NETWORK})
        return Progress(learned, 0, ())

    def fit(self, checkpoint: Checkpoint) -> Learned:
        """A checkpoint's tensors on the backbone's device, of the shapes that the method has.

        Raises:
            CheckpointError: they have other names or shapes.
        """
        expected = {name: list(tensor.shape) for name, tensor in self.method.begin().items()}
        found = {name: list(tensor.shape) for name, tensor in checkpoint.learned.items()}
        if found != expected:
            raise CheckpointError(
                where=f"a checkpoint of {checkpoint.info.method}",
                found=f"tensors {found}",
                expected=str(expected),
                next_step="use the images and settings that it was trained with",
            )
        return {name: t.to(self.backbone.device) for name, t in checkpoint.learned.items()}

    def to_checkpoint(self, progress: Progress) -> Checkpoint:
        """The checkpoint after some rounds; it depends on settings, data and seed only."""
        config, backbone = self.config, self.backbone
        info = CheckpointInfo(
            model=backbone.name,
            pretrained=backbone.pretrained,
            clip_sha256=backbone.sha256,
            classes=self._classes,
            domains=self.trained,
            keys=self._key_names,
            clients=tuple(client.domain for client in self.method.setting.clients),
            rounds=progress.rounds,
            config=remove_folders(config),
            preprocessing=backbone.preprocessing,
            versions=software_versions(),
        )
        learned = {name: tensor.cpu() for name, tensor in progress.learned.items()}
        keys = self.method.frozen().get(KEYS)
        return Checkpoint(info, learned, None if keys is None else keys.cpu())

    def saver(self, run: RunFolder) -> Callable[[Progress], None]:
        """A function that writes the records and then the checkpoint."""

        def save(progress: Progress) -> None:
            write_records(run.records, list(progress.records))
            checkpoint = self.to_checkpoint(progress)
            if progress.is_best:
                checkpoint.save(run.best)
            checkpoint.save(run.checkpoint)

        return save


def _check_classes(joined: Checkpoint, classes: tuple[str, ...]) -> None:
    if joined.info.classes != classes:
        raise CheckpointError(
            where="join",
            found=f"images of the classes {', '.join(classes)}",
            expected=f"those of the federation: {', '.join(joined.info.classes)}",
            next_step="join with the same classes, or train all domains together from the start",
        )


def _extend(begun: Learned, joined: Checkpoint, growing: set[str]) -> Learned:
    """Learned tensors of a federation, with fresh rows for keys and clients that are new.

    Args:
        growing: tensors that have such rows.

    Raises:
        CheckpointError: the method or the context differs.
    """
    extended = {}
    for name in begun | joined.learned:
        fresh, known = begun.get(name), joined.learned.get(name)
        if (
            fresh is None
            or known is None
            or known.shape[1:] != fresh.shape[1:]
            or len(known) > len(fresh)
            or (len(known) < len(fresh) and name not in growing)
        ):
            found, expected = (None if t is None else list(t.shape) for t in (known, fresh))
            raise CheckpointError(
                where="join",
                found=f"{name} of shape {found}",
                expected=f"{expected}" + (", or fewer rows" if name in growing else ""),
                next_step="join with the method and the context of the federation",
            )
        known = known.to(fresh.device)
        if len(known) < len(fresh):
            known = torch.cat([known, fresh[len(known) :]])
        extended[name] = known
    return extended
