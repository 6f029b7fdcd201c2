"""One server and its nodes as real processes on loopback; the tests share them, in this order."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
import torch

from fedapt.cli.app import main
from fedapt.core.config import Config, read_config
from fedapt.core.records import Record, read_records
from fedapt.core.report import Reporter
from fedapt.federation.flower.files import Deployment as Deployed
from fedapt.federation.flower.files import write_deployment
from fedapt.federation.flower.network.keys import read_private_key, sign
from fedapt.federation.flower.settings import split_address
from fedapt.model.backbone import load_backbone
from fedapt.model.checkpoint import load_checkpoint
from fedapt.onnx.tower import read_tower
from fedapt.run.train import train
from tests.support.federation import FEDAPT, FEW_FILES, Deployment, deploy, find_port
from tests.support.strangers import FLOWERS_PATHS, OUR_PATHS, ask_for_control
from tests.support.tiny import CLASSES, write_tiny_images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

DOMAINS = ("cartoon", "photo", "sketch")
NAMES = tuple(name.replace("_", " ") for name in CLASSES)
SETTINGS = (
    "train.lr=0.1",
    "train.batch_size=8",
    "train.evaluate_every=2",
    "prompt.context_length=4",
    "train.seed=3",
    "train.rounds=4",
    "federation.round_seconds=600.0",
)
MB = 1 << 20


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_images(tmp_path_factory.mktemp("federation") / "data", 6, DOMAINS)


@pytest.fixture(scope="module")
def live(
    tmp_path_factory: pytest.TempPathFactory, images: Path, tiny_clip: Path
) -> Iterator[Deployment]:
    """A server without nodes; a test that trains names a run folder of its own."""
    read_tower(load_backbone(str(tiny_clip)))  # into the cache, else every node exports it
    folder = tmp_path_factory.mktemp("live") / "deployment"
    with deploy(folder, DOMAINS, NAMES, images, tiny_clip, *SETTINGS) as found:
        found.start_server(FEW_FILES)
        yield found


def start_missing(live: Deployment) -> None:
    """Start the nodes that do not run."""
    for name in DOMAINS:
        if name not in live.processes:
            live.start_node(name)


def train_locally(out: Path, images: Path, clip: Path, *settings: str) -> Path:
    """A run of the local engine with the same settings."""
    options = {"data.root": str(images), "model.name": str(clip)}
    config = read_config(None, [*SETTINGS, *settings], options)
    train(config, out, resume=False, device="cpu", reporter=Reporter())
    return out


def assert_same(one: Path, other: Path) -> None:
    """To the rounding of other numbers of threads; all that is written down is equal."""
    expected, found = (load_checkpoint(run / "checkpoint.safetensors") for run in (one, other))
    assert found.info == expected.info
    assert found.learned.keys() == expected.learned.keys()
    for name, tensor in expected.learned.items():
        torch.testing.assert_close(found.learned[name], tensor, rtol=0, atol=1e-6)


def memory_of(deployment: Deployment, name: str) -> int:
    """Bytes that a process has in memory."""
    status = Path(f"/proc/{deployment.processes[name].pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def push_a_gigabyte(address: str) -> None:
    """Without a key: refused, or cut off, before the server has read it."""
    content = (bytes(MB) for _ in range(1024))
    with suppress(httpx.TransportError), httpx.Client(verify=False) as client:
        answer = client.post(f"https://{address}/fedapt/reply/0", content=content)
        assert answer.status_code == 403


def test_a_stranger_gets_nothing(live: Deployment) -> None:
    authority = ssl.create_default_context(cafile=str(live.folder / "server/authority.pem"))
    for verify in (False, authority):
        with httpx.Client(base_url=f"https://{live.address}", verify=verify) as client:
            for path in (*FLOWERS_PATHS, *OUR_PATHS):
                for method in ("GET", "POST"):
                    answer = client.request(method, path)
                    assert (answer.status_code, answer.content) == (403, b""), path
    # whoever has a key may be a node, and no more
    key = read_private_key(live.folder / "nodes/photo/node.key")
    with httpx.Client(base_url=f"https://{live.address}", verify=authority) as client:
        for path in FLOWERS_PATHS:
            answer = client.post(path, headers=sign(key, path, "00", b""))
            assert answer.status_code in (403, 404), path
    assert not live.run.exists()


def test_flowers_own_control_client_gets_nothing(live: Deployment) -> None:
    for name, status in ask_for_control(
        live.address, (live.folder / "server/authority.pem").read_bytes()
    ):
        assert status == 403, name


def test_a_flood_of_strangers_stops_nobody(live: Deployment) -> None:
    host, port = split_address(live.address, "")
    before = memory_of(live, "server")
    live.configure("server/server.toml", out="flooded")
    with ExitStack() as stack:
        for number in range(600):
            connection = stack.enter_context(socket.create_connection((host, port)))
            if number % 2:  # an unfinished handshake; the others say nothing at all
                connection.sendall(b"\x16\x03\x01\x02\x00")
        push_a_gigabyte(live.address)
        assert memory_of(live, "server") - before < 50 * MB
        start_missing(live)  # nodes join all the same
        live.train()
    assert [r["replies"] for r in read_records(live.run / "records.jsonl")] == [3, 3, 3, 3]


def test_killed_processes_change_nothing(
    live: Deployment, tmp_path: Path, images: Path, tiny_clip: Path
) -> None:
    live.configure("server/server.toml", out="killed")
    start_missing(live)
    live.start_training()
    live.wait_for_round(1)
    live.kill("cartoon")
    live.start_node("cartoon")
    live.wait_for_round(2)
    live.kill("server")
    # the one that waits for the run says what became of it
    assert live.wait_for_end("train") == 5
    assert "no answer: its process has ended" in live.say("train")
    done = len(read_records(live.run / "records.jsonl"))

    live.start_server(FEW_FILES)
    live.train()
    rounds = [e["record"]["round"] for e in live.events() if e["event"] == "round"]
    assert rounds == [1, 2, 3, 4]  # no round was trained twice
    assert done >= 2
    records: list[Record] = read_records(live.run / "records.jsonl")
    assert all(r["replies"] == 3 and "refused" not in r for r in records)
    assert records[-1]["accuracy"].keys() == set(DOMAINS)
    assert_same(train_locally(tmp_path / "local", images, tiny_clip), live.run)
    assert "lost the server" in live.say("photo")
    for name in ("server", *DOMAINS):
        assert "Traceback" not in live.say(name)
        assert "\x1b" not in live.say(name)  # no colours where there is no terminal


def test_what_operators_read(live: Deployment) -> None:
    """After the run before: a line for each event, on every machine."""
    assert "round 4: trained on 15 images, sent " in live.say("sketch")
    assert " info round 4 of 4: 3 replies, loss " in live.say("server")
    assert " info sketch: 15 images, " in live.say("server")
    assert "uvicorn" not in live.say("server").lower()


def test_a_secure_run_is_the_mean_that_everybody_could_see(
    live: Deployment, tmp_path: Path, images: Path, tiny_clip: Path
) -> None:
    settings = [*SETTINGS, f"model.name={tiny_clip}", "federation.secure=true", "train.rounds=1"]
    from fedapt.core.config import config_to_toml

    (live.folder / "server/secure.toml").write_text(config_to_toml(read_config(None, settings)))
    live.configure("server/server.toml", out="secret", settings="secure.toml")
    start_missing(live)
    live.train()
    (record,) = read_records(live.run / "records.jsonl")
    assert record["replies"] == 3
    assert {e["images"] for e in live.events() if e["event"] == "replied"} == {None}
    local = train_locally(tmp_path / "local", images, tiny_clip, "train.rounds=1")
    expected, found = (load_checkpoint(run / "checkpoint.safetensors") for run in (local, live.run))
    for name, tensor in expected.learned.items():
        torch.testing.assert_close(found.learned[name], tensor, rtol=0, atol=1e-6)
    (last,) = read_records(local / "records.jsonl")
    assert record["mean_accuracy"] == last["mean_accuracy"]
    assert record["loss"] == pytest.approx(last["loss"], abs=1e-5)


def test_who_is_not_let_in_is_told_why(live: Deployment, tmp_path: Path, images: Path) -> None:
    live.configure("server/server.toml", out="chosen", settings="settings.toml", domains=["photo"])
    live.configure("server/server.toml", min_nodes=1)
    nodes = live.folder / "nodes"
    clip = tomllib.loads((nodes / "photo/node.toml").read_text())["model"]
    for name in ("stranger", "keyless", "lost"):
        assert main(["federation", "add", str(live.folder), f"{name}=photo"]) == 0
        live.configure(f"nodes/{name}/node.toml", data=str(images), model=clip)
    elsewhere = tmp_path / "elsewhere"
    write_deployment(elsewhere, Deployed("127.0.0.1:1", ("a", "b"), {"a": "a"}, "data", Config()))
    other = (elsewhere / "server/authority.pem").read_bytes()
    (nodes / "stranger/authority.pem").write_bytes(other)
    (live.folder / "server/nodes/keyless.pub").unlink()
    named = subprocess.run(
        ["ssh-keygen", "-lf", nodes / "keyless/node.key"],
        capture_output=True,
        text=True,
        check=True,
    )
    key = named.stdout.split()[1]
    nowhere = f"127.0.0.1:{find_port()}"
    live.configure("nodes/lost/node.toml", server=nowhere)

    for name, wait in (("stranger", "600"), ("keyless", "5"), ("lost", "1")):
        live.start(name, "node", str(nodes / name), "--wait", wait)
        assert live.wait_for_end(name) == 5
        assert "Traceback" not in live.say(name)
    # another certificate
    assert f"the server {live.address}: found an untrusted TLS certificate" in live.say("stranger")
    assert "copy the server's authority.pem here" in live.say("stranger")
    told = "turned away: 127.0.0.1: a node that does not trust this server's certificate"
    live.wait_until(lambda: told in live.say("server"))
    assert f"{told}: it knows another authority; copy authority.pem" in live.say("server")
    # a key that is not registered, tried more than once
    assert f"it does not know this node's key {key}" in live.say("keyless")
    assert "put this node's .pub file into `nodes`" in live.say("keyless")
    told = (
        f"turned away: 127.0.0.1: a node whose key {key} is not in {live.folder / 'server/nodes'}"
    )
    assert live.say("server").count(told) == 1
    # no server
    refused = f"the server {nowhere}: found no answer (Connection refused), for 1 s"
    assert refused in live.say("lost")

    # what the server alone can see of a node that is let in
    start_missing(live)
    os.killpg(live.processes["photo"].pid, signal.SIGSTOP)  # the run waits for it
    live.start_training()
    told = "turned away: sketch: the unknown domain 'sketch'"
    live.wait_until(lambda: told in live.say("train"))
    live.wait_until(lambda: "turned away: the unknown domain 'sketch'" in live.say("sketch"))
    assert live.processes["sketch"].poll() is None  # until its operator has seen to it
    os.killpg(live.processes["photo"].pid, signal.SIGCONT)
    assert live.wait_for_end("train") == 0
    joined = [e["name"] for e in live.events() if e["event"] == "joined"]
    assert joined == ["photo"]


def test_two_processes_of_one_node(live: Deployment) -> None:
    """The later one is the node; the one before ends and says why."""
    start_missing(live)
    live.wait_until(lambda: "joined the server" in live.say("photo"))
    live.start("again", "node", str(live.folder / "nodes/photo"))
    assert live.wait_for_end("photo") == 5
    assert "found another process has joined with this node's key" in live.say("photo")
    live.kill("again")


def test_flowers_simulation_trains_as_the_local_engine(
    tmp_path: Path, tiny_images: Path, tiny_clip: Path
) -> None:
    out, root = tmp_path / "flower", str(tiny_images)
    command = [*FEDAPT, "train", "--engine", "flower", "--data", root, "--out", str(out)]
    for setting in (*SETTINGS, "train.rounds=2", f"model.name={tiny_clip}"):
        command += ["-o", setting]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert_same(train_locally(tmp_path / "local", tiny_images, tiny_clip, "train.rounds=2"), out)
    assert [r["replies"] for r in read_records(out / "records.jsonl")] == [2] * 2


def test_an_engine_that_is_none(capsys: pytest.CaptureFixture[str], tiny_images: Path) -> None:
    always = ["train", "--data", str(tiny_images), "--out", "never"]
    assert main([*always, "--engine", "spark"]) == 2
    assert "--engine: found 'spark'; expected local or flower" in capsys.readouterr().err
    assert main([*always, "--engine", "flower", "--method", "local"]) == 2
    assert "the method local, whose clients send nothing" in capsys.readouterr().err
    assert not Path("never").exists()


def test_training_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{find_port()}"
    write_deployment(tmp_path / "d", Deployed(address, NAMES, {"a": "a"}, "data", Config()))
    server = tmp_path / "d" / "server"
    command = ["federation", "train", str(server), "--wait", "0"]
    assert main(command) == 5
    told = capsys.readouterr().err
    assert f"the server {address}: found no answer" in told
    assert f"start it: fedapt federation server {server}" in told
    (server / "settings.toml").write_text('[train]\nmethod = "local"\n')
    assert main(command) == 2
    assert "the method local, whose clients send nothing" in capsys.readouterr().err
