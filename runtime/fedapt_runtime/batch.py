"""A batch job: one row for each image, in an output file that is complete or absent."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from fedapt_runtime.classifier import Classifier
from fedapt_runtime.destination import Destination, claim, deliver, fetch, local_path
from fedapt_runtime.device_resize import DeviceResizer
from fedapt_runtime.errors import InputError, OutputError
from fedapt_runtime.journal import Journal, part_path
from fedapt_runtime.options import CLASSIFY_DEFAULTS, ClassifyOptions
from fedapt_runtime.output import check_output, read_paths, show_path, write_output
from fedapt_runtime.pipeline import Image, name_of
from fedapt_runtime.printable import printable, printable_json

# images -> their rows, in order
Runner = Callable[[Iterable[Image]], Iterator[dict[str, Any]]]


@dataclass
class Summary:
    """Figures of a job.

    Attributes:
        images: number of rows, including rows with an error.
        errors: number of rows with an error.
        kinds: kind of error -> number of rows, see `error_kind`.
        resumed: number of rows from an earlier run of the job.
        finished: whether an earlier run had completed the output, so that this one changed nothing.
        seconds: wall time from the first image to the last row.
        left_out: reason -> number of omitted files and folders.
        ran_on: backend, compute precision and batch size.
    """

    images: int = 0
    errors: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    finished: bool = False
    seconds: float = 0.0
    left_out: dict[str, int] = field(default_factory=dict)
    ran_on: dict[str, Any] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """New rows per second of wall time."""
        return (self.images - self.resumed) / self.seconds if self.seconds else 0.0

    def count(self, row: dict[str, Any]) -> None:
        """Count one row, by its error."""
        self.images += 1
        if row["error"] is not None:
            self.errors += 1
            kind = error_kind(row["path"], row["error"])
            self.kinds[kind] = self.kinds.get(kind, 0) + 1


def error_kind(path: str, error: str) -> str:
    """The kind of a row's error without details, such as "no such file" or "a damaged image".

    The kind is parsed from the text, because rows of an earlier run contain only the text.

    Args:
        path: column `path` of the row.
        error: column `error` of the row.
    """
    found = error.removeprefix(f"{printable(path)}: ").removeprefix("found ")
    found = found.split("; expected ", 1)[0]
    return "an image over the limits" if ", over the limit" in found else found.split(" (", 1)[0]


def classify_files(
    classifier: Classifier,
    images: Iterable[Image],
    out: Destination | None,
    options: ClassifyOptions = CLASSIFY_DEFAULTS,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    decode_processes: int = 0,
    resizer: DeviceResizer | None = None,
    resume: bool = False,
    progress: Callable[[Summary], None] = lambda summary: None,
    runner: Runner | None = None,
) -> Summary:
    """Classify images and write one row each, in order; an unreadable file is a row with its error.

    Args:
        classifier: the model.
        images: paths, or the items that `find_images` yields.
        out: path or URI of a .jsonl, .csv or .parquet file, which is replaced only by a complete
            job; None writes JSON lines to stdout.
        options: options that change a row.
        batch_size, workers, decode_processes, resizer: see `Classifier.stream`.
        resume: continue after the rows of a stopped job (`OUT.part`), with its batches. The rows
            equal those of an uninterrupted job to the bit, unless `batch_size` has changed or
            `runner` forms its own batches. An output that already has these images does not
            change.
        progress: called after every row.
        runner: turns images into rows instead of `classifier`, and chooses `batch_size` and
            `workers` itself.

    Returns:
        The figures of the job.

    Raises:
        OutputError: another job writes the output, or it cannot be written. `OUT.part` keeps the
            finished rows; for a URI it is in the working folder.
        InputError: `OUT.part` belongs to another job or to other images.
        MissingDependency: Parquet or a URI without pyarrow.
    """
    check_output(out)
    job = options.to_dict() | ({} if resizer is None else {"resized": "on a GPU"})

    def predict(rest: Iterable[Image], size: int) -> Iterator[dict[str, Any]]:
        if runner is not None:
            yield from runner(rest)
            return
        for prediction in classifier.run(
            rest,
            options,
            batch_size=size,
            workers=workers,
            decode_processes=decode_processes,
            resizer=resizer,
        ):
            yield prediction.to_dict(options.flag_unknown)

    size = classifier.backend.default_batch if batch_size is None else batch_size
    summary = Summary(ran_on={**classifier.ran_on, "batch_size": size})
    started = time.monotonic()

    def advance(row: dict[str, Any]) -> None:
        summary.count(row)
        summary.seconds = time.monotonic() - started
        progress(summary)

    if out is None:
        for row in predict(images, size):
            print(printable_json(row, keep_bytes=True), file=sys.stdout)
            advance(row)
        return summary
    try:
        with claim(out):
            images = iter(images)
            if resume and not part_path(out).is_file():
                n_rows, images = _count_finished(out, images)
                if n_rows:
                    return Summary(images=n_rows, resumed=n_rows, finished=True)
            described = _describe_job(classifier, job)
            journal = Journal.open(out, described, size, resume, classifier.ran_on)
            if batch_size is None:
                summary.ran_on["batch_size"] = size = journal.batch_size
            try:
                if runner is None:
                    # an image's bits depend on its batch
                    journal.keep(journal.n_rows - journal.n_rows % journal.batch_size)
                for row in _skip_finished(journal, images):
                    summary.resumed += 1
                    summary.count(row)
                started = time.monotonic()
                for row in predict(images, size):
                    journal.write(row)
                    advance(row)
                with deliver(out) as temporary:
                    write_output(journal, temporary, local_path(out).suffix, options.flag_unknown)
            except BaseException:
                journal.close()
                raise
            journal.remove()
    except OSError as error:
        goes_on = "; `resume` goes on" if part_path(out).is_file() else ""
        raise OutputError(
            where=out,
            found=error.strerror or str(error),
            expected="a file that can be written",
            next_step=f"check the folder, its permissions and the free space{goes_on}",
        ) from error
    return summary


def _describe_job(classifier: Classifier, options: dict[str, Any]) -> dict[str, Any]:
    """Identity of a job's rows: the model and the options that change a row."""
    manifest = json.dumps(asdict(classifier.manifest), sort_keys=True)
    return {"model": hashlib.sha256(manifest.encode()).hexdigest(), **options}


def _count_finished(out: Destination, images: Iterator[Image]) -> tuple[int, Iterator[Image]]:
    """Number of rows of an existing output if it has exactly these images, in order; else 0.

    Returns:
        The number, and an iterator over all images, including those read here.
    """
    suffix, seen = local_path(out).suffix, list[Image]()
    with fetch(out) as path:
        try:
            for known in () if path is None else read_paths(path, suffix):
                seen.extend(itertools.islice(images, 1))
                names = [show_path(name_of(image, len(seen) - 1), suffix) for image in seen[-1:]]
                if names != [known]:
                    return 0, itertools.chain(seen, images)
        except Exception:  # not predictions; the readers raise errors of any class
            return 0, itertools.chain(seen, images)
    more = list(itertools.islice(images, 1))
    return 0 if more else len(seen), itertools.chain(seen, more, images)


def _skip_finished(journal: Journal, images: Iterator[Image]) -> Iterator[dict[str, Any]]:
    """Skip the images that have rows, and yield these rows."""
    for i, row in enumerate(journal.rows()):
        image = next(images, None)
        name = None if image is None else name_of(image, i)
        if name != row["path"]:
            raise InputError(
                where=f"{journal.path}, row {i + 1}",
                found=f"{row['path']!r}, where the images now have {name!r}",
                expected="the same images in the same order",
                next_step="repeat the command that started the job, or omit `resume`",
            )
        yield row
