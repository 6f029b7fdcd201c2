"""`fedapt demo` on a tiny CLIP, with a few emoji and rounds: for tests that need it many times."""

from __future__ import annotations

import functools
from itertools import groupby
from unittest import mock

from fedapt.cli.app import main
from fedapt.core.config import ModelConfig
from fedapt.data import emoji
from fedapt.demo import run
from fedapt_export.settings import ExportSettings

_PER_CLASS = 4


def run_small_demo(arguments: list[str]) -> int:
    """Run it; its exit code.

    Args:
        arguments: the folder of the CLIP, and the folder to write.
    """
    clip, out = arguments
    few = _few_emoji()
    model = functools.partial(ModelConfig, name=clip)
    # features of random weights tell nothing apart
    export = functools.partial(ExportSettings, min_agreement=0.0)
    with (
        mock.patch.object(emoji, "list_emoji", return_value=few),
        mock.patch.multiple(run, ROUNDS=2, CONTEXT_LENGTH=4),
        mock.patch.multiple(run, ModelConfig=model, ExportSettings=export),
    ):
        return main(["demo", "--out", out])


def _few_emoji() -> list[emoji.Emoji]:
    """The first ones of every class."""
    by_class = sorted(emoji.list_emoji(), key=lambda e: (e.class_folder, e.code))
    groups = groupby(by_class, key=lambda e: e.class_folder)
    return [e for _, members in groups for e in list(members)[:_PER_CLASS]]
