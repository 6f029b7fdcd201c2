"""Progress of a job on stderr, and its figures at the end."""

from __future__ import annotations

import sys
import time

from fedapt_runtime.batch import Summary
from fedapt_runtime.cli.messages import say
from fedapt_runtime.formats import describe_left_out


class Progress:
    """A line on a terminal's stderr, rewritten a few times per second.

    Args:
        total: number of images; None if unknown.
    """

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._shown = 0.0

    def __call__(self, summary: Summary) -> None:
        """Show the rows so far."""
        now = time.monotonic()
        if self._terminal and now - self._shown > 0.2:
            self._shown = now
            rate = summary.images_per_second
            of, left = "", ""
            if self._total is not None:
                of = f" of {self._total}"
                seconds = (self._total - summary.images) / rate if rate else 0.0
                left = f", {seconds:.0f} s left"
            print(
                f"\r{summary.images}{of} images, {rate:.0f} a second{left} ",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def finish(self, summary: Summary) -> None:
        """Show the figures of the job."""
        if summary.finished:
            say(f"finished before: {summary.images} rows, nothing to do")
            return
        print(
            f"{chr(13) if self._terminal else ''}{summary.images} images in {summary.seconds:.1f} s"
            f" ({summary.images_per_second:.0f} a second), {summary.errors} with errors"
            + (f", {summary.resumed} done before" if summary.resumed else ""),
            file=sys.stderr,
        )
        for kind, count in sorted(summary.kinds.items(), key=lambda item: -item[1]):
            say(f"  {count} {kind}")
        if summary.left_out:
            say(f"left out: {describe_left_out(summary.left_out)}")
