"""How well the signal for unknown domains tells a domain that nobody trained in.

    python benchmarks/unknown_domains.py

Each domain of Office-Caltech10 is left out in turn: `lite`, the recommended settings, 15 rounds.
The threshold is set on the validation images of the three others, as an export does it; measured
are their test images against all images of the one that was left out, and against drawings, the
demo's emoji. Beside the signal stand its two parts alone, and two that were not taken: the entropy
of the domain weights, and the distance to the one centre of the routed domain. Writes
benchmarks/results/unknown_domains.json and docs/unknown_domains.png.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from figures import publish
from matplotlib.figure import Figure
from numpy.typing import NDArray
from photos import ROOT, photos_root

from fedapt.core.config import read_config
from fedapt.core.report import Reporter
from fedapt.data.collection import open_collection
from fedapt.data.emoji import build_emoji_set
from fedapt.data.features import extract_features
from fedapt.data.folders import Sample
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.onnx.image_encoder import image_encoder
from fedapt.run.train import train
from fedapt_export.unknown import KEEP, calibrate_on
from fedapt_runtime.unknown import measure_features

Scores = NDArray[np.float64]
SIGNAL, ENTROPY, CENTRE = "signal", "entropy_of_weights", "distance_to_centre"
ROUNDS = 15


def roc(known: Scores, unknown: Scores) -> tuple[Scores, Scores]:
    """Shares flagged of the known and of the unknown images, at every threshold."""
    thresholds = np.unique(np.concatenate([known, unknown]))[::-1]
    flagged = [[(s >= t).mean() for t in thresholds] for s in (known, unknown)]
    return tuple(np.array([0.0, *shares]) for shares in flagged)  # type: ignore[return-value]


def area(known: Scores, unknown: Scores) -> float:
    """Chance that an unknown image scores above a known one; ties count half."""
    above = (unknown[:, None] > known).mean() + 0.5 * (unknown[:, None] == known).mean()
    return round(float(above), 3)


def unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def measure(
    domain: str, folder: Path, drawings: list[Path]
) -> tuple[dict[str, object], tuple[Scores, Scores]]:
    """Figures and the curve of one domain that is left out."""
    config = read_config(
        ROOT / "configs" / "office_caltech10.toml",
        [],
        {
            "data.root": str(photos_root()),
            "data.leave_out": domain,
            "data.validation_fraction": 0.2,
            "train.rounds": ROUNDS,
        },
    )
    train(config, folder / domain, resume=False, device="cpu", reporter=Reporter())
    checkpoint = load_checkpoint(folder / domain / "checkpoint.safetensors")
    backbone = load_backbone("lite")
    model, encoder = checkpoint.to_global_model(backbone), image_encoder(backbone)
    images = open_collection(config.data)
    split = images.split

    def features(samples: tuple[Sample, ...]) -> NDArray[np.float32]:
        paths = [images.root / sample.path for sample in samples]
        return np.asarray(extract_features(paths, encoder).values)

    names = checkpoint.info.keys
    validation = {name: features(split.validation[name]) for name in names}
    known = np.concatenate([features(split.test[name]) for name in names])
    unknown = features((*split.train[domain], *split.validation[domain], *split.test[domain]))
    network = checkpoint.learned["adaptive_network"].numpy()
    signal = calibrate_on(checkpoint, network, images, encoder)
    assert signal is not None
    centres = unit(np.stack([unit(validation[name]).mean(0) for name in names]))

    def score(values: NDArray[np.float32]) -> dict[str, Scores]:
        with torch.inference_mode():
            weights = model.weights(torch.from_numpy(values)).double().numpy()
        routed = centres[weights.argmax(-1)]
        entropy, distance = measure_features(values, signal.network, signal.centres, signal.domains)
        return {
            SIGNAL: signal.score(values).astype(np.float64),
            "entropy_of_scores_alone": entropy,
            "distance_to_class_centres_alone": distance,
            ENTROPY: -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1),
            CENTRE: 1.0 - (unit(values) * routed).sum(-1).astype(np.float64),
        }

    drawn = np.asarray(extract_features(drawings, encoder).values)
    of_known, of_unknown, of_drawings = score(known), score(unknown), score(drawn)
    curve = (of_known[SIGNAL], of_unknown[SIGNAL])
    flagged = [round(float((s > signal.threshold).mean()), 3) for s in curve]
    figures: dict[str, object] = {
        "left_out": domain,
        "known_images": len(known),
        "unknown_images": len(unknown),
        "flagged_of_known": flagged[0],
        "flagged_of_unknown": flagged[1],
        "flagged_of_drawings": round(float((of_drawings[SIGNAL] > signal.threshold).mean()), 3),
        "auc": {name: area(of_known[name], of_unknown[name]) for name in of_known},
        "auc_of_drawings": {name: area(of_known[name], of_drawings[name]) for name in of_known},
    }
    return figures, roc(*curve)


def plot(curves: dict[str, tuple[Scores, Scores]], areas: dict[str, float]) -> None:
    """The curves of all domains, with their areas."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for domain, (known, unknown) in curves.items():
        axes.plot(known, unknown, label=f"{domain}, area {areas[domain]:.2f}")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("share of known images flagged")
    axes.set_ylabel("share of unknown images flagged")
    axes.set_title("lite, Office-Caltech10, the domain left out", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)
    # no version in the file: the same curves give the same bytes
    figure.savefig(ROOT / "docs" / "unknown_domains.png", dpi=110, metadata={"Software": None})


def main() -> None:
    domains = sorted(path.name for path in photos_root().iterdir() if path.is_dir())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_emoji_set(folder / "emoji", Reporter())
        drawings = sorted((folder / "emoji").rglob("*.png"))[::4]
        measured = {domain: measure(domain, folder, drawings) for domain in domains}
    figures = [found for found, _ in measured.values()]
    report = {
        "rounds": ROUNDS,
        "kept_by_the_threshold": KEEP,
        "domains": figures,
    }
    publish("unknown_domains", report)
    areas = {str(found["left_out"]): found["auc"][SIGNAL] for found in figures}  # type: ignore[index]
    plot({domain: curve for domain, (_, curve) in measured.items()}, areas)


if __name__ == "__main__":
    main()
