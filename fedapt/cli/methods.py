"""`fedapt methods`."""

from __future__ import annotations

import inspect

from fedapt.cli.options import JsonOption
from fedapt.cli.show import print_json, print_table


def methods(as_json: JsonOption = False) -> None:
    """List the methods of `train --method` and `compare --methods`."""
    from fedapt.training.methods import METHODS

    rows = [
        {
            "method": name,
            "title": method.title,
            "trains": str(inspect.getdoc(method)).split("\n")[0].removeprefix("Learned: "),
            "source": method.source,
        }
        for name, method in METHODS.items()
    ]
    if as_json:
        print_json(rows)
    else:
        columns = ["method", "title", "trains", "source"]
        print_table("Methods", columns, [[row[c] for c in columns] for row in rows], figures=False)
