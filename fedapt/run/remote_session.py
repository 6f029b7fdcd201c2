"""A session without images: nodes train and measure, the server aggregates and saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from fedapt.core.config import Config
from fedapt.core.records import read_records
from fedapt.core.report import Reporter
from fedapt.data.partition import ClientInfo
from fedapt.federation.flower.engine import FlowerEngine
from fedapt.federation.flower.node import Score
from fedapt.model.backbone import Backbone
from fedapt.model.checkpoint import Checkpoint
from fedapt.run.aggregation import check_aggregation, check_privacy
from fedapt.run.base_session import BaseSession
from fedapt.run.folder import RunFolder
from fedapt.training.loop import Measured, Progress, run_rounds
from fedapt.training.methods import Learned


class RemoteSession(BaseSession):
    """A method whose clients are nodes.

    Args:
        config: settings as the method resolves them.
        classes: names in the order of the labels.
        domains: domains that train, in the order of their indices.
        known: the run's checkpoint, if there is one; new domains come after its domains.
    """

    def __init__(
        self,
        config: Config,
        backbone: Backbone,
        classes: tuple[str, ...],
        domains: Sequence[str],
        clients: tuple[ClientInfo, ...],
        known: Checkpoint | None,
    ) -> None:
        super().__init__(config, backbone, classes, domains, clients, known, None)

    def resume(self, run: RunFolder) -> Progress:
        """Learned tensors of the run's checkpoint, with fresh rows for later domains.

        Raises:
            CheckpointError: it is of another CLIP, or of other classes.
        """
        assert self._joined is not None  # the caller has loaded the checkpoint
        rounds = self._joined.info.rounds
        records = read_records(run.records)[:rounds]
        return Progress(self.begin().learned, rounds, tuple(records))

    def run(
        self,
        start: Progress,
        save: Callable[[Progress], None],
        reporter: Reporter,
        engine: FlowerEngine,
    ) -> Progress:
        """Train from `start` to the last round with the engine's nodes."""

        def measure(learned: Learned, round_number: int) -> Measured:
            reports = engine.measure(learned, round_number)
            test, validation = self.pool(reports.scores)
            return Measured(test, validation, reports.n_bytes, reports.refused)

        check_privacy(self.config, local=False)
        check_aggregation(self.method)
        return run_rounds(engine, self.method, start, self.config, measure, save, reporter)

    def pool(self, scores: Mapping[int, Score]) -> tuple[dict[str, float], dict[str, float]]:
        """Test and validation accuracy of every domain, from the nodes' reports.

        A round can be chosen only if every domain has reported validation accuracy.

        Args:
            scores: client's index -> score.
        """
        clients = self.method.setting.clients
        test, validation = {}, {}
        for index, name in enumerate(self.trained):
            members = [client.index for client in clients if client.domain == index]
            told = [scores[member] for member in members if member in scores]
            if any(s.n_test for s in told):
                test[name] = _pool((s.test, s.n_test) for s in told)
            if any(s.n_validation for s in told):
                validation[name] = _pool((s.validation, s.n_validation) for s in told)
        return test, validation if len(validation) == len(self.trained) else {}


def _pool(shares: Iterable[tuple[float, int]]) -> float:
    """One accuracy for images on several nodes."""
    pairs = list(shares)
    return sum(share * n for share, n in pairs) / sum(n for _, n in pairs)
