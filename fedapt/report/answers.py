"""The answer to each test image, and figures of many answers: calibration and confusion."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedapt.run.evaluate import Trained
from fedapt.training.calibration import BINS
from fedapt.training.evaluate import predict_parts


@dataclass(frozen=True)
class Answer:
    """A model's prediction for one test image.

    Attributes:
        path: the image.
        domain: the image's domain.
        label, chosen: index of its class, and of the class with the maximum probability.
        confidence: that probability.
        routed_to: key with the largest weight; empty for a method without keys.
        weight: 1; 1 / models if several models answer.
    """

    path: Path
    domain: str
    label: int
    chosen: int
    confidence: float
    routed_to: str = ""
    weight: float = 1.0

    @property
    def is_right(self) -> bool:
        """Whether the chosen class is the image's."""
        return self.label == self.chosen


@dataclass(frozen=True)
class Bin:
    """Answers of about the same confidence.

    Attributes:
        share: share of all answers.
        accuracy, confidence: means over them.
    """

    share: float
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class ClassResult:
    """One class: its number of test images, its accuracy and its most frequent mistake.

    Attributes:
        name: name of the class.
        n: test images.
        accuracy: share of right answers.
        mistaken_for: the class of most wrong answers; empty without any.
        mistaken: share of the images that this class was answered for.
    """

    name: str
    n: int
    accuracy: float
    mistaken_for: str
    mistaken: float


def list_answers(trained: Trained) -> list[Answer]:
    """The answer of a model to each of its test images."""
    parts = {domain.name: domain.test for domain in trained.domains}
    method, learned = trained.method, trained.learned
    known = trained.checkpoint.info.domains
    answers = []
    for name, (logits, labels) in predict_parts(method.predictor(learned), parts, known).items():
        images, paths = parts[name].load(), parts[name].table.paths
        weights = method.routing(learned, images.features)
        keys = [] if weights is None else weights.argmax(-1).tolist()
        routed = [trained.bank_names[key] for key in keys] or [""] * len(images)
        files = [paths[row] for row in images.rows.tolist()]
        models = logits if logits.dim() == 3 else logits.unsqueeze(0)
        for model in models:
            confidence, chosen = model.double().softmax(-1).max(-1)
            found = zip(labels.tolist(), chosen.tolist(), confidence.tolist(), strict=True)
            answers += [
                Answer(path, name, *values, routed_to=key, weight=1 / len(models))
                for path, values, key in zip(files, found, routed, strict=True)
            ]
    return answers


def find_bins(answers: Sequence[Answer]) -> list[Bin]:
    """The bins of confidence that hold an answer, in order; see `fedapt.training.calibration`."""
    members: dict[int, list[Answer]] = {}
    for answer in answers:
        members.setdefault(min(int(answer.confidence * BINS), BINS - 1), []).append(answer)
    total = sum(answer.weight for answer in answers)
    bins = []
    for _, held in sorted(members.items()):
        weight = sum(answer.weight for answer in held)
        bins.append(
            Bin(
                share=weight / total,
                accuracy=sum(a.weight * a.is_right for a in held) / weight,
                confidence=sum(a.weight * a.confidence for a in held) / weight,
            )
        )
    return bins


def expected_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error of bins, 0 to 1; 0 without any."""
    return sum(held.share * abs(held.accuracy - held.confidence) for held in bins)


def confusion(answers: Sequence[Answer], n_classes: int) -> list[list[float]]:
    """Share of the images of each class (row) that each class (column) was answered for.

    The row of a class without test images is zeros.
    """
    counts: defaultdict[tuple[int, int], float] = defaultdict(float)
    for answer in answers:
        counts[answer.label, answer.chosen] += answer.weight
    rows = []
    for label in range(n_classes):
        row = [counts[label, chosen] for chosen in range(n_classes)]
        rows.append([value / (sum(row) or 1.0) for value in row])
    return rows


def class_results(answers: Sequence[Answer], names: Sequence[str]) -> list[ClassResult]:
    """Every class that has test images, the one with the smallest accuracy first."""
    shares = confusion(answers, len(names))
    sizes = Counter(answer.label for answer in {a.path: a for a in answers}.values())
    results = []
    for label, name in enumerate(names):
        if sizes[label]:
            others = [(s, -i) for i, s in enumerate(shares[label]) if i != label and s > 0]
            mistaken, other = max(others, default=(0.0, 0))
            usual = names[-other] if others else ""
            results.append(ClassResult(name, sizes[label], shares[label][label], usual, mistaken))
    return sorted(results, key=lambda result: (result.accuracy, result.name))


def worst_mistakes(answers: Sequence[Answer], n: int) -> list[Answer]:
    """The wrong answers with the largest confidence, one for an image."""
    wrong: dict[Path, Answer] = {}
    for answer in sorted(answers, key=lambda a: (-a.confidence, a.path)):
        if not answer.is_right:
            wrong.setdefault(answer.path, answer)
    return list(wrong.values())[:n]
