"""Features of a folder of domains as one file, for comparisons on a machine without the images.

python benchmarks/bundles.py ROOT FILE.safetensors [folder=name ...]

`folder=name` gives the class of a folder another name in the prompt, as [data.class_names] does.
Features are `lite`'s; `fedapt compare --data FILE.safetensors` takes the file as it takes a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedapt.comparison.bundle import write_bundle
from fedapt.core.report import Reporter
from fedapt.data.domains import load_table
from fedapt.data.folders import scan_folders
from fedapt.model.backbone import load_backbone
from fedapt.onnx.image_encoder import image_encoder


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    root, out, *names = sys.argv[1:]
    renamed = dict(name.split("=", 1) for name in names)
    backbone = load_backbone("lite")
    folders = scan_folders(Path(root), renamed)
    samples = [sample for domain in folders.domains for sample in folders.samples[domain]]
    table = load_table(folders, samples, image_encoder(backbone), Reporter())
    write_bundle(Path(out), folders, table, backbone)
    print(f"{out}: {len(table.labels)} images, {Path(out).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
