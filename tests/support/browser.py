"""A headless Chromium, driven through its DevTools protocol.

Source: chromedevtools.github.io/devtools-protocol.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
_TIMEOUT_S = 500


class Page:
    """One tab."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._ids = itertools.count()
        self.log: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=_TIMEOUT_S))
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.log.append(json.dumps(message["params"])[:500])

    def open(self, url: str) -> None:
        """Load a page; `wait_for` what it shows."""
        self.call("Page.navigate", url=url)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, of a promise when it is kept."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until a JavaScript condition holds; a page that is loaded meanwhile is waited for."""
        poll = f"new Promise(done => {{ const look = () => ({condition}) ? done(true) : "
        poll += "setTimeout(look, 50); look(); })"
        for _ in range(5):
            try:
                if self.run(poll):
                    return
            except AssertionError as error:
                if "navigated" not in str(error) and "destroyed" not in str(error):
                    raise
        raise AssertionError(f"never true: {condition}")

    def choose_files(self, selector: str, paths: list[Path]) -> None:
        """Put files into an <input type=file>."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def resize(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """The size of the window, in CSS pixels, and the colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """The window as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def open_browser(profile: Path, *options: str) -> Iterator[Page]:
    """A tab of a Chromium of its own.

    Args:
        profile: an empty folder for what the browser keeps.
        options: more of its command line.
    """
    from websockets.sync.client import connect

    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={profile}", "--remote-debugging-port=0", *options, "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # what it says later would fill the pipe
    drain = threading.Thread(target=process.stderr.read)
    try:
        address = next(line.split()[-1] for line in process.stderr if "DevTools listening" in line)
        drain.start()
        with connect(address, max_size=None) as browser:
            target = Page(browser).call("Target.createTarget", url="about:blank")["targetId"]
            host = address.split("/devtools/")[0]
            with connect(f"{host}/devtools/page/{target}", max_size=None) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
                    page.call(f"{domain}.enable")
                yield page
    finally:
        process.terminate()
        process.wait(30)
        if drain.ident is not None:
            drain.join()
        process.stderr.close()


@contextmanager
def serve_folder(folder: Path, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a plain static server of a folder."""

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *args: object) -> None:
            pass

    handler: Callable[..., Handler] = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
