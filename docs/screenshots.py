"""Pictures of the page of `fedapt-runtime serve` for the documents.

    fedapt demo --out demo
    python docs/screenshots.py demo

The page has the demo's model and test images of Noto Emoji (SIL Open Font License 1.1).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

DOCS = Path(__file__).parent
IMAGES = 8
# file name -> colour scheme and width
PICTURES = {"service_page.png": ("light", 1100), "service_page_phone.png": ("dark", 400)}


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """The address of a server of this model."""
    command = [sys.executable, "-m", "fedapt_runtime", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        lines = (word for line in process.stdout for word in line.split())
        yield next(word.rstrip(".,;") for word in lines if word.startswith("http://"))
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    """Take every picture."""
    demo = Path(sys.argv[1])
    lines = (demo / "data" / "noto_test.txt").read_text("utf-8").splitlines()
    paths = [demo / "data" / line.split()[0] for line in lines]
    chosen = paths[:: max(1, len(paths) // IMAGES)][:IMAGES]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with serving(demo / "model.onnx") as url, sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (scheme, width) in PICTURES.items():
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 900}
            )
            page = context.new_page()
            page.goto(url)
            page.locator("#files:enabled").wait_for(state="attached")
            page.set_input_files("#files", chosen)
            expect(page.locator(".card:not(.waiting)")).to_have_count(len(chosen), timeout=60_000)
            page.screenshot(path=DOCS / name)
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
