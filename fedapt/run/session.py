"""The parts of a run that stay the same from round to round, put together once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fedapt.core.config import Config, remove_folders
from fedapt.core.errors import CheckpointError, DataError
from fedapt.core.names import ADAPTIVE_NETWORK, KEYS
from fedapt.core.records import read_records, write_records
from fedapt.core.report import Reporter
from fedapt.core.versions import software_versions
from fedapt.data.domains import Domain
from fedapt.data.folders import ImageFolders
from fedapt.data.partition import Client, divide_domains, name_keys
from fedapt.data.views import StrongViews
from fedapt.federation.local import LocalEngine
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint
from fedapt.model.image_encoder import image_encoder
from fedapt.run.aggregation import check_privacy, choose_aggregation
from fedapt.run.folder import RunFolder
from fedapt.train.evaluate import Evaluation, evaluate, measure
from fedapt.train.loop import Engine, Measured, Progress, run_rounds
from fedapt.train.methods import METHODS, Learned, Method, Setting
from fedapt.train.methods.base import Views, n_parameters
from fedapt.train.sampling import check_sampling


class Session:
    """A method, its clients and their images.

    Args:
        config: as the method settles it.
        joined: a federation's checkpoint that these domains go on from, each new one with a key of
            its own.

    Raises:
        ReportedError: the settings, the images and the checkpoint do not go together.
    """

    def __init__(
        self,
        config: Config,
        backbone: Backbone,
        folders: ImageFolders,
        domains: list[Domain],
        *,
        reporter: Reporter | None = None,
        joined: Checkpoint | None = None,
    ) -> None:
        self.domains, self._root = domains, folders.root
        trained = _order_domains(config, domains, joined)
        n_keys = config.prompt.n_keys or len(trained)
        clients = divide_domains(trained, config.federation, n_keys, config.train.seed)
        views = StrongViews(
            domains[0].train.table,
            torch.cat([client.data.rows for client in clients]),
            lambda: image_encoder(backbone),
            reporter or Reporter(),
        )
        self._set_up(config, backbone, folders.class_names, trained, clients, views, joined)

    def _set_up(
        self,
        config: Config,
        backbone: Backbone,
        classes: tuple[str, ...],
        trained: Sequence[Domain],
        clients: tuple[Client, ...],
        views: Views,
        joined: Checkpoint | None,
    ) -> None:
        """Put the method together, and this process to run its clients."""
        self.config, self.backbone = config, backbone
        self._classes, self._joined = classes, joined
        self.trained = tuple(domain.name for domain in trained)
        check_sampling(config.federation, len(clients))
        n_keys = config.prompt.n_keys or len(trained)
        self._key_names = name_keys(clients, trained, n_keys)
        setting = Setting(
            config=config,
            backbone=backbone,
            class_names=classes,
            n_keys=n_keys,
            clients=clients,
            table=trained[0].train.table,
            views=views,
            known_keys=None if joined is None else joined.keys,
        )
        self.method: Method = METHODS[config.train.method](setting)
        self.engine: Engine = LocalEngine(self.method, config.train)

    def count_parameters(self, progress: Progress) -> tuple[int, float]:
        """Values that a client trains, and their share of all values of the CLIP."""
        client = self.method.setting.clients[0]
        count = n_parameters(self.method.share(progress.learned, client))
        return count, count / sum(p.numel() for p in self.backbone.clip.parameters())

    def begin(self) -> Progress:
        """What is learned, before the first round."""
        learned = self.method.begin()
        if self._joined is not None:
            self._joined.check_backbone(self.backbone)
            _check_classes(self._joined, self._classes)
            learned = _extend(learned, self._joined, {*self.method.owned, ADAPTIVE_NETWORK})
        return Progress(learned, 0, ())

    def resume(self, run: RunFolder) -> Progress:
        """What the run's checkpoint has learned.

        Raises:
            CheckpointError: it is damaged, or of another CLIP.
            DataError: classes or domains have changed since.
        """
        checkpoint = load_checkpoint(run.checkpoint)
        checkpoint.check_backbone(self.backbone)
        info = checkpoint.info
        names = (info.domains, info.classes)
        now = (self.trained, self._classes)
        if names != now:
            raise DataError(
                where=self._root,
                found=f"domains {', '.join(now[0])} with {len(now[1])} classes",
                expected=f"those of the run: {', '.join(names[0])} with {len(names[1])} classes",
                next_step="resume with the same data, or train into another folder",
            )
        learned = self.fit(checkpoint)
        # a record may be one round ahead of the checkpoint: that round is trained again
        records = read_records(run.records)[: info.rounds]
        return Progress(learned, info.rounds, tuple(records))

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

    def run(
        self, start: Progress, save: Callable[[Progress], None], reporter: Reporter
    ) -> Progress:
        """Train from `start` to the end, by this process or by what `engine` is set to."""
        check_privacy(self.config, local=isinstance(self.engine, LocalEngine))
        return run_rounds(
            self.engine,
            self.method,
            start,
            self.config,
            self.measure,
            save,
            reporter,
            choose_aggregation(self.method),
        )

    def measure(self, learned: Learned) -> Measured:
        """Accuracy of every domain that has test or validation images."""
        return measure(self.method.predictor(learned), self.domains, self.trained)

    def evaluate(self, progress: Progress) -> Evaluation:
        """Test accuracy with zero-shot CLIP and routing beside it."""
        last = progress.records[-1] if progress.records else {}
        return evaluate(
            self.method,
            progress.learned,
            self.domains,
            self.trained,
            self.method.bank_names(self._key_names),
            known=last.get("accuracy"),
        )

    def to_checkpoint(self, progress: Progress) -> Checkpoint:
        """The checkpoint after some rounds; a function of settings, data and seed alone."""
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
            preprocessing=backbone.preprocessing.to_dict(),
            versions=software_versions(),
        )
        learned = {name: tensor.cpu() for name, tensor in progress.learned.items()}
        keys = self.method.frozen().get(KEYS)
        return Checkpoint(info, learned, None if keys is None else keys.cpu())

    def saver(self, run: RunFolder) -> Callable[[Progress], None]:
        """A function that writes records, then the checkpoint, which is what counts."""

        def save(progress: Progress) -> None:
            write_records(run.records, list(progress.records))
            checkpoint = self.to_checkpoint(progress)
            if progress.is_best:
                checkpoint.save(run.best)
            checkpoint.save(run.checkpoint)

        return save


def _order_domains(
    config: Config, domains: list[Domain], joined: Checkpoint | None
) -> list[Domain]:
    """The domains that train: those of the joined federation first, in its order."""
    names = [domain.name for domain in domains]
    left_out = config.data.leave_out
    if left_out and (left_out not in names or len(names) == 1):
        raise DataError(
            where=f"data.leave_out = {left_out!r}",
            found=f"domains {', '.join(names)}",
            expected="one of several domains",
            next_step="check the name",
        )
    trained = {domain.name: domain for domain in domains if domain.name != left_out}
    if joined is None:
        return list(trained.values())
    info = joined.info
    if missing := [name for name in info.domains if name not in trained]:
        raise DataError(
            where="--join",
            found=f"no images of {', '.join(missing)}",
            expected=f"all domains of the federation: {', '.join(info.domains)}",
            next_step="add them: those who were there before go on training",
        )
    if len(info.clients) != config.federation.clients_per_domain * len(info.domains):
        raise CheckpointError(
            where="--join",
            found=f"{len(info.clients)} clients in {len(info.domains)} domains",
            expected=f"{config.federation.clients_per_domain} in each"
            " (federation.clients_per_domain)",
            next_step="join with as many clients per domain as the federation has",
        )
    if config.prompt.n_keys or len(info.keys) != len(info.domains):
        raise CheckpointError(
            where="--join",
            found=f"{len(info.keys)} keys for {len(info.domains)} domains",
            expected="one key for each domain (prompt.n_keys = 0)",
            next_step="train all domains together from the start",
        )
    new = [domain for name, domain in trained.items() if name not in info.domains]
    return [*(trained[name] for name in info.domains), *new]


def _check_classes(joined: Checkpoint, classes: tuple[str, ...]) -> None:
    if joined.info.classes != classes:
        raise CheckpointError(
            where="--join",
            found=f"images of the classes {', '.join(classes)}",
            expected=f"those of the federation: {', '.join(joined.info.classes)}",
            next_step="join with the same classes, or train all domains together from the start",
        )


def _extend(begun: Learned, joined: Checkpoint, growing: set[str]) -> Learned:
    """What a federation has learned, with fresh rows for keys and clients that are new.

    Args:
        growing: tensors that have such rows.

    Raises:
        CheckpointError: of another method or context.
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
                where="--join",
                found=f"{name} of shape {found}",
                expected=f"{expected}" + (", or fewer rows" if name in growing else ""),
                next_step="join with the method and the context of the federation",
            )
        known = known.to(fresh.device)
        if len(known) < len(fresh):
            known = torch.cat([known, fresh[len(known) :]])
        extended[name] = known
    return extended
