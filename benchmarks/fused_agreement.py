"""What fusing costs: the fused graph of `lite` against exact personalised prompts, on real photos.

    python benchmarks/fused_agreement.py

Trains with the recommended settings (configs/office_caltech10.toml), exports, and compares on every
test photo.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from figures import publish
from photos import ROOT, photos_root

from fedapt.core.config import read_config
from fedapt.core.report import Reporter
from fedapt.run.folder import RunFolder
from fedapt.run.train import train
from fedapt_export.export import export
from fedapt_export.settings import ExportSettings


def main() -> None:
    config = read_config(ROOT / "configs" / "office_caltech10.toml")
    data = dataclasses.replace(config.data, root=str(photos_root()))
    config = dataclasses.replace(config, data=data)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        evaluation = train(config, run.path, resume=False, device="cpu", reporter=Reporter())
        model = Path(folder) / "model.onnx"
        settings = ExportSettings(parity_images=0, min_agreement=0.0)
        parity = export(run.checkpoint, model, settings, Reporter()).parity
        size = model.stat().st_size
    figures = {k: v for k, v in parity.to_dict().items() if k != "source"}
    result = {
        "model": "lite",
        "accuracy": evaluation.mean,
        "model_bytes": size,
        "parity": figures,
    }
    publish("fused_agreement", result)


if __name__ == "__main__":
    main()
