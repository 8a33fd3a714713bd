"""The OpenAPI document of the HTTP face, made of the table that the face routes by."""

from __future__ import annotations

import re
from importlib import metadata

from sealane.protocols import json_values
from sealane.protocols.json_values import Json
from sealane.rest.table import EVENTS, Endpoint, Table

VERSION = "3.1.0"
_TENSOR: Json = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {
            "enum": [
                "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
                "FP16", "FP32", "FP64", "BF16", "BYTES",
            ]
        },
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}, "description": "nested or flat; absent for a binary tensor"},
    },
}  # fmt: skip
_SCHEMAS: dict[str, Json] = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "Tensor": _TENSOR,
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                },
            },
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "id": {"type": "string"},
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        },
    },
    "PredictRequest": {
        "type": "object",
        "properties": {
            "signature_name": {"type": "string"},
            "instances": {"type": "array", "minItems": 1, "items": {}},
            "inputs": {},
        },
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    "PredictResponse": {"type": "object", "properties": {"predictions": {"type": "array", "items": {}}, "outputs": {}}},
    "ExamplesRequest": {
        "type": "object",
        "required": ["examples"],
        "properties": {
            "signature_name": {"type": "string"},
            "context": {"type": "object"},
            "examples": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        },
    },
    "ExamplesResponse": {"type": "object", "required": ["results"], "properties": {"results": {"type": "array"}}},
    "Any": {"type": "object"},
}
_BODIES = {
    "infer": ("InferRequest", "InferResponse"),
    "infer_stream": ("InferRequest", "InferResponse"),
    "predict": ("PredictRequest", "PredictResponse"),
    "classify": ("ExamplesRequest", "ExamplesResponse"),
    "regress": ("ExamplesRequest", "ExamplesResponse"),
}
_PUBLIC = frozenset({"/v2/health/live", "/v2/health/ready"})
_BINARY_CODED = "JSON, and binary tensors behind it: Inference-Header-Content-Length is the length of the JSON"


def document(table: Table) -> bytes:
    """The document, as JSON."""
    paths: dict[str, dict[str, Json]] = {}
    for endpoint in table.endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.verb.lower()] = _operation(endpoint)
    bearer = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    return json_values.dump(
        {
            "openapi": VERSION,
            "info": {"title": "Sealane inference", "version": metadata.version("sealane")},
            "security": [{"token": []}],
            "paths": paths,
            "components": {"schemas": _SCHEMAS, "securitySchemes": {"token": bearer}},
        }
    )


def _operation(endpoint: Endpoint) -> dict[str, Json]:
    names = re.findall(r"\{(\w+)\}", endpoint.path)
    last = re.split(r"[/:]", endpoint.path)[-1]
    sent, given = _BODIES.get(last, ("Any", "Any"))
    answer: dict[str, Json] = {"schema": {"$ref": f"#/components/schemas/{given}"}}
    kind = EVENTS.partition(";")[0] if endpoint.streams else "application/json"
    content: dict[str, Json] = {kind: answer}
    if last == "infer":
        content["application/octet-stream"] = {"schema": {"description": _BINARY_CODED}}
    operation: dict[str, Json] = {
        "operationId": _id(endpoint),
        "summary": endpoint.summary,
        "tags": ["TensorFlow Serving" if endpoint.tfserving else "Open Inference Protocol"],
        "description": f"Means {endpoint.method.lstrip('/')}.",
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names],
        "responses": {
            "200": {"description": "the answer", "content": content},
            "default": {
                "description": "a refusal",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if endpoint.verb == "POST":
        body: dict[str, Json] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{sent}"}}}
        if last == "infer":
            body["application/octet-stream"] = {"schema": {"description": _BINARY_CODED}}
        operation["requestBody"] = {"required": sent != "Any", "content": body}
    if endpoint.path in _PUBLIC:
        operation["security"] = []
    return operation


def _id(endpoint: Endpoint) -> str:
    words = [word.strip("{}") for word in re.split(r"[/:]", endpoint.path) if word]
    return "_".join([endpoint.verb.lower(), *words])
