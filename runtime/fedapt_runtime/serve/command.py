"""`fedapt-runtime serve`: its options, and their checks before a model is loaded."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedapt_runtime.classifier import Classifier
from fedapt_runtime.cli.values import parse_positive
from fedapt_runtime.errors import InputError, MissingDependency
from fedapt_runtime.options import BACKENDS, DEVICES
from fedapt_runtime.printable import printable

_MIN_TOKEN = 16  # characters


def add_serve(commands: Any) -> None:
    """Add the command to the parser of `fedapt-runtime`."""
    serve = commands.add_parser("serve", help="classify images over HTTP")
    serve.add_argument(
        "models",
        nargs="*",
        type=Path,
        metavar="MODEL",
        help="models, named after their files; the first is the default",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1]")
    serve.add_argument(
        "--port", type=_port, default=8000, help="port; 0 selects a free port [8000]"
    )
    serve.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="tokens of the clients, one per line; required if other machines can reach the"
        " address",
    )
    serve.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM")
    serve.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    serve.add_argument("--head", type=Path, help="a head file to use instead of the model's own")
    serve.add_argument(
        "--backend",
        default="auto",
        choices=("auto", *BACKENDS),
        help="auto selects onnxruntime, or tensorrt for a TensorRT engine [auto]",
    )
    serve.add_argument("--device", default="auto", choices=("auto", *DEVICES), help="[auto]")
    serve.add_argument(
        "--web", type=Path, metavar="DIR", help="also serve this folder, under /web/"
    )
    for option, default, text in (
        ("--max-batch", None, "maximum images in a batch [8 on a CPU, 32 on a GPU]"),
        ("--max-delay-ms", 2, "milliseconds that the first image of a batch waits for others [2]"),
        ("--max-queue", 512, "maximum images accepted and not yet answered [512]"),
        ("--max-images", 64, "maximum images in a request [64]"),
        ("--max-pixels", 50_000_000, "maximum pixels in an image [50000000]"),
        ("--max-body-mib", 32, "maximum MiB in a request [32]"),
        ("--workers", None, "decoding threads [one for each core]"),
    ):
        serve.add_argument(option, type=parse_positive, default=default, metavar="N", help=text)
    serve.set_defaults(run=run_serve)


def _port(text: str) -> int:
    if not text.isdecimal() or not int(text[:6]) < 65536:
        raise argparse.ArgumentTypeError(f"found {text[:20]}, expected 0 to 65535")
    return int(text)


def run_serve(options: argparse.Namespace) -> None:
    """`fedapt-runtime serve`."""
    try:
        from fedapt_runtime.serve import server
    except ImportError as error:
        raise MissingDependency(
            where="serve",
            found=f"no package {error.name}",
            expected="the packages of the extra `serve`",
            next_step="pip install 'fedapt-runtime[cpu,serve]'",
        ) from error
    tokens = () if options.token_file is None else read_tokens(options.token_file)
    is_local = check_address(options.host, bool(tokens))
    check_tls(options.tls_cert, options.tls_key)
    check_models(options.models, options.head, options.web)
    classifiers = dict(_load_models(options))
    if not is_local and options.tls_cert is None:
        note = "tokens and images are not encrypted; set --tls-cert, or use a TLS proxy"
        print(f"{options.host}: {note}", file=sys.stderr)
    server.serve(
        classifiers,
        server.Address(options.host, options.port, options.tls_cert, options.tls_key),
        server.Limits(
            max_body=options.max_body_mib * server.MIB,
            max_bodies=max(256, options.max_body_mib) * server.MIB,
            max_images=options.max_images,
            max_pixels=options.max_pixels,
            max_queue=max(options.max_queue, 1),
        ),
        tokens=tokens,
        local=is_local,
        web=options.web,
        max_batch=options.max_batch,
        max_delay_s=options.max_delay_ms / 1e3,
        workers=options.workers,
    )


def _load_models(options: argparse.Namespace) -> Iterator[tuple[str, Classifier]]:
    for path in options.models:
        backend = options.backend
        if backend == "auto" and path.suffix == ".onnx":
            backend = "onnxruntime"  # it can swap heads, and the start needs no measurements
        classifier = Classifier.load(
            path, backend, options.device, options.head, performance_hint="throughput"
        )
        print(printable(f"{path}: {classifier.description}"), file=sys.stderr)
        yield path.stem, classifier


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """The tokens of a file, one per line.

    Raises:
        InputError: the file cannot be read or has no token, or a token is too short.
    """
    expected = f"tokens of at least {_MIN_TOKEN} printable ASCII characters, one per line"
    next_step = "python -c 'import secrets; print(secrets.token_urlsafe())' > FILE"
    try:
        lines = path.read_bytes().split()
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(where=path, found=found, expected=expected, next_step=next_step) from error
    if not lines or not all(len(t) >= _MIN_TOKEN and t.isascii() for t in lines):
        found = "an empty file" if not lines else "a token that is too short or not ASCII"
        raise InputError(where=path, found=found, expected=expected, next_step=next_step)
    return tuple(lines)


def check_address(host: str, has_tokens: bool) -> bool:
    """Whether only this machine can reach an address.

    Raises:
        InputError: other machines can reach it, and there is no token.
    """
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if not is_local and not has_tokens:
        raise InputError(
            where=f"host {host}",
            found="an address that other machines can reach, without tokens",
            expected="tokens, or an address that only this machine can reach",
            next_step="pass a token file with --token-file, or use 127.0.0.1",
        )
    return is_local


def check_tls(cert: Path | None, key: Path | None) -> None:
    """Refuse a certificate without its key, and a key without its certificate.

    Raises:
        InputError: one of the two is missing, or is not a file.
    """
    if (cert is None) != (key is None):
        raise InputError(
            where="TLS",
            found=f"a {'private key' if cert is None else 'certificate'} alone",
            expected="both files, or neither",
            next_step="give --tls-cert and --tls-key",
        )
    for path in (cert, key):
        if path is not None and not path.is_file():
            raise InputError(
                where=path,
                found="no such file",
                expected="a PEM file",
                next_step="check the path",
            )


def check_models(models: list[Path], head: Path | None, web: Path | None) -> None:
    """Check the models, the head and the folder of static files.

    Raises:
        InputError: neither a model nor a folder, two models of one name, a head for several models,
            or no such folder.
    """
    names = [path.stem for path in models]
    found = expected = ""
    if not models and web is None:
        found, expected = "no model", "a model.onnx, or a folder of static files"
    elif len(names) > len(set(names)):
        found, expected = f"two models named {max(names, key=names.count)}", "different names"
    elif head is not None and len(models) != 1:
        found, expected = f"{len(models)} models and one head", "one model"
    elif web is not None and not web.is_dir():
        found, expected = f"no folder {web}", "a folder of static files"
    if found:
        raise InputError(
            where="serve", found=found, expected=expected, next_step="change the command"
        )
