"""The interface of the service as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

import fedapt_runtime
from fedapt_runtime.serve.limits import Limits

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_BOOL: Schema = {"type": "boolean"}
_TOP_K: Schema = {"type": "integer", "minimum": 1, "default": 5}
_ERROR = {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}
_OPTIONS = {
    "model": {"type": "string", "description": "a name from /v1/models; the first is the default"},
    "top_k": _TOP_K,
    "flag_unknown": {"type": "boolean", "default": False},
}
_REASONS = {
    "400": "a malformed request",
    "401": "no token of this server",
    "403": "a server without tokens swaps no heads",
    "404": "no such model or version",
    "408": "the body was not complete in time",
    "409": "a head that does not fit the model",
    "413": "over a limit: bytes, or images",
    "415": "another content type, or a content coding",
    "421": "a Host header of another machine, on a server for this machine only",
    "422": "fields of a wrong name or type, a damaged head, or no readable image",
    "500": "the model failed",
    "503": "the server is full; Retry-After says when to repeat the request",
}
_PREDICTION = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "label": {"type": ["string", "null"]},
        "score": {"type": ["number", "null"], "description": "probability of the label"},
        "top_k": {"type": "array", "items": {"type": "array", "prefixItems": [_TEXT, _NUMBER]}},
        "routed_to": {
            "type": ["string", "null"],
            "description": "the domain whose prompt has the largest weight",
        },
        "domain_weights": {"type": "object", "additionalProperties": _NUMBER},
        "error": {"type": ["string", "null"], "description": "why the image could not be read"},
        "unknown_score": {"type": ["number", "null"]},
        "unknown": {"type": ["boolean", "null"]},
    },
    "required": ["name", "label", "score", "top_k", "routed_to", "domain_weights", "error"],
}
_ANSWER = {
    "type": "object",
    "properties": {
        "model": _TEXT,
        "version": _TEXT,
        "predictions": {"type": "array", "items": _PREDICTION},
    },
    "required": ["model", "version", "predictions"],
}
_MODEL = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "version": {"type": "string", "description": "changes with the head"},
        "classes": {"type": "array", "items": _TEXT},
        "domains": {"type": "array", "items": _TEXT},
        "method": _TEXT,
        "precision": _TEXT,
        "backend": _TEXT,
        "flags_unknown": _BOOL,
        "swap_ms": _NUMBER,
    },
    "required": ["name", "version", "classes", "domains"],
}
_TENSOR = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "datatype": {"type": "string", "enum": ["UINT8", "FP32"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
    "required": ["name", "datatype", "shape"],
}
_INFER_REQUEST = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
        "outputs": {"type": "array", "items": {"type": "object"}},
        "parameters": {"type": "object"},
    },
    "required": ["inputs"],
}
_INFER_ANSWER = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "model_name": _TEXT,
        "model_version": _TEXT,
        "outputs": {"type": "array", "items": _TENSOR},
    },
    "required": ["model_name", "outputs"],
}


def describe_api(limits: Limits) -> dict[str, Any]:
    """The OpenAPI 3.1 document, as plain values for JSON, with the limits of this server."""
    image = {
        "oneOf": [
            {"type": "string", "contentEncoding": "base64"},
            {
                "type": "object",
                "properties": {
                    "data": {"type": "string", "contentEncoding": "base64"},
                    "name": _TEXT,
                },
                "required": ["data"],
                "additionalProperties": False,
            },
        ]
    }
    images = {"type": "array", "items": image, "minItems": 1, "maxItems": limits.max_images}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    body = {
        "application/json": _object({"images": images, **_OPTIONS}, ["images"]),
        "multipart/form-data": _object({"image": files, **_OPTIONS}, ["image"]),
    }
    by_model, by_version = [_path("name")], [_path("name"), _path("version")]
    v2, v2_version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    paths = {
        "/v1/classify": {
            "post": _operation(
                f"Classify 1 to {limits.max_images} images, {limits.max_body:,} bytes in all",
                _ANSWER,
                "400 401 404 408 413 415 421 422 500 503",
                body=body,
            )
        },
        "/v1/models": {
            "get": _operation(
                "The served models",
                _object({"models": {"type": "array", "items": _MODEL}}, ["models"]),
                "401 421",
            )
        },
        "/v1/head": {
            "post": _operation(
                "Swap the head of a model; the body is a head file",
                _MODEL,
                "401 403 404 408 409 413 415 421 422 503",
                body={"application/octet-stream": {"type": "string", "format": "binary"}},
                parameters=[{"name": "model", "in": "query", "schema": _TEXT}],
            )
        },
        "/v2": {"get": _operation("The server", {"type": "object"}, "401 421")},
        "/v2/health/live": {"get": _operation("Liveness", {"type": "object"}, "421")},
        "/v2/health/ready": {"get": _operation("Readiness", {"type": "object"}, "421")},
    }
    for path, parameters in ((v2, by_model), (v2_version, by_version)):
        described = {"type": "object", "required": ["name"]}
        paths[path] = {"get": _operation("A model", described, "401 404 421", None, parameters)}
        paths[path + "/ready"] = {
            "get": _operation("Readiness of a model", described, "401 404 421", None, parameters)
        }
        paths[path + "/infer"] = {
            "post": _operation(
                "The graph's outputs for preprocessed images",
                _INFER_ANSWER,
                "400 401 404 408 413 415 421 500 503",
                {"application/json": _INFER_REQUEST},
                parameters,
            )
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "fedapt-runtime", "version": fedapt_runtime.__version__},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
    }


def _object(properties: Schema, required: list[str]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}


def _operation(
    summary: str,
    answer: Schema,
    refusals: str,
    body: dict[str, Schema] | None = None,
    parameters: list[Schema] | None = None,
) -> Schema:
    responses = {"200": _response("success", answer)}
    responses |= {status: _response(_REASONS[status], _ERROR) for status in refusals.split()}
    if "422" in responses and answer is _ANSWER:
        responses["422"] = _response(_REASONS["422"], {"oneOf": [_ANSWER, _ERROR]})
    operation: Schema = {"summary": summary, "responses": responses}
    if body is not None:
        content = {kind: {"schema": schema} for kind, schema in body.items()}
        operation["requestBody"] = {"required": True, "content": content}
    if parameters:
        operation["parameters"] = parameters
    return operation


def _response(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
