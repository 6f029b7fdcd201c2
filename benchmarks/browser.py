"""The browser bundle beside the runtime: the same photos, the same model, headless Chromium.

    python benchmarks/browser.py

It needs Chromium, npm (or FEDAPT_ONNXRUNTIME_WEB) and the package websockets. Labels and
probabilities of each photo are compared with those of `fedapt-runtime` on the same file, pixels
with those of its preprocessing. images/s are what the page shows.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from deployed import choose_photos, deployed_models
from figures import publish
from photos import ROOT

from fedapt_export.web.bundle import write_bundle
from fedapt_export.web.runtime_files import VERSION, read_runtime_files
from fedapt_runtime import Classifier

PHOTOS = 40
READY = "document.querySelector('#files')?.disabled === false"
# what the page does, with the numbers that it rounds for people
COLLECT = """(async () => {
    const { decode } = await import("./decode.js");
    const bundle = await (await fetch("bundle.json")).json();
    const worker = new Worker("worker.js", { type: "module" });
    const call = (message) => new Promise((done) => {
        worker.onmessage = (event) => done(event.data.answer);
        worker.postMessage({ id: 0, ...message });
    });
    const { device } = await call({ load: { bundle, webgpu: false } });
    const rows = [];
    for (const file of document.querySelector("#keep").files) {
        const pixels = await decode(file, bundle.manifest.preprocessing);
        const letters = Array.from(pixels, (value) => String.fromCharCode(value)).join("");
        rows.push({ ...(await call({ image: file })), pixels: btoa(letters) });
    }
    return JSON.stringify({ device, rows });
})()"""


def load_browser() -> Any:
    """The tests' driver of Chromium."""
    spec = importlib.util.spec_from_file_location("browser", ROOT / "tests/support/browser.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(model: Path, precision: str, photos: list[Path], folder: Path) -> dict[str, object]:
    """One model on all photos, in both."""
    named = os.environ.get("FEDAPT_ONNXRUNTIME_WEB")
    files = read_runtime_files(precision, Path(named) if named else None)
    bundle = write_bundle(model, folder / precision, files)
    browser = load_browser()
    profile = folder / f"profile {precision}"
    with browser.serve_folder(bundle.folder) as url, browser.open_browser(profile) as page:
        page.open(url)
        page.wait_for(READY)
        page.run(
            "document.body.append(Object.assign(document.createElement('input'),"
            " { id: 'keep', type: 'file', multiple: true }))"
        )
        page.choose_files("#keep", photos)
        page.choose_files("#files", photos)
        page.wait_for(f"document.querySelectorAll('.card').length === {len(photos)}")
        page.wait_for("!document.querySelector('.waiting')")
        shown = page.run("document.querySelector('#status').textContent")
        found = json.loads(page.run(COLLECT))
        version = page.call("Browser.getVersion")["product"]
    return {
        "model": f"lite {precision}",
        "browser": version,
        "device": found["device"],
        **compare(found["rows"], Classifier.load(model, backend="onnxruntime"), photos),
        "images_per_second_of_the_page": float(shown.split()[-2]),
        "bytes": bundle.bytes,
        "gzip_bytes": bundle.gzip_bytes,
    }


def compare(
    rows: list[dict[str, Any]], classifier: Classifier, photos: list[Path]
) -> dict[str, object]:
    """How far the page's answers are from the runtime's."""
    preprocessing = classifier.preprocessing()
    drift, pixels, labels = [], [], 0
    for row, prediction, photo in zip(rows, classifier(photos, top_k=10), photos, strict=True):
        known = dict(prediction.top_k)
        drift.append(max(abs(known[name] - score) for name, score in row["top_k"]))
        labels += row["label"] == prediction.label
        made = np.frombuffer(base64.b64decode(row["pixels"]), np.uint8)
        pixels.append(np.abs(preprocessing.load(photo).ravel().astype(int) - made).max())
    return {
        "photos": len(photos),
        "same_label": labels,
        "photos_with_equal_pixels": int(sum(gap == 0 for gap in pixels)),
        "largest_pixel_difference": int(max(pixels)),
        "largest_probability_difference": float(f"{max(drift):.2g}"),
        "mean_probability_difference": float(f"{np.mean(drift):.2g}"),
    }


def main() -> None:
    if importlib.util.find_spec("websockets") is None:
        sys.exit("install the package websockets, which drives the browser")
    photos = choose_photos(PHOTOS)
    with deployed_models(__doc__) as models, tempfile.TemporaryDirectory() as temporary:
        measured = [
            measure(path, precision, photos, Path(temporary)) for precision, path in models.items()
        ]
    publish("browser", {"onnxruntime_web": VERSION, "models": measured})


if __name__ == "__main__":
    main()
