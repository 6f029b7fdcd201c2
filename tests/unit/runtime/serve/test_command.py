"""What the command refuses before it loads a model, and what it says."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from fedapt_runtime.cli import main
from fedapt_runtime.errors import InputError
from fedapt_runtime.serve.command import check_address, read_tokens
from fedapt_runtime.serve.limits import Limits
from fedapt_runtime.serve.server import Address, serve
from tests.support.serving import TOKEN


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["serve", *map(str, arguments)]) == 8
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_addresses_of_this_machine_need_no_token(host: str) -> None:
    assert check_address(host, has_tokens=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_other_addresses_need_one(host: str) -> None:
    with pytest.raises(InputError, match="that other machines can reach, without tokens"):
        check_address(host, has_tokens=False)
    assert not check_address(host, has_tokens=True)


def test_a_public_address_without_a_token_is_refused_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, tmp_path / "no.onnx", "--host", "0.0.0.0")
    assert said.startswith("error: host 0.0.0.0: found an address that other machines can reach")
    assert "--token-file" in said


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"short", "a token that is too short"),
        (f"{TOKEN}\nshort".encode(), "a token that is too short"),
        ("Schlüsselschlüsselschlüssel".encode(), "not ASCII"),
        (None, "No such file"),
    ],
)
def test_tokens_that_could_be_guessed(tmp_path: Path, content: bytes | None, found: str) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=found):
        read_tokens(file)


def test_tokens_are_lines(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"{TOKEN}\n\n  {TOKEN}-2\r\n")
    assert read_tokens(tmp_path / "tokens") == (TOKEN.encode(), f"{TOKEN}-2".encode())


def test_commands_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "m.onnx", tmp_path / "other" / "m.onnx"
    cert = tmp_path / "cert.pem"
    cert.write_text("no certificate")
    for arguments, text in (
        ([], "serve: found no model;"),
        ([a, b], "two models named m"),
        ([a, tmp_path / "n.onnx", "--head", a], "2 models and one head"),
        ([a, "--tls-cert", cert], "a certificate alone"),
        ([a, "--tls-cert", cert, "--tls-key", tmp_path / "key.pem"], "key.pem: found no such file"),
        (["--web", tmp_path / "web"], "found no folder"),
        ([a], "m.onnx: found no such file"),
    ):
        assert text in refusal(capsys, *arguments), text


@pytest.mark.parametrize("option", ["--max-batch=0", "--port=65536", "--max-queue=x", "--port=-1"])
def test_numbers_out_of_range(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["serve", "m.onnx", option])
    assert exit_.value.code == 2
    assert "expected" in capsys.readouterr().err


def start(address: Address) -> None:
    serve(
        {},
        address,
        Limits(),
        tokens=(),
        local=True,
        web=None,
        max_batch=None,
        max_delay_s=0.0,
        workers=1,
    )


def test_a_port_that_is_taken() -> None:
    refused = pytest.raises(InputError, match="found Address already in use")
    with socket.create_server(("127.0.0.1", 0)) as taken, refused:
        start(Address("127.0.0.1", taken.getsockname()[1]))


def test_certificates_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "cert.pem"
    file.write_text("no certificate")
    with pytest.raises(InputError, match="expected a certificate chain and its private key"):
        start(Address("127.0.0.1", 0, file, file))


def test_without_the_extra_the_way_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "fedapt_runtime.serve.server", raising=False)
    monkeypatch.delattr("fedapt_runtime.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(tmp_path / "m.onnx")]) == 9
    assert "To do: pip install 'fedapt-runtime[cpu,serve]'" in capsys.readouterr().err
