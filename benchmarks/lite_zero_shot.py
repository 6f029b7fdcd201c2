"""Zero-shot accuracy of `lite` on Office-Caltech10, beside the teacher that it was distilled from.

pip install 'fedapt[cpu,pretrain]'     # for the teacher; without it, lite alone is measured
python benchmarks/lite_zero_shot.py
"""

from __future__ import annotations

import torch
from figures import publish
from photos import ROOT, photos_root
from torch import Tensor
from torch.nn.functional import normalize

from fedapt.core.config import read_config
from fedapt.data.features import extract_features
from fedapt.data.folders import scan_folders
from fedapt.model.backbone import Backbone, load_backbone
from fedapt.model.lite.image_tower import read_efficientnet_lite0
from fedapt.model.prompted_clip import zero_shot_features
from fedapt.onnx.image_encoder import image_encoder
from fedapt.training.evaluate import accuracy


def teacher_features(class_names: tuple[str, ...]) -> Tensor | None:
    """The teacher's targets for the class names, or None where its packages are absent."""
    try:
        from fedapt.model.lite.teacher import Teacher, embed_phrases
    except ImportError as error:
        print(f"no teacher: {error}")
        return None
    import timm

    classifier = read_efficientnet_lite0(timm.create_model("tf_efficientnet_lite0"))
    teacher = Teacher(classifier["classifier.weight"])
    return teacher.targets(embed_phrases(list(class_names)))


def main() -> None:
    root = photos_root()
    config = read_config(ROOT / "configs" / "office_caltech10.toml")
    folders = scan_folders(root, config.data.class_names)
    backbone: Backbone = load_backbone("lite")
    students = zero_shot_features(backbone, folders.class_names)
    teachers = teacher_features(folders.class_names)
    encoder = image_encoder(backbone)
    report: dict[str, dict[str, float]] = {"lite": {}, "teacher": {}}
    for domain in folders.domains:
        samples = folders.samples[domain]
        features = extract_features([folders.root / s.path for s in samples], encoder)
        unit = normalize(torch.from_numpy(features.values), dim=-1)
        labels = torch.tensor([samples[i].label for i in features.kept])
        report["lite"][domain] = accuracy(unit @ students.T, labels)
        if teachers is not None:
            report["teacher"][domain] = accuracy(unit @ teachers.T, labels)
    for shares in report.values():
        if shares:
            shares["mean"] = sum(shares.values()) / len(shares)
    cosine = None if teachers is None else float((students * teachers).sum(-1).mean())
    result = {
        "zero_shot_accuracy": {name: shares for name, shares in report.items() if shares},
        "cosine_to_teacher_on_class_names": cosine,
    }
    publish("lite_zero_shot", result, keep=teachers is not None)


if __name__ == "__main__":
    main()
