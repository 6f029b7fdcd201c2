"""docs/settings.md and docs/settings.schema.json, written from the declarations of the settings.

`python -m fedapt.core.settings_page DOCS` writes both; a test holds them against this code.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from fedapt.core.config import Config
from fedapt.core.declarations import declarations
from fedapt.core.files import write_text

PAGE, SCHEMA = "settings.md", "settings.schema.json"

_HEAD = """\
# Settings

This page lists every setting of a training. A TOML file (`--config`) changes the settings that it
names. `-o section.key=value` overrides the file. fedapt refuses names and values that are not on
this page. The run folder's `config.toml` has all settings of the run. A method may change some
settings; `fedapt methods` lists these changes. `fedapt settings` shows this list.

    #:schema settings.schema.json       # for editors that complete TOML
    [train]
    lr = 0.1                            # or: fedapt train ... -o train.lr=0.1

    [data.class_names]
    laptop_computer = "laptop computer"

A range includes both ends. Some settings have an option: `--data` sets `data.root`, `--model` sets
`model.name`, `--join` sets `federation.join`, and `--validation` sets `data.validation_fraction`.
Other options, such as `--lr` and `--rounds`, have the name of their setting.

`make settings` writes this page and [the JSON schema](settings.schema.json) from
`fedapt/core/settings.py`.
"""


def to_markdown() -> str:
    """The page: a table for each section."""
    known = declarations(Config)
    lines = [_HEAD]
    for section in dataclasses.fields(Config):
        lines += [f"## `[{section.name}]`", "", f"{type(section.default).__doc__}", ""]
        lines += ["| key | default | values | meaning |", "|---|---|---|---|"]
        for name, setting in known.items():
            prefix, _, key = name.partition(".")
            if prefix == section.name:
                cells = (f"`{key}`", f"`{say_default(setting.default)}`", setting.values)
                lines.append(f"| {' | '.join(cells)} | {setting.meaning} |")
        lines.append("")
    return "\n".join(lines)


def say_default(value: Any) -> str:
    """A default in TOML's notation, with 2/3 as a fraction."""
    if isinstance(value, float):
        return "2/3" if value == 2 / 3 else repr(value).replace("e-0", "e-")
    return "{}" if isinstance(value, dict) else json.dumps(value)


def to_schema() -> dict[str, Any]:
    """The JSON schema of a settings file."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Config).json_schema()
    schema["description"] = schema["description"].partition("\n")[0]  # without the example
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_pages(docs: Path) -> None:
    """Write both files into a folder.

    Raises:
        FileError: the folder cannot be written.
    """
    write_text(docs / PAGE, to_markdown())
    write_text(docs / SCHEMA, json.dumps(to_schema(), indent=1) + "\n")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
