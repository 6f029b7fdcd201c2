"""server.toml and node.toml; the files of a new deployment; certificates."""

from __future__ import annotations

import ipaddress
import json
import os
import stat
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedapt.cli.app import main
from fedapt.core.errors import (
    ConfigError,
    DependencyError,
    FederationError,
    FileError,
    UsageError,
)
from fedapt.core.files import make_folder, write_text
from fedapt.federation.flower import files, require_flower
from fedapt.federation.flower.certificates import draw_node_key, issue_certificates
from fedapt.federation.flower.files import write_node
from fedapt.federation.flower.network.keys import read_private_key, read_public_key
from fedapt.federation.flower.settings import is_loopback, read_node, read_server, split_address

INIT = ["--server", "federation.example.org:8000", "--node", "amazon", "--node", "clinic=webcam"]
CLASSES = ["--classes", "mug,bike"]


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["federation", "init", str(tmp_path / "new"), *INIT, *CLASSES]) == 0
    assert "README.md has the commands" in capsys.readouterr().out
    return tmp_path / "new"


def rewrite(path: Path, **values: object) -> None:
    table = tomllib.loads(path.read_text()) | values
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in table.items())
    path.write_text("".join(lines))


def test_a_new_deployment_can_be_read(folder: Path) -> None:
    server = read_server(folder / "server")
    assert (server.address, server.classes) == ("federation.example.org:8000", ("mug", "bike"))
    assert (server.min_nodes, server.insecure) == (2, False)
    node = read_node(folder / "nodes" / "clinic")
    assert (node.server, node.domain, node.name) == (server.address, "webcam", "clinic")
    assert node.to_party(Path("/srv")).root == Path("/srv/data")
    assert not node.to_party(Path("/srv")).secure
    rewrite(folder / "nodes" / "clinic" / "node.toml", secure="yes")
    with pytest.raises(ConfigError, match=r"secure"):
        read_node(folder / "nodes" / "clinic")
    lines = (folder / "nodes" / "clinic" / "node.toml").read_text().replace('"yes"', "true")
    (folder / "nodes" / "clinic" / "node.toml").write_text(lines)
    assert read_node(folder / "nodes" / "clinic").to_party(Path("/srv")).secure
    for secret in ("server/server.key", "nodes/amazon/node.key", "nodes/clinic/node.key"):
        assert stat.S_IMODE((folder / secret).stat().st_mode) == 0o600
    # the key of a node is with the node alone
    private = read_private_key(folder / "nodes" / "clinic" / "node.key")
    assert isinstance(private.curve, ec.SECP384R1)
    other = read_private_key(folder / "nodes" / "amazon" / "node.key")
    assert private.private_numbers() != other.private_numbers()
    readme = (folder / "README.md").read_text()
    for command in ("server server", "train server", "node nodes/clinic"):
        assert f"fedapt federation {command}" in readme


def test_a_further_node(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["federation", "add", str(folder), "late=dslr"]) == 0
    assert read_node(folder / "nodes" / "late").domain == "dslr"
    assert read_public_key(folder / "server" / "nodes" / "late.pub")
    assert main(["federation", "add", str(folder), "late=dslr"]) == 2
    assert "a node of that name" in capsys.readouterr().err
    for bad in ("../late", "..", "a/b=c", "c=a/b", ""):
        assert main(["federation", "add", str(folder), bad]) == 2
    assert sorted(p.name for p in (folder / "nodes").iterdir()) == ["amazon", "clinic", "late"]


def test_a_folder_is_not_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "server" / "server.key").read_bytes()
    assert main(["federation", "init", str(folder), *INIT, *CLASSES]) == 2
    assert "found a folder or file; expected a new folder" in capsys.readouterr().err
    assert (folder / "server" / "server.key").read_bytes() == before


def test_two_jobs_with_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    with make_folder(new):
        assert main(["federation", "init", str(new), *INIT, *CLASSES]) == 4
    told = f"{new}: found an output that process {os.getpid()} on "
    assert told in capsys.readouterr().err
    with make_folder(new / "nodes" / "late"):
        (new / "server").mkdir()
        (new / "server" / "authority.pem").write_text("PEM")
        with pytest.raises(FileError, match=rf"late: found an output that process {os.getpid()}"):
            write_node(new, "late", "dslr", "127.0.0.1:1", "data")
    assert sorted(p.name for p in new.rglob("*")) == ["authority.pem", "late", "nodes", "server"]


def test_an_interrupted_init_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_services", interrupt)
        main(["federation", "init", str(tmp_path / "new"), *INIT, *CLASSES])
    assert list(tmp_path.iterdir()) == []
    assert main(["federation", "init", str(tmp_path / "new"), *INIT, *CLASSES]) == 0


def test_an_interrupted_add_can_be_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server lets the key in, and nobody has it, until the node is made anew."""

    def interrupt(path: Path, text: str) -> None:
        if path.suffix == ".pub":
            raise KeyboardInterrupt
        write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_text", interrupt)
        main(["federation", "add", str(folder), "late=dslr"])
    assert sorted(p.name for p in (folder / "nodes").iterdir()) == ["amazon", "clinic"]
    assert main(["federation", "add", str(folder), "late=dslr"]) == 0
    key = read_private_key(folder / "nodes/late/node.key").public_key()
    registered = read_public_key(folder / "server/nodes/late.pub")
    assert registered.public_numbers() == key.public_numbers()


def test_two_nodes_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["--node", "amazon=dslr"]
    assert main(["federation", "init", str(tmp_path / "x"), *INIT, *again, *CLASSES]) == 2
    assert "--node: found two nodes of the same name" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("more", "code", "reason"),
    [
        (["--classes", "bike"], 3, "--classes: found the classes 'bike'; expected two names"),
        (["--classes", ""], 3, "--classes: found the classes ''; expected two names"),
        (["--classes", "a,a"], 3, "found the classes 'a', 'a'; expected two names or more"),
        (["--classes", "bike,Bike"], 3, "found the classes 'bike', 'Bike'; expected two names"),
        (["--classes", "caf\u00e9,cafe\u0301"], 3, r"found the classes 'caf\xe9', 'cafe\u0301';"),
        (["--classes", "a,,b"], 3, "found the classes 'a', '', 'b'; expected two names or more"),
        ([*CLASSES, "--node", "=x"], 2, "the node '': found a name that no folder should have"),
        ([*CLASSES, "--node", "x=a/b"], 2, "the node 'x': found the domain 'a/b'"),
        ([*CLASSES, "-o", "train.method=local"], 2, "method local, whose clients send nothing"),
        (
            [*CLASSES, "-o", "data.leave_out=x"],
            3,
            "data.leave_out = 'x': found a setting that needs all images",
        ),
        (
            [*CLASSES, "-o", "train.method=adapt", "-o", "federation.secure=true"],
            3,
            "federation.secure: found the method adapt, whose contexts belong to one domain each",
        ),
    ],
)
def test_what_a_server_would_refuse_is_refused_before_the_first_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, reason: str
) -> None:
    new = tmp_path / "new"
    assert main(["federation", "init", str(new), *INIT, *more]) == code
    assert reason in capsys.readouterr().err
    assert not new.exists()
    assert main(["federation", "init", str(new), *INIT, *CLASSES]) == 0


def test_the_servers_certificate_is_for_its_address(folder: Path) -> None:
    server = folder / "server"
    certificate = x509.load_pem_x509_certificate((server / "server.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((server / "authority.pem").read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["federation.example.org"]
    assert (folder / "nodes" / "amazon" / "authority.pem").read_bytes() == (
        server / "authority.pem"
    ).read_bytes()
    stranger = x509.load_pem_x509_certificate(issue_certificates(["a"]).authority)
    with pytest.raises(Exception, match=r"[Ii]ssuer|[Ss]ignature|^$"):
        certificate.verify_directly_issued_by(stranger)


def test_a_certificate_for_numbers() -> None:
    found = x509.load_pem_x509_certificate(issue_certificates(["10.0.0.7", "::1"]).certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    assert addresses == [ipaddress.ip_address("10.0.0.7"), ipaddress.ip_address("::1")]


@pytest.mark.parametrize(
    ("address", "expected"),
    [("a.org:80", ("a.org", 80)), ("[::1]:8000", ("::1", 8000)), ("10.0.0.1:1", ("10.0.0.1", 1))],
)
def test_an_address(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address, "x") == expected


@pytest.mark.parametrize("address", ["a.org", ":80", "a.org:", "a.org:0", "a.org:65536", "a:²"])
def test_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        split_address(address, "x")


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "example.org", "::", "localhost.org")))


@pytest.mark.parametrize("what", ["server", "node"])
def test_unencrypted_is_for_loopback(
    folder: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder / ("server" if what == "server" else "nodes/clinic")
    read = read_server if what == "server" else read_node
    rewrite(place / f"{what}.toml", insecure=True)
    with pytest.raises(UsageError, match=r"insecure = true on federation\.example\.org"):
        read(place)
    monkeypatch.setenv("FEDAPT_INSECURE", "1")
    assert read(place).insecure
    monkeypatch.delenv("FEDAPT_INSECURE")
    key = "address" if what == "server" else "server"
    rewrite(place / f"{what}.toml", **{key: "127.0.0.1:80"})
    assert read(place).insecure


def test_wrong_settings(folder: Path) -> None:
    path = folder / "server" / "server.toml"
    good = path.read_text()
    for values, expected in (
        ({"classes": ["mug"]}, "two names or more"),
        ({"classes": ["mug", "mug"]}, "two names or more"),
        ({"classes": ["mug", " "]}, "two names or more"),
        ({"classes": "mug"}, "a list of names"),
        ({"classes": [1, 2]}, "a list of names"),
        ({"min_nodes": "2"}, "an integer from 1 to 1 000 000"),
        ({"nods": 1}, "one of address, classes"),
        ({"key": "lost.key"}, "`fedapt federation init` has written"),
    ):
        rewrite(path, **values)
        with pytest.raises(ConfigError, match=expected):
            read_server(path.parent)
        path.write_text(good)
    path.write_text('address = "a:1"\n')
    with pytest.raises(ConfigError, match="no classes"):
        read_server(path.parent)


def test_without_flower_there_is_a_way_out() -> None:
    with pytest.raises(DependencyError, match=r"pip install 'fedapt\[flower\]'") as caught:
        require_flower("no_such_package")
    assert caught.value.exit_code == 9
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"


def test_keys_that_are_none(tmp_path: Path) -> None:
    private, public = draw_node_key()
    path = tmp_path / "key"
    path.write_bytes(public)
    assert read_public_key(path)
    with pytest.raises(FederationError, match="a private key as"):
        read_private_key(path)
    path.write_bytes(private)
    assert read_private_key(path)
    with pytest.raises(FederationError, match="a node's public key"):
        read_public_key(path)
