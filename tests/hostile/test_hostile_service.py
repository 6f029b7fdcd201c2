"""A real server against clients that are slow, rude or many; it answers properly and lives on."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from fedapt_runtime import Classifier
from tests.support.serving import TOKEN, Server, as_json, picture, running

# short deadlines, which no option of the command sets
IMPATIENT = """
import sys
from fedapt_runtime import Classifier
from fedapt_runtime.serve import server
server.serve(
    {"tiny": Classifier.load(sys.argv[1], device="cpu", performance_hint="throughput")},
    server.Address("127.0.0.1", 0),
    server.Limits(header_s=2.0, body_s=1.0, max_body=1 << 20, max_connections=40),
    tokens=(), local=True, web=None, max_batch=None, max_delay_s=0.002, workers=1,
)
"""


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with running(folder, tiny_model, "--device", "cpu", "--max-body-mib", 1) as server:
        yield server


@pytest.fixture
def impatient(tiny_model: Path, tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path, tiny_model, code=IMPATIENT) as server:
        yield server


def ask(server: Server, **options: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/classify", json=as_json(picture()), timeout=60)


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def read_all(connection: socket.socket) -> bytes:
    """What the server says until it closes, or resets a connection that has sent too much."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_slow_heads_are_closed(impatient: Server) -> None:
    with connect(impatient) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert read_all(connection) == b""
    assert ask(impatient).status_code == 200


def test_slow_heads_get_no_more_time_by_sending_a_byte_now_and_then(impatient: Server) -> None:
    with connect(impatient) as connection:
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET / HTTP/1.1\r\n")
                while not stop.wait(0.05):
                    connection.sendall(b"X-Slow: 1\r\n")

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert read_all(connection) == b""
        stop.set()
        dripping.join()
    assert ask(impatient).status_code == 200


def test_a_connection_in_use_outlives_the_idle_limit(impatient: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", impatient.port, timeout=60)
    connection.connect()
    connection.auto_open = 0  # a closed connection is an error, not a new connection
    body, headers = json.dumps(as_json(picture())), {"Content-Type": "application/json"}
    end = time.monotonic() + 1.5 * 2.0  # of header_s
    while time.monotonic() < end:
        connection.request("POST", "/v1/classify", body, headers)
        answer = connection.getresponse()
        assert (answer.status, len(answer.read()) > 0) == (200, True)
    connection.close()


def test_slow_bodies_are_408(impatient: Server) -> None:
    with connect(impatient) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: application/json\r\n\r\n{"
        )
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")
    assert ask(impatient).status_code == 200


def test_more_connections_than_there_may_be_are_closed_and_the_rest_live(
    impatient: Server,
) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(impatient)) for _ in range(60)]
        for connection in idle:
            assert read_all(connection) == b""  # those over the limit at once, the others later
    assert ask(impatient).status_code == 200


def test_a_thousand_idle_connections(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connect(server))
        assert ask(server).status_code == 200
        assert httpx.get(f"{server.url}/healthz", timeout=60).text == "ok\n"


def test_endless_heads(server: Server) -> None:
    with connect(server) as connection:
        with contextlib.suppress(ConnectionError):  # it is closed while more is on its way
            connection.sendall(b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"x" * 200_000)
        assert read_all(connection)[:13] in (b"HTTP/1.1 400 ", b"")
    assert ask(server).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\x00" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_400(server: Server, sent: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection)[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 421 ", b"")
    assert ask(server).status_code == 200


def test_a_chunked_body_without_length_over_the_limit(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/json\r\n\r\n"
        )
        for _ in range(20):
            connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert ask(server).status_code == 200


def test_a_body_over_the_limit_is_refused_before_it_is_sent(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n"
            b"Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert ask(server).status_code == 200


def write_bomb(side: int) -> bytes:
    """A PNG of side x side black pixels in a few hundred kilobytes."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    data = stream.getvalue()

    def chunk(kind: bytes, body: bytes) -> bytes:
        checked = kind + body
        return len(body).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")

    size = side.to_bytes(4, "big") * 2
    rows = zlib.compressobj(9)
    packed = b"".join([rows.compress(bytes(side + 1)) for _ in range(side)]) + rows.flush()
    header = chunk(b"IHDR", size + b"\x08\x00\x00\x00\x00")
    return data[:8] + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_a_decompression_bomb_costs_no_memory(server: Server) -> None:
    assert ask(server).status_code == 200
    before = server.resident_bytes()
    bomb = write_bomb(9000)  # 81 MB decoded
    assert len(bomb) < 1 << 20
    for _ in range(3):
        answer = httpx.post(
            f"{server.url}/v1/classify", files={"image": ("bomb.png", bomb)}, timeout=60
        )
        assert answer.status_code == 422
        error = answer.json()["predictions"][0]["error"]
        assert "9000 x 9000 pixels, over the limit of 50,000,000" in error
    assert server.resident_bytes() - before < 60e6
    assert ask(server).status_code == 200


def test_clients_that_hang_up(server: Server) -> None:
    body = json.dumps(as_json(*[picture()] * 8)).encode()
    head = (
        b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    for sent in (head, head + body[:100], head + body):
        for _ in range(10):
            with connect(server) as connection:
                connection.sendall(sent)
    assert ask(server).status_code == 200
    # whoever left holds no place and no bytes; the server learns of it in its own time
    figures = ""
    for _ in range(1000):
        figures = httpx.get(f"{server.url}/metrics", timeout=60).text
        if "\nfedapt_queued_images 0.0" in figures and "\nfedapt_body_bytes 0.0" in figures:
            break
    assert "\nfedapt_queued_images 0.0" in figures
    assert "\nfedapt_body_bytes 0.0" in figures


def test_a_model_file_that_is_replaced_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    shutil.copyfile(tiny_model, model)
    with running(tmp_path, model, "--device", "cpu") as server:
        before = ask(server).json()
        model.write_bytes(b"not a model")  # the same file, written over
        assert ask(server).json() == before
        model.unlink()
        assert ask(server).json() == before


def test_sigterm_answers_what_was_accepted(tiny_model: Path, tmp_path: Path) -> None:
    # one batch takes long enough for others to wait behind it
    images = as_json(*[picture()] * 64)
    with running(tmp_path, tiny_model, "--device", "cpu", "--max-batch", 1) as server:

        def send(_: int) -> int | None:
            try:
                return httpx.post(f"{server.url}/v1/classify", json=images, timeout=120).status_code
            except httpx.NetworkError:
                return None  # the server stopped before it accepted the connection

        with ThreadPoolExecutor(6) as pool:
            answers = [pool.submit(send, i) for i in range(6)]
            while not any(
                line.startswith("fedapt_queued_images ") and not line.endswith(" 0.0")
                for line in httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
            ):
                pass
            assert server.stop() == 0
        statuses = [answer.result() for answer in answers]
        assert statuses.count(200) >= 2  # one was computed, and one waited
        assert set(statuses) <= {200, None}
        answered = [line for line in server.lines() if line["path"] == "/v1/classify"]
        assert [line["status"] for line in answered] == [200] * statuses.count(200)


def test_tls_and_tokens_on_a_public_address(tiny_model: Path, tmp_path: Path) -> None:
    key, cert, tokens = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "tokens"
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    tokens.write_text(TOKEN + "\n")
    options = ["--host", "0.0.0.0", "--token-file", tokens, "--tls-cert", cert, "--tls-key", key]
    with running(tmp_path, tiny_model, "--device", "cpu", *options) as server:
        import ssl

        url = f"https://localhost:{server.port}/v1/models"
        trust = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=trust, timeout=60) as client:
            assert client.get(url).status_code == 401
            answer = client.get(url, headers={"authorization": f"Bearer {TOKEN}"})
            assert answer.json()["models"][0]["name"] == tiny_model.stem
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http"), timeout=60)


def test_a_server_process_is_small_without_the_extra() -> None:
    code = (
        "import sys, fedapt_runtime.cli\n"
        "print([n for n in ('uvicorn', 'starlette', 'prometheus_client') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_rows_are_those_of_the_classifier(server: Server, tiny_model: Path) -> None:
    images = [picture((i * 3 % 256, i * 7 % 256, 50)) for i in range(30)]
    arrays = [Image.open(io.BytesIO(image)) for image in images]
    import numpy as np

    expected = Classifier.load(tiny_model, device="cpu")([np.asarray(a) for a in arrays])

    def send(image: bytes) -> dict[str, object]:
        files = {"image": ("a.png", image)}
        answer = httpx.post(f"{server.url}/v1/classify", files=files, timeout=60)
        return answer.json()["predictions"][0]

    with ThreadPoolExecutor(10) as pool:
        rows = list(pool.map(send, images))
    for row, prediction in zip(rows, expected, strict=True):
        assert row["label"] == prediction.label
        assert row["score"] == pytest.approx(prediction.score, abs=1e-5)
