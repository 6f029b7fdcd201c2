"""The parts of a run that stay the same in all rounds, built once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedapt.core.config import Config
from fedapt.core.errors import CheckpointError, DataError
from fedapt.core.records import read_records
from fedapt.core.report import Reporter
from fedapt.data.domains import Domain
from fedapt.data.folders import ImageFolders
from fedapt.data.partition import divide_domains
from fedapt.data.views import StrongViews
from fedapt.federation.local import LocalEngine
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint, load_checkpoint
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.aggregation import check_aggregation, check_privacy
from fedapt.run.base_session import BaseSession, Images
from fedapt.run.folder import RunFolder
from fedapt.training.evaluate import Evaluation, evaluate, make_route, measure
from fedapt.training.loop import Engine, Measured, Progress, run_rounds
from fedapt.training.methods import Learned


class Session(BaseSession):
    """A method, its clients and their images.

    Args:
        config: settings as the method resolves them.
        joined: checkpoint of a federation to continue; each new domain gets its own key.

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
        images = Images(trained[0].train.table, views)
        names = [domain.name for domain in trained]
        super().__init__(config, backbone, folders.class_names, names, clients, joined, images)

    def resume(self, run: RunFolder) -> Progress:
        """Learned tensors of the run's checkpoint.

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
        # a record may be one round ahead of the checkpoint; that round is trained again
        records = read_records(run.records)[: info.rounds]
        return Progress(learned, info.rounds, tuple(records))

    def run(
        self,
        start: Progress,
        save: Callable[[Progress], None],
        reporter: Reporter,
        engine: Engine | None = None,
    ) -> Progress:
        """Train from `start` to the last round.

        Args:
            engine: runs the clients; by default this process.
        """
        check_privacy(self.config, local=engine is None)
        check_aggregation(self.method)
        return run_rounds(
            engine or LocalEngine(self.method),
            self.method,
            start,
            self.config,
            lambda learned, number: self.measure(learned),
            save,
            reporter,
        )

    def measure(self, learned: Learned) -> Measured:
        """Accuracy of every domain that has test or validation images."""
        names = self.method.bank_names(self._key_names)
        route = make_route(self.method, learned, names)
        return measure(self.method.predictor(learned), self.domains, self.trained, route)

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
            calibration=last.get("calibration_error"),
        )


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
            where="join",
            found=f"no images of {', '.join(missing)}",
            expected=f"all domains of the federation: {', '.join(info.domains)}",
            next_step="add them: the earlier domains continue to train",
        )
    if len(info.clients) != config.federation.clients_per_domain * len(info.domains):
        raise CheckpointError(
            where="join",
            found=f"{len(info.clients)} clients in {len(info.domains)} domains",
            expected=f"{config.federation.clients_per_domain} in each"
            " (federation.clients_per_domain)",
            next_step="join with as many clients per domain as the federation has",
        )
    if config.prompt.n_keys or len(info.keys) != len(info.domains):
        raise CheckpointError(
            where="join",
            found=f"{len(info.keys)} keys for {len(info.domains)} domains",
            expected="one key for each domain (prompt.n_keys = 0)",
            next_step="train all domains together from the start",
        )
    new = [domain for name, domain in trained.items() if name not in info.domains]
    return [*(trained[name] for name in info.domains), *new]
