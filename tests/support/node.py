"""JavaScript modules, run by node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import fedapt_export

STATIC = Path(fedapt_export.__file__).parent / "web" / "static"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no node on this machine")


def run_module(folder: Path, module: str, body: str, value: Any, data: bytes = b"") -> bytes:
    """What `body` returns, a string or bytes.

    Args:
        folder: for what passes between the two.
        module: a file of the page, whose exports `body` sees as `module`.
        body: of a function of `value` and `data`, a Buffer.
        value: plain values.
    """
    assert NODE is not None
    # a package of type "module", as a browser reads the files
    (folder / "package.json").write_text('{"type": "module"}')
    for file in STATIC.iterdir():
        shutil.copy(file, folder / file.name)
    (folder / "value.json").write_text(json.dumps(value), "utf-8")
    (folder / "data").write_bytes(data)
    script = f"""
        import * as module from "./{module}";
        import {{ readFileSync, writeFileSync }} from "node:fs";
        const value = JSON.parse(readFileSync("value.json"));
        const run = (value, data) => {{ {body} }};
        writeFileSync("answer", run(value, readFileSync("data")));
    """
    (folder / "run.js").write_text(script, "utf-8")
    done = subprocess.run([NODE, "run.js"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "answer").read_bytes()
