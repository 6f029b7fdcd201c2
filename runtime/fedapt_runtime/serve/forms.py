"""The bodies of `POST /v1/classify`: a form of files, or JSON with base64."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from fedapt_runtime.errors import RequestError
from fedapt_runtime.options import ClassifyOptions
from fedapt_runtime.serve.body import join
from fedapt_runtime.serve.limits import MIB, Limits
from fedapt_runtime.serve.service import Upload

MAX_JSON = 16 * MIB
FIELDS = ("model", "top_k", "flag_unknown")


@dataclass(frozen=True)
class Question:
    """The content of a request to `POST /v1/classify`.

    Attributes:
        images: the uploaded files, in order.
        model: name of the model; None for the first.
        options: `top_k` and `flag_unknown`.
    """

    images: tuple[Upload, ...]
    model: str | None
    options: ClassifyOptions


async def read_question(
    request: Request, chunks: AsyncGenerator[bytes, None], limits: Limits
) -> Question:
    """Read a body by its content type.

    Raises:
        RequestError: 415 for another type, 400 for a malformed body, 413 for too many parts,
            422 for fields of a wrong name or type.
    """
    kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, chunks, limits)
    if kind == "application/json":
        return _read_json(parse_json(await join(chunks)))
    raise RequestError(
        415,
        where="Content-Type",
        found=repr(kind),
        expected="multipart/form-data or application/json",
        next_step="send files as a form, or base64 in JSON",
    )


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    The parser blocks all other threads and may need twenty times the memory of the text, so JSON
    has its own limit.

    Raises:
        RequestError: 400, the body is not a JSON object; 413, it is too long.
    """
    if len(body) > MAX_JSON:
        raise malformed("the body", f"JSON of {len(body):,} bytes, over {MAX_JSON:,}", 413)
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise malformed(
            "the body", f"text that is not JSON ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(fields, dict):
        raise malformed("the body", f"JSON of a {type(fields).__name__}, not an object")
    return fields


def malformed(where: str, found: str, status: int = 400) -> RequestError:
    """The error for a body that cannot be parsed."""
    return RequestError(
        status,
        where=where,
        found=found,
        expected="a body that /openapi.json describes",
        next_step="correct the request",
    )


class _FormInMemory(MultiPartParser):
    """Keeps files in memory, within the limit for bodies, because the disk may be read-only."""

    spool_max_size = 0  # SpooledTemporaryFile: 0 never writes to the disk


async def _read_form(
    request: Request, chunks: AsyncGenerator[bytes, None], limits: Limits
) -> Question:
    parser = _FormInMemory(
        request.headers, chunks, max_files=limits.max_images + 1, max_fields=len(FIELDS)
    )
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError) as error:
        raise malformed("the form", str(error) or type(error).__name__) from error
    images: list[Upload] = []
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            with value.file:
                images.append(Upload(value.filename or f"#{len(images)}", value.file.read()))
        elif name in fields:
            raise malformed(name, "the field twice", 422)
        else:
            fields[name] = value
    if (text := fields.get("top_k")) is not None:
        fields["top_k"] = int(text) if text.isdecimal() and len(text) < 10 else text
    if (text := fields.get("flag_unknown")) is not None:
        fields["flag_unknown"] = {"true": True, "false": False}.get(text, text)
    return _question(tuple(images), fields)


def _read_json(fields: dict[str, Any]) -> Question:
    images = fields.pop("images", None)
    if not isinstance(images, list):
        raise malformed("images", f"a {type(images).__name__}, not an array", 422)
    uploads = tuple(_read_image(image, i) for i, image in enumerate(images))
    return _question(uploads, fields)


def _read_image(image: Any, index: int) -> Upload:
    where = f"images[{index}]"
    parts = {"data": image} if isinstance(image, str) else image
    if not isinstance(parts, dict) or not {"data"} <= set(parts) <= {"data", "name"}:
        raise malformed(where, "neither base64 nor an object with data and name", 422)
    if not all(isinstance(part, str) for part in parts.values()):
        raise malformed(where, "data or a name that is not a string", 422)
    try:
        data = base64.b64decode(parts["data"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise malformed(where, f"text that is not base64 ({error})", 422) from error
    return Upload(parts.get("name", f"#{index}"), data)


def _question(images: tuple[Upload, ...], fields: dict[str, Any]) -> Question:
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise malformed("the body", f"unknown fields {', '.join(unknown)}", 422)
    top_k = fields.get("top_k", 1)
    if type(top_k) is not int or top_k < 1:
        raise malformed("top_k", f"{top_k!r}, not a whole number of at least 1", 422)
    if not isinstance(fields.get("flag_unknown", False), bool):
        raise malformed("flag_unknown", f"{fields['flag_unknown']!r}, not a boolean", 422)
    if not isinstance(fields.get("model", ""), str):
        raise malformed("model", f"a {type(fields['model']).__name__}, not a string", 422)
    return Question(images, fields.pop("model", None), ClassifyOptions(**fields))
