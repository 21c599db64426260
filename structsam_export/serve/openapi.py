"""The API, described in OpenAPI's form; `tests/serve` compares it with what is answered."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from structsam_export import __version__
from structsam_export.serve.requests import EverythingRequest, PredictRequest, RemoteRequest, TokensRequest

REF = "#/components/schemas/"
REASONS = {
    "400": "No picture, no JSON, or a damaged file.",
    "401": "The token is missing or wrong.",
    "403": "A page of another origin.",
    "404": "The picture or the export is not here.",
    "408": "The body came too slowly.",
    "413": "The body or the picture is too large.",
    "415": "Another format.",
    "422": "What was asked for is not possible.",
    "429": "Too much at once; Retry-After says when to come again.",
    "503": "It took too long.",
}
NUMBER, TEXT = {"type": "number"}, {"type": "string"}
BYTES = "application/octet-stream"
IMAGE = {"name": "image", "in": "query", "required": True, "schema": TEXT, "description": "A picture's name."}
HEAD = {
    "image": {"type": "string", "description": "The picture's name, for later questions."},
    "export": TEXT,
    "width": {"type": "integer"},
    "height": {"type": "integer"},
    "total_ms": {"type": "number", "description": "From joining the line to the answer."},
}
MASK = {
    "score": {"type": "number", "description": "The model's own guess of the mask's IoU."},
    "area": {"type": "integer", "description": "Pixels."},
    "bbox": {"type": "array", "items": NUMBER, "description": "x, y, width, height."},
    "segmentation": {"type": "object", "description": "COCO's run lengths: size (h, w), counts."},
    "png": {"type": "string", "description": "In its place, with encoding png."},
}


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    kinds: list[Any] = [
        (kind, "validation") for kind in (PredictRequest, EverythingRequest, TokensRequest, RemoteRequest)
    ]
    _, found = models_json_schema(kinds, ref_template=REF + "{model}")
    schemas = {**found["$defs"], **_answers()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "structsam-export serve", "version": __version__},
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
        "paths": _paths(),
    }


def _answers() -> dict[str, Any]:
    masks = {"type": "array", "items": {"$ref": REF + "Mask"}}
    embedded = {**HEAD, "cached": {"type": "boolean"}, "embed_ms": NUMBER}
    forms: dict[str, dict[str, Any]] = {
        "Failure": {"error": TEXT},
        "Embedded": embedded,
        "Predicted": {**embedded, "masks": masks, "decode_ms": NUMBER},
        "Everything": {**embedded, "masks": masks, "decode_ms": NUMBER},
    }
    integers = {"type": "array", "items": {"type": "integer"}}
    forms["Tokens"] = {
        "image": TEXT,
        "export": TEXT,
        "cached": {"type": "boolean"},
        "grid": {**integers, "description": "Rows and columns of tokens."},
        "layers": {"type": "array", "items": {"$ref": REF + "TokenMap"}},
        "total_ms": NUMBER,
    }
    forms["TokenMap"] = {
        "block": {"type": "integer"},
        "kind": {"type": "string", "description": "merge, grid (from this block on), keys or mlp (left out)."},
        "window": {"type": "integer", "description": "Side of the attention windows in tokens; 0: global."},
        "groups": {**integers, "description": "Row by row: tokens of one number are treated as one."},
    }
    mask = {**MASK, "low_res": TEXT, "stability": NUMBER, "point": {"type": "array", "items": NUMBER}}
    made = {name: {"type": "object", "properties": of, "required": [*of]} for name, of in forms.items()}
    return {**made, "Mask": {"type": "object", "properties": mask, "required": ["score", "area", "bbox"]}}


def _paths() -> dict[str, Any]:
    export = {"name": "export", "in": "query", "schema": TEXT, "description": "An export's name."}
    form = {"name": "format", "in": "query", "schema": {"enum": ["json", "npy"]}}
    file = {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
    return {
        "/v1/embed": {"post": _post("Embed a picture", file, "Embedded") | {"parameters": [export, form]}},
        "/v1/predict": {
            "post": _post("Masks of one object", _json("PredictRequest", "RemoteRequest"), "Predicted"),
        },
        "/v1/everything": {"post": _post("Masks of all objects", _json("EverythingRequest"), "Everything")},
        "/v1/tokens": {"post": _post("Tokens that are treated as one", _json("TokensRequest"), "Tokens")},
        "/v1/embedding": {
            "get": _get("An embedding, float32, little-endian, (1, C, h, w)", BYTES) | {"parameters": [export, IMAGE]}
        },
        "/v1/decoder": {"get": _get("An export's decoder, an ONNX file", BYTES) | {"parameters": [export]}},
        "/v1/models": {"get": _get("Exports as X-AnyLabeling lists models")},
        "/v1/exports": {"get": _get("Exports, and the limits of the server")},
        "/healthz": {"get": _get("Whether requests are taken")},
        "/metrics": {"get": _get("Figures for Prometheus", "text/plain")},
        "/openapi.json": {"get": _get("This document")},
    }


def _json(*names: str) -> dict[str, Any]:
    schemas = [{"$ref": REF + name} for name in names]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _post(summary: str, body: dict[str, Any], answer: str) -> dict[str, Any]:
    failure = {"application/json": {"schema": {"$ref": REF + "Failure"}}}
    refusals = {status: {"description": why, "content": failure} for status, why in REASONS.items()}
    right = {"description": "Done.", "content": {"application/json": {"schema": {"$ref": REF + answer}}}}
    return {"summary": summary, "requestBody": body, "responses": {"200": right, **refusals}}


def _get(summary: str, kind: str = "application/json") -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "Done.", "content": {kind: {}}}}}
