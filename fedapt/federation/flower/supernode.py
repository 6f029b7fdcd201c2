"""A node's process: Flower's SuperNode for the network, and a thread that does what it receives.

Flower's own executor starts a process for every message, and runs in it the code that the server
sent. The thread keeps CLIP, features and prompts from one message to the next, and runs nothing
but the fedapt that is installed here.

Source: flwr.supercore.superexec.run_superexec, flwr.supernode.runtime.run_clientapp.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.cli import flower_supernode
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedapt.core.report import Reporter
from fedapt.federation.flower.admission import wait_for_admission
from fedapt.federation.flower.client_app import build_client_app
from fedapt.federation.flower.memory import Memory
from fedapt.federation.flower.node import Node
from fedapt.federation.flower.settings import NodeSettings
from fedapt.federation.flower.superlink import STATE, flower_process

MEMORY = "memory.json"
_POLL_S = 0.1


def run_supernode(
    folder: Path, settings: NodeSettings, wait_seconds: float, reporter: Reporter
) -> None:
    """Take part until this process is ended.

    Args:
        folder: of `node.toml`.
        wait_seconds: how long a server that cannot be reached is waited for.

    Raises:
        FederationError: the server cannot be reached, has another certificate, or does not know
            this node's key.
    """
    folder = folder.resolve()
    node = Node(settings.to_party(folder), reporter, Memory(folder / STATE / MEMORY))
    wait_for_admission(folder, folder / STATE, settings, wait_seconds, reporter)
    address = f"127.0.0.1:{_find_port()}"
    app = build_client_app(lambda task, context: node)
    threading.Thread(target=_work_off, args=(address, app), daemon=True).start()
    arguments = ["flower-supernode", "--superlink", settings.server, "--isolation", "process"]
    arguments += ["--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
    if settings.insecure:
        arguments.append("--insecure")
    else:
        arguments += ["--root-certificates", str(folder / settings.authority)]
        arguments += ["--auth-supernode-private-key", str(folder / settings.key)]
    with flower_process(folder, arguments):
        flower_supernode()


def _find_port() -> int:
    """A free port on loopback for the SuperNode's own interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _work_off(address: str, app: ClientApp) -> None:
    """Do what the SuperNode at `address`, in this process, receives.

    Each task has a thread of its own until its message is here, since one of a run that has ended
    meanwhile never comes; messages are then worked off one after another.
    """
    while not _is_open(address):
        time.sleep(_POLL_S)
    one_at_a_time = threading.Lock()
    with _or_end():
        client = _connect(address, RuntimeVersionHttpInterceptor(component_name="SuperExec"))
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        while True:
            acquired = client.AcquireTask(request)
            if acquired.token:
                task = (address, acquired.token, app, one_at_a_time)
                threading.Thread(target=_work, args=task, daemon=True).start()
            else:
                time.sleep(_POLL_S)


@contextlib.contextmanager
def _or_end() -> Iterator[None]:
    """End the process with an error: a node that does nothing must not look as if it did."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        os.kill(os.getpid(), signal.SIGTERM)


def _is_open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _work(address: str, token: str, app: ClientApp, one_at_a_time: threading.Lock) -> None:
    client = _connect(
        address,
        RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
        RuntimeTokenHttpInterceptor(token),
    )
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    try:
        try:
            message, context, _, _ = pull_task_input(client)
        except Exception as error:  # the run has ended, and Flower has many words for it
            print(f"a message that did not arrive: {error}", flush=True)
            return
        with _or_end(), one_at_a_time:
            reply = app(message, context)
            push_message(client, reply, context)
            push_task_output(client, context, SubStatus.COMPLETED, "")
    finally:
        heartbeat.stop()
        client.close()


def _connect(address: str, *interceptors: ProtobufClientInterceptor) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # loopback, within one machine
        root_certificates=None,
        interceptors=list(interceptors),
        retry_invoker=make_simple_http_retry_invoker(),
    )
