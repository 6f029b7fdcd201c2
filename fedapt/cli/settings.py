"""`fedapt settings`."""

from __future__ import annotations

from fedapt.cli.options import JsonOption
from fedapt.cli.show import print_json, print_table
from fedapt.core.declarations import declarations
from fedapt.core.settings import Config
from fedapt.core.settings_page import say_default, to_schema


def settings(as_json: JsonOption = False) -> None:
    """List all settings with defaults and values; --json prints the JSON schema."""
    if as_json:
        print_json(to_schema())
        return
    rows = [
        [name, say_default(setting.default), setting.values, setting.meaning]
        for name, setting in declarations(Config).items()
    ]
    print_table("Settings", ["setting", "default", "values", "meaning"], rows, figures=False)
