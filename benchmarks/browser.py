"""The browser bundle beside the runtime: the same photos, the same model, headless Chromium.

    python benchmarks/browser.py

It needs Chromium, npm (or FEDAPT_ONNXRUNTIME_WEB) and the package websockets. Labels and
probabilities of each photo are compared with those of `fedapt-runtime` on the same file, pixels
with those of its preprocessing. ONNX Runtime's int8 kernels may saturate on a CPU, those of
WebAssembly do not, so the page is also compared with the graph as it is written, not optimised.
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
import onnxruntime
from deployed import choose_photos, deployed_models
from figures import publish
from photos import ROOT

from fedapt_export.web.bundle import write_bundle
from fedapt_export.web.runtime_files import VERSION, read_runtime_files
from fedapt_runtime import Classifier
from fedapt_runtime.prediction import softmax

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
        found = json.loads(page.run(COLLECT))
        version = page.call("Browser.getVersion")["product"]
    return {
        "model": f"lite {precision}",
        "browser": version,
        "device": found["device"],
        **compare(found["rows"], model, photos),
        "bytes": bundle.bytes,
        "gzip_bytes": bundle.gzip_bytes,
    }


def compare(rows: list[dict[str, Any]], model: Path, photos: list[Path]) -> dict[str, object]:
    """How far the page's pixels and answers are from the runtime's."""
    classifier = Classifier.load(model, backend="onnxruntime")
    classes = classifier.manifest.classes
    pixels = np.stack([classifier.preprocessing().load(photo) for photo in photos])
    made = [np.frombuffer(base64.b64decode(row["pixels"]), np.uint8) for row in rows]
    gaps = np.abs(pixels.reshape(len(photos), -1).astype(int) - np.stack(made)).max(axis=-1)
    found = np.stack([[dict(row["top_k"]).get(name, np.nan) for name in classes] for row in rows])
    return {
        "photos": len(photos),
        "photos_with_equal_pixels": int((gaps == 0).sum()),
        "largest_pixel_difference": int(gaps.max()),
        "against_the_runtime": differ(found, softmax(classifier.backend.run(pixels).logits)),
        "against_the_graph_as_written": differ(found, softmax(run_as_written(model, pixels))),
    }


def run_as_written(model: Path, pixels: np.ndarray) -> np.ndarray:
    """Logits of the graph without optimisations: int8 products are then computed in float32."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, ["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"images": one[None]})[0] for one in pixels])


def differ(found: np.ndarray, known: np.ndarray) -> dict[str, object]:
    """Labels and probabilities [photos, classes]; the page gives those of the best five classes."""
    gaps = np.abs(found - known)
    return {
        "same_label": int((np.nanargmax(found, axis=-1) == known.argmax(axis=-1)).sum()),
        "largest_probability_difference": float(f"{np.nanmax(gaps):.2g}"),
        "mean_of_the_largest": float(f"{np.nanmax(gaps, axis=-1).mean():.2g}"),
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
