"""The server's process: it answers nodes, and trains when its operator requests it."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from fedapt.core.errors import FederationError, ReportedError
from fedapt.core.report import Reporter
from fedapt.federation.flower.network.answers import Answers
from fedapt.federation.flower.network.grid import MailboxGrid
from fedapt.federation.flower.network.handshake_log import HandshakeLog
from fedapt.federation.flower.network.keys import KeyRegistry
from fedapt.federation.flower.network.listener import Limits, Listener
from fedapt.federation.flower.network.mailbox import Mailbox
from fedapt.federation.flower.operator import finish_training, hold_server, take_request
from fedapt.federation.flower.settings import ServerSettings, split_address

_LOOK_S = 0.2

# trains with the nodes of a Grid to the last round, and reports the end
Train = Callable[[MailboxGrid], None]


def run_server(folder: Path, settings: ServerSettings, train: Train, reporter: Reporter) -> None:
    """Serve until this process ends.

    Args:
        folder: folder of `server.toml`.
        train: called in its own thread for each request to train.

    Raises:
        FederationError: another server runs, or the server cannot listen at the address.
    """
    with hold_server(folder):
        asyncio.run(_Server(folder, settings, train, reporter).run())


class _Server:
    def __init__(
        self, folder: Path, settings: ServerSettings, train: Train, reporter: Reporter
    ) -> None:
        self._folder, self._settings = folder, settings
        self._train, self._reporter = train, reporter
        self._keys = KeyRegistry(folder / settings.nodes)
        self._mailbox = Mailbox()
        self._thread: threading.Thread | None = None

    async def run(self) -> None:
        host, port = split_address(self._settings.listen or self._settings.address, self._folder)
        log = HandshakeLog(self._reporter, self._keys.folder)
        answers = Answers(
            self._keys,
            self._mailbox,
            log,
            lambda name: self._reporter.event("info", f"{name}: connected", node=name),
        )
        listener = Listener(
            answers.identify,
            answers.answer,
            log.refuse_handshake,
            answers.max_body,
            Limits.of_this_process(),
            self._load_tls(),
        )
        self._update_keys()
        try:
            await listener.listen(host, port)
        except OSError as error:
            raise FederationError(
                where=f"the address {host}:{port}",
                found=error.strerror or str(error),
                expected="a free address of this machine",
                next_step="stop the other program, or set `listen` in server.toml",
            ) from error
        self._reporter.event("info", f"listening at {host}:{port}")
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        while not stop.is_set():
            self._update_keys()
            if take_request(self._folder):
                self._begin_training()
            try:
                await asyncio.wait_for(stop.wait(), _LOOK_S)
            except TimeoutError:
                continue
        self._reporter.event("info", "stopped")
        if self._is_training():
            os._exit(0)  # do not wait for the round: every file is complete at any moment

    def _load_tls(self) -> ssl.SSLContext | None:
        if self._settings.insecure:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        certificate = self._folder / self._settings.certificate
        try:
            context.load_cert_chain(certificate, self._folder / self._settings.key)
        except (OSError, ssl.SSLError) as error:
            raise FederationError(
                where=certificate,
                found=getattr(error, "reason", None) or str(error),
                expected="the server's certificate and its key, PEM",
                next_step="copy your own files or those of `fedapt federation init` there",
            ) from error
        return context

    def _update_keys(self) -> None:
        new, errors = self._keys.update()
        for name in new:
            self._reporter.event("info", f"{name}: may connect", node=name)
        for error in errors:
            self._reporter.event("error", str(error))

    def _is_training(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _begin_training(self) -> None:
        if self._is_training():
            return  # the operator's command follows the training that already runs
        self._thread = threading.Thread(target=self._work, name="training", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            with self._mailbox.training():
                self._train(MailboxGrid(self._mailbox))
        except ReportedError as error:
            self._reporter.event("error", str(error))
        except Exception:  # an internal error ends the training, not the server
            self._reporter.event("error", traceback.format_exc())
        finally:
            finish_training(self._folder)
