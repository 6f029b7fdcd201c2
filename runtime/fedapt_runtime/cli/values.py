"""Types of option values, for argparse."""

from __future__ import annotations

import argparse
import math

from fedapt_runtime.options import BACKENDS


def parse_positive(text: str) -> int:
    """A whole number of at least 1, with at most 11 digits."""
    return parse_whole(text, 1)


def parse_whole(text: str, minimum: int = 0) -> int:
    """A whole number of at least `minimum`, with at most 11 digits."""
    if not text.isdecimal() or not minimum <= int(text[:12]) < 10**11:
        raise argparse.ArgumentTypeError(
            f"found {text[:20]}, expected a whole number of at least {minimum}"
        )
    return int(text)


def parse_seconds(text: str) -> float:
    """A finite number above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return seconds


def parse_batch_size(text: str) -> int | str:
    """`auto`, or a whole number of at least 1."""
    return text if text == "auto" else parse_positive(text)


def parse_positives(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, separated by commas."""
    return tuple(parse_positive(part) for part in text.split(","))


def parse_backends(text: str) -> tuple[str, ...]:
    """Names of backends, or `auto`, separated by commas."""
    names = tuple(text.split(","))
    for name in names:
        if name not in ("auto", *BACKENDS):
            raise argparse.ArgumentTypeError(
                f"found {name}, expected auto or any of {', '.join(BACKENDS)}"
            )
    return names
