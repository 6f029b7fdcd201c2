"""A split of Hugging Face `datasets` as a table of images (`tables`), kept for later runs.

Images that are files stay in place. All others are written once into the cache, under a name
derived from their bytes. The table is written there too.

Source: https://huggingface.co/docs/datasets/image_load
"""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

from fedapt.core.errors import DataError
from fedapt.core.files import cache_folder, check_cache, write_bytes
from fedapt.data.tables import COLUMNS


def is_split(data: object) -> bool:
    """Whether this is a split of `datasets`, or several of them."""
    return type(data).__module__.partition(".")[0] == "datasets"


def write_table(split: Any) -> Path:
    """The CSV table of a split's images, in the cache.

    Args:
        split: a `datasets.Dataset` with a column of images, `class` or `label`, and `domain`.

    Raises:
        DataError: several splits, a stream, or a missing column.
        FileError: the cache cannot be written.
    """
    import datasets

    if not isinstance(split, datasets.Dataset):
        raise _refuse(f"a {type(split).__name__}", "name one split, such as dataset['train']")
    images = [n for n, kind in split.features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name in ("class", "label") if name in split.features]
    if len(images) != 1 or not labels or "domain" not in split.features:
        raise _refuse(f"the columns {', '.join(split.features)}", "rename or add columns")
    check_cache()
    folder = cache_folder() / "images"
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(COLUMNS)
    columns = split.select_columns([images[0], labels[0], "domain"])
    for row in columns.cast_column(images[0], datasets.Image(decode=False)):
        names = (_name(split.features[name], row[name]) for name in (labels[0], "domain"))
        table.writerow([_find_image(folder, row[images[0]]), *names])
    data = text.getvalue().encode("utf-8", "surrogateescape")
    path = folder / f"{hashlib.sha256(data).hexdigest()[:32]}.csv"
    if not path.is_file():
        write_bytes(path, data)
    return path


def _name(feature: Any, value: Any) -> str:
    """A value as text; the name of a `ClassLabel`."""
    return str(feature.int2str(value)) if hasattr(feature, "int2str") else str(value)


def _find_image(folder: Path, image: dict[str, Any]) -> str:
    if image["bytes"] is None:
        return str(Path(image["path"]).absolute())
    digest = hashlib.sha256(image["bytes"]).hexdigest()
    path = folder / digest[:2] / digest
    if not path.is_file():
        write_bytes(path, image["bytes"])
    return str(path.absolute())


def _refuse(found: str, next_step: str) -> DataError:
    return DataError(
        where="data",
        found=found,
        expected="a split with one column of images, class or label, and domain",
        next_step=next_step,
    )
