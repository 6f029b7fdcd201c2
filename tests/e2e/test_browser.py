"""The browser bundle in a headless Chromium: what it says, offline, with threads, on a phone.

It needs the npm package of ONNX Runtime Web: FEDAPT_ONNXRUNTIME_WEB names it, or npm fetches it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedapt.core.errors import DependencyError
from fedapt_export.web.bundle import write_bundle
from fedapt_export.web.runtime_files import read_runtime_files
from fedapt_runtime import Classifier
from tests.support.browser import Page, needs_chromium, open_browser, serve_folder

pytestmark = needs_chromium

READY = "document.querySelector('#files')?.disabled === false"
ANSWERED = "!document.querySelector('.waiting') && document.querySelectorAll('.card').length === "
CARDS = """JSON.stringify([...document.querySelectorAll('.card')].map(card => ({
    name: card.querySelector('.name').textContent,
    label: card.querySelector('.label').textContent,
    shares: [...card.querySelectorAll('.share')].map(share => parseFloat(share.textContent)),
    routed: card.querySelector('.routed').textContent,
})))"""


@pytest.fixture(scope="module")
def site(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("FEDAPT_ONNXRUNTIME_WEB")
    try:
        files = read_runtime_files("int8", Path(named) if named else None)
    except DependencyError as error:
        pytest.skip(f"no onnxruntime-web ({error.found}): set FEDAPT_ONNXRUNTIME_WEB")
    return write_bundle(tiny_model, tmp_path_factory.mktemp("site"), files).folder


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with open_browser(tmp_path / "profile") as page:
        yield page


@pytest.fixture(scope="module")
def photos(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PNG, JPEG, one that a camera has turned, a palette, alpha, and a tall one."""
    folder = tmp_path_factory.mktemp("photos")
    sources = sorted(tiny_images.rglob("*.png"))[::9]
    turned = Image.Exif()
    turned[0x0112] = 6
    for i, (source, name, options) in enumerate(
        [
            (sources[0], "a.png", {}),
            (sources[1], "b.jpg", {"quality": 92}),
            (sources[2], "c.jpg", {"quality": 92, "exif": turned}),
            (sources[3], "d.gif", {}),
        ]
    ):
        Image.open(source).resize((200 + 30 * i, 190)).save(folder / name, **options)
    Image.open(sources[4]).resize((90, 250)).convert("RGBA").save(folder / "e.png")
    Image.open(sources[5]).convert("P").save(folder / "f.png")
    return sorted(folder.iterdir())


def classify(page: Page, photos: list[Path]) -> dict[str, dict[str, Any]]:
    page.choose_files("#files", photos)
    page.wait_for(f"{ANSWERED} {len(photos)}")
    return {card["name"]: card for card in json.loads(page.run(CARDS))}


def test_it_answers_as_the_runtime_does_also_offline(
    page: Page, site: Path, tiny_model: Path, photos: list[Path]
) -> None:
    with serve_folder(site) as url:
        page.open(url)
        page.wait_for(READY)
        found = classify(page, photos)
    # the server is gone: the service worker has all of it
    page.open(url)
    page.wait_for(READY)
    assert classify(page, photos) == found
    for prediction in Classifier.load(tiny_model)(photos):
        card = found[Path(prediction.path).name]
        assert card["label"] == prediction.label
        shares = [100 * score for _, score in prediction.top_k]
        assert card["shares"] == pytest.approx(shares, abs=1)
        assert card["routed"].startswith(f"routed to {prediction.routed_to}, ")


def test_threads_without_headers_of_the_server(page: Page, site: Path) -> None:
    with serve_folder(site) as url:
        page.open(url)
        page.wait_for(READY)
        assert page.run("crossOriginIsolated") is True
        note = page.run("document.querySelector('#note').textContent")
    assert " threads. The page now works offline." in note or "one thread." in note


def test_what_is_no_image_is_told_and_stops_nothing(
    page: Page, site: Path, photos: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[1].read_bytes()[:100])
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    with serve_folder(site) as url:
        page.open(url)
        page.wait_for(READY)
        found = classify(page, [broken, photos[0], empty])
        status = page.run("document.querySelector('#status').textContent")
    assert found["broken.jpg"]["label"] == "not an image that this browser can decode"
    assert found["empty.png"]["label"] == "an empty file"
    assert found[photos[0].name]["shares"]
    assert status.startswith("3 images, 2 failed, ")


def test_a_model_of_another_export_is_refused(page: Page, site: Path, tmp_path: Path) -> None:
    other = tmp_path / "site"
    other.mkdir()
    for path in site.rglob("*"):
        if path.is_file():
            (other / path.relative_to(site)).parent.mkdir(exist_ok=True)
            (other / path.relative_to(site)).write_bytes(path.read_bytes())
    model = bytearray((other / "model.onnx").read_bytes())
    model[-1] ^= 1
    (other / "model.onnx").write_bytes(model)
    with serve_folder(other) as url:
        page.open(url)
        page.wait_for("document.querySelector('#about.bad')")
        told = page.run("document.querySelector('#about').textContent")
    assert "model.onnx is not the file that this page was made for" in told


def test_the_page_obeys_its_own_policy_and_fits_a_phone(
    page: Page, site: Path, photos: list[Path]
) -> None:
    page.resize(400)
    with serve_folder(site) as url:
        page.open(url)
        page.wait_for(READY)
        classify(page, photos)
        assert page.run("document.documentElement.scrollWidth") <= 400
        page.run("document.querySelector('#files').focus()")
        page.run("document.querySelector('#clear').click()")
        assert page.run("document.querySelectorAll('.card').length") == 0
        assert page.run("document.activeElement.id") == "files"
    assert not [entry for entry in page.log if "Content Security Policy" in entry]
