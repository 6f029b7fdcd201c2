"""A session without images: nodes train and measure, the server averages and saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fedapt.core.config import Config
from fedapt.core.records import read_records
from fedapt.data.domains import Domain, ImageSet, ImageTable
from fedapt.data.partition import Client
from fedapt.federation.flower.node import Score
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint
from fedapt.run.folder import RunFolder
from fedapt.run.session import Session
from fedapt.train.evaluate import DomainResult, Evaluation
from fedapt.train.loop import Measured, Progress
from fedapt.train.methods import Learned

_NO_LABELS = torch.empty(0, dtype=torch.int64)
NO_IMAGES = ImageSet(ImageTable((), torch.empty(0, 1), _NO_LABELS), _NO_LABELS)


class RemoteSession(Session):
    """A method whose clients are nodes. Set `engine` and `ask_nodes` before it runs.

    Args:
        config: as the method settles it.
        classes: names in the order of the labels.
        domains: that train, in the order of their indices.
        clients: without images.
        known: the run's checkpoint, if there is one; further domains come behind its own.
    """

    # learned -> what each client's node reports of it, by the client's index
    ask_nodes: Callable[[Learned], dict[int, Score]]

    def __init__(
        self,
        config: Config,
        backbone: Backbone,
        classes: tuple[str, ...],
        domains: Sequence[str],
        clients: tuple[Client, ...],
        known: Checkpoint | None,
    ) -> None:
        self.domains = [Domain(name, NO_IMAGES, NO_IMAGES, NO_IMAGES) for name in domains]
        self._set_up(config, backbone, classes, self.domains, clients, _no_views, known)
        self._scores: dict[str, list[Score]] = {}

    def resume(self, run: RunFolder) -> Progress:
        """What the run's checkpoint has learned, with fresh rows for domains that came later.

        Raises:
            CheckpointError: it is of another CLIP, or of other classes.
        """
        assert self._joined is not None  # the caller has loaded it
        rounds = self._joined.info.rounds
        records = read_records(run.records)[:rounds]
        return Progress(self.begin().learned, rounds, tuple(records))

    def measure(self, learned: Learned) -> Measured:
        """Accuracy of every domain as its nodes report it.

        A round can be chosen only where every domain's validation images have had their say.
        """
        self._scores = {name: [] for name in self.trained}
        for index, score in self.ask_nodes(learned).items():
            self._scores[self.trained[self.method.setting.clients[index].domain]].append(score)
        test, validation = {}, {}
        for name, scores in self._scores.items():
            if any(s.n_test for s in scores):
                test[name] = _pool((s.test, s.n_test) for s in scores)
            if any(s.n_validation for s in scores):
                validation[name] = _pool((s.validation, s.n_validation) for s in scores)
        return Measured(test, validation if len(validation) == len(self.trained) else {})

    def evaluate(self, progress: Progress) -> Evaluation:
        """Test accuracy as nodes reported it last, with zero-shot CLIP beside it."""
        if not self._scores:
            self.measure(progress.learned)
        results = {
            name: DomainResult(
                accuracy=_pool((s.test, s.n_test) for s in scores),
                zero_shot=_pool((s.zero_shot, s.n_test) for s in scores),
                n=sum(s.n_test for s in scores),
            )
            for name, scores in self._scores.items()
        }
        return Evaluation(self.method.title, results, {})


def _pool(shares: Iterable[tuple[float, int]]) -> float:
    """One share of right answers for images in several places; 0 without any."""
    pairs = list(shares)
    total = sum(n for _, n in pairs)
    return sum(share * n for share, n in pairs) / total if total else 0.0


def _no_views(images: ImageSet, view: int) -> Tensor:
    raise AssertionError("no client trains on the server")
