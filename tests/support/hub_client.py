"""Loads models from a hub that this process serves itself, and prints what came of it, as JSON.

    python hub_client.py FOLDER CASE...    each case: `REPOSITORY`, or `stop` and `hang` of the hub

The repository `org/good` is the folder; `org/cut` breaks off once in the middle of the weights,
`org/short` always does, `org/stall` falls silent once, `org/wrong` sends another byte once;
anything else is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[1])
REQUESTS: list[str] = []
REPOSITORIES = ("org/good", "org/cut", "org/short", "org/stall", "org/wrong")
SPOILT: list[str] = []  # repositories that have failed once
STATE = {"hang": False, "stop": False}


class Hub(BaseHTTPRequestHandler):
    """What Hugging Face's client asks of its hub."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        """Say what a file is."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """Send a file, or the rest of one."""
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        REQUESTS.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        if STATE["hang"] or STATE["stop"]:
            self.close_connection = True
            time.sleep(60 if STATE["hang"] else 0)
            return
        parts = self.path.split("/")
        repository = "/".join(parts[1:3])
        path = FOLDER / parts[-1]
        if repository not in REPOSITORIES or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "org" in parts else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if begin else 200)
        is_weights = path.suffix == ".safetensors"
        # as the hub: a hash of its content for a large file
        etag = hashlib.sha256(data).hexdigest() if is_weights else f"{path.name}-{len(data)}"
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not with_body:
            return
        is_first = is_weights and repository not in SPOILT
        if is_first:
            SPOILT.append(repository)
        if is_first and repository == "org/wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        elif (is_first and repository in ("org/cut", "org/stall")) or (
            is_weights and repository == "org/short"
        ):
            self.wfile.write(data[begin : begin + (len(data) - begin) // 2])
            self.wfile.flush()
            self.close_connection = True
            time.sleep(60 if repository == "org/stall" else 0)
            return
        self.wfile.write(data[begin:])


def main() -> None:
    """Serve, load, print."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from fedapt.core.errors import ReportedError
    from fedapt.model.backbone import load_backbone

    results = []
    for case in sys.argv[2:]:
        REQUESTS.clear()
        if case in STATE:
            STATE[case] = True
        else:
            try:
                result = {"sha256": load_backbone(f"hf-hub:{case}").sha256}
            except ReportedError as error:
                result = {"error": str(error), "exit_code": error.exit_code}
            results.append(result | {"requests": list(REQUESTS)})
    print(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)  # threads that hang are left


main()
