"""Who is not let in is told why, on both sides, as real processes; whoever may comes in after."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from fedapt.core.config import Config
from fedapt.federation.flower.files import Deployment as Deployed
from fedapt.federation.flower.files import write_deployment
from fedapt.federation.flower.task import PROTOCOL
from tests.support.federation import Deployment, deploy, find_port, processes_of
from tests.support.tiny import CLASSES, write_tiny_clip, write_tiny_images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

WRONG = ("stranger", "keyless", "lost", "newer", "renamed", "other")
OTHER_PROTOCOL = """\
import sys
from fedapt.federation.flower import require_flower
require_flower()
from fedapt.federation.flower import task
task.PROTOCOL += 1
from fedapt.cli.app import main
sys.exit(main())
"""


@pytest.fixture
def deployment(tmp_path: Path, tiny_clip: Path) -> Iterator[Deployment]:
    images = write_tiny_images(tmp_path / "data", 6, ("photo", "sketch"))
    names = [name.replace("_", " ") for name in CLASSES]
    nodes = [f"{name}=photo" for name in (*WRONG, "right")] + ["foreign=sketch"]
    settings = ("train.rounds=1", "prompt.context_length=4", "federation.round_seconds=60")
    folder = tmp_path / "deployment"
    with deploy(folder, nodes, names, images, tiny_clip, *settings) as found:
        rewrite(folder / "server" / "server.toml", least_nodes=1, domains=["photo"])
        yield found
    # Flower's own processes see within seconds that their parent is gone
    found.wait_until(lambda: processes_of(folder) == [], 30.0)


def rewrite(path: Path, **values: object) -> None:
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | values))


def name_key(path: Path) -> str:
    """The fingerprint of a key, by another program."""
    done = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True)
    return done.stdout.split()[1]


def test_who_is_not_let_in_is_told_why(deployment: Deployment, tmp_path: Path) -> None:
    nodes, server = deployment.folder / "nodes", deployment.folder / "server"
    address = tomllib.loads((server / "server.toml").read_text())["address"]

    elsewhere = tmp_path / "elsewhere"
    write_deployment(elsewhere, Deployed("127.0.0.1:1", ("a", "b"), {"a": "a"}, "data", Config()))
    shutil.copy(elsewhere / "server" / "authority.pem", nodes / "stranger" / "authority.pem")
    (server / "nodes" / "keyless.pub").unlink()
    key = name_key(nodes / "keyless" / "node.key")
    nowhere = f"127.0.0.1:{find_port()}"
    rewrite(nodes / "lost" / "node.toml", server=nowhere)
    (tmp_path / "newer.py").write_text(OTHER_PROTOCOL)
    renamed = tmp_path / "renamed" / "photo"
    for name in ("blue_disc", "red_square", "dots"):
        shutil.copytree(tmp_path / "data" / "photo" / "stripes", renamed / name)
    rewrite(nodes / "renamed" / "node.toml", data=str(renamed.parent))
    rewrite(nodes / "other" / "node.toml", model=str(write_tiny_clip(tmp_path / "other", 1)))

    deployment.start_server()
    deployment.wait_until(lambda: "Uvicorn running on https" in deployment.say("server"))
    deployment.start_training()
    for name, wait in (("stranger", "60"), ("keyless", "5"), ("lost", "1")):
        deployment.start(name, "node", str(nodes / name), "--wait", wait)
    others = [sys.executable, str(tmp_path / "newer.py")]
    deployment.start("newer", "node", str(nodes / "newer"), program=others)
    for name in ("renamed", "other", "foreign"):
        deployment.start_node(name)

    # another certificate
    assert deployment.wait_for_end("stranger") == 5
    assert f"the server {address}: found no TLS certificate" in deployment.say("stranger")
    assert "copy the server's authority.pem here" in deployment.say("stranger")
    told = "turned away: 127.0.0.1: a node that does not trust this server's certificate"
    deployment.wait_until(lambda: told in deployment.say("server"), 5)
    assert f"{told}: it knows another authority; copy authority.pem" in deployment.say("server")

    # a key that is not registered, tried more than once
    assert deployment.wait_for_end("keyless") == 5
    assert f"it does not know this node's key {key}" in deployment.say("keyless")
    assert "put this node's .pub file into `nodes`" in deployment.say("keyless")
    assert deployment.say("server").count('activate-node HTTP/1.1" 412') > 1
    told = f"turned away: 127.0.0.1: a node whose key {key} is not in {server / 'nodes'}"
    assert deployment.say("server").count(told) == 1
    assert deployment.say("server").count("turned away") == 2

    # no server: only who waits can miss it
    assert deployment.wait_for_end("lost") == 5
    assert f"the server {nowhere}: found no answer (Connection refused), for 1 s" in deployment.say(
        "lost"
    )

    # what nodes are asked for once they are in
    for name, reason in (
        ("newer", f"version: found protocol {PROTOCOL} of fedapt"),
        ("renamed", "the node's classes: found blue disc, dots, red square; expected those of"),
        ("other", "the node's CLIP: found weights of hash"),
    ):
        deployment.wait_until(lambda n=name: f"turned away: {n}: " in deployment.say("train"))
        assert f"turned away: {name}: {reason}" in deployment.say("train")
        assert f"error: {reason}" in deployment.say(name)
        assert deployment.processes[name].poll() is None  # until its operator has seen to it
    assert "install the same version of fedapt" in deployment.say("newer")
    assert "name the class folders alike" in deployment.say("renamed")
    assert "use the same weights" in deployment.say("other")
    # what the server alone can see
    told = "turned away: foreign: the unknown domain 'sketch'"
    deployment.wait_until(lambda: told in deployment.say("train"))
    told = "error: turned away: the unknown domain 'sketch'"
    deployment.wait_until(lambda: told in deployment.say("foreign"))
    unseen = "waiting for nodes: 0 of 1 ready; not connected yet: lost, right, stranger"
    deployment.wait_until(lambda: unseen in deployment.say("train"))

    for name in (*WRONG, "foreign"):
        assert "Traceback" not in deployment.say(name)
    deployment.start_node("right")
    assert deployment.wait_for_end("train") == 0
    joined = [e["name"] for e in deployment.events() if e["event"] == "joined"]
    assert joined == ["right"]
    assert (deployment.run / "checkpoint.safetensors").is_file()
    assert "Traceback" not in deployment.say("server") + deployment.say("train")
