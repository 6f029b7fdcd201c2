"""A batch job: paths in, one row of predictions per path out, in a file that is whole or absent."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fedapt_runtime.atomic import replace_file
from fedapt_runtime.classifier import Classifier, Prediction
from fedapt_runtime.errors import InputError, OutputError
from fedapt_runtime.preprocess import IMAGE_SUFFIXES

CSV_COLUMNS = ("path", "label", "score", "domain", "top_k", "domain_weights", "error")


@dataclass
class Summary:
    """Figures of a finished job. `seconds` is wall time from the first path to the last row."""

    images: int = 0
    errors: int = 0
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Rows, bad ones included, per second of wall time."""
        return self.images / self.seconds if self.seconds else 0.0


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Files as they are, and of each folder every image file below it, sorted.

    Raises:
        InputError: a path that does not exist, or a folder without any image file.
    """
    for path in paths:
        if not os.path.isdir(path):
            if not os.path.lexists(path):
                raise InputError(
                    where=path,
                    found="no such file or folder",
                    expected="images, or folders of images",
                    next_step="check the path",
                )
            yield os.fspath(path)
            continue
        empty = True
        for folder, folders, names in os.walk(path, onerror=_refuse_folder):
            folders.sort()
            for name in sorted(names):
                if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    empty = False
                    yield os.path.join(folder, name)
        if empty:
            raise InputError(
                where=path,
                found="a folder without images",
                expected=f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}",
                next_step="check the path",
            )


def _refuse_folder(error: OSError) -> None:
    raise InputError(
        where=error.filename,
        found=f"a folder that cannot be read ({error.strerror})",
        expected="a readable folder",
        next_step="check its permissions",
    ) from error


@contextmanager
def open_output(out: Path | None) -> Iterator[TextIO]:
    """A text file that appears under its name only when the block ends well; None: stdout.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    if out is None:
        yield sys.stdout
        return
    try:
        # names that are not valid UTF-8 survive the trip through the surrogates that Python uses
        with (
            replace_file(out) as temporary,
            temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
        ):
            yield stream
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> OutputError:
    return OutputError(
        where=out,
        found=error.strerror or str(error),
        expected="a file that can be written",
        next_step="check the folder, its permissions and the free space",
    )


def row_writer(out: Path | None, stream: TextIO) -> Callable[[Prediction], None]:
    """A function that writes one prediction, as CSV where the name ends in .csv, else as JSONL."""
    suffix = out.suffix.lower() if out is not None else ".jsonl"
    if suffix == ".csv":
        table = csv.DictWriter(stream, CSV_COLUMNS)
        table.writeheader()
        return lambda prediction: table.writerow(_to_csv_row(prediction))
    return lambda prediction: print(
        json.dumps(prediction.to_dict(), ensure_ascii=False), file=stream
    )


def check_output_name(out: Path | None) -> None:
    """Refuse a name whose format is unknown, before any work is done.

    Raises:
        OutputError: a name that ends in neither .jsonl nor .csv.
    """
    if out is not None and out.suffix.lower() not in (".jsonl", ".csv"):
        raise OutputError(
            where=out,
            found=f"the suffix {out.suffix!r}",
            expected=".jsonl or .csv",
            next_step="rename the output",
        )


def _to_csv_row(prediction: Prediction) -> dict[str, object]:
    row = prediction.to_dict()
    for key in ("top_k", "domain_weights"):
        row[key] = json.dumps(row[key], ensure_ascii=False)
    return row


def classify_files(
    classifier: Classifier,
    paths: Iterable[str],
    out: Path | None,
    *,
    batch_size: int = 32,
    top_k: int = 5,
    workers: int | None = None,
    progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Classify files and write one row each, in order; a bad file is a row with its error.

    Args:
        paths: image files.
        out: a .jsonl or .csv file, replaced only when the job has ended well; None: stdout.
        progress: called after every row.

    Raises:
        OutputError: the output cannot be written.
        InputError: there is nothing to classify.
    """
    check_output_name(out)
    summary = Summary()
    started = time.monotonic()
    with open_output(out) as stream:
        write = row_writer(out, stream)
        rows = classifier.stream(paths, batch_size=batch_size, top_k=top_k, workers=workers)
        for prediction in rows:
            write(prediction)
            summary.images += 1
            summary.errors += prediction.error is not None
            summary.seconds = time.monotonic() - started
            progress(summary)
    return summary
