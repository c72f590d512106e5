"""The server's interface as an OpenAPI document, whose request is the schema that requests are held against.

Source of the form: OAI/OpenAPI-Specification, versions/3.1.0.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from runtime_py.serving import request
from runtime_py.version import VERSION

SHARED = "#/components/schemas/"
JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"
CHAT_REFUSALS = (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)

Json = Mapping[str, Any]

TEXTS: Json = {"type": ["string", "null"]}
WHOLE: Json = {"type": "integer", "minimum": 0}
SECONDS: Json = {"type": "number", "minimum": 0}


def _object(properties: Json, closed: bool = True) -> dict[str, Any]:
    """An object that has all of these keys; more of them unless it is closed."""
    return {"type": "object", "required": list(properties), "properties": properties, "additionalProperties": not closed}


ERROR = _object(
    {"error": _object({"message": {"type": "string"}, "type": {"type": "string"}, "param": TEXTS, "code": TEXTS})}
)
MODEL = _object(
    {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": WHOLE,
        "owned_by": {"type": "string"},
        "family": {"type": "string"},
        "variant": {"type": "string"},
        "target": {"type": "string"},
        "precision": {"type": "string"},
        "bytes": {**WHOLE, "description": "of the package's files"},
        "max_model_len": WHOLE,
        "max_images": {**WHOLE, "description": "pictures of one request, of which a model may take fewer than the server"},
        "max_image_bytes": WHOLE,
        "licence": TEXTS,
        "manifest": {"type": "string", "pattern": "^sha256:"},
        "verification": {**TEXTS, "description": "the verdict of the parity check that ended the export"},
        "waivers": {**WHOLE, "description": "checks that the export was told to pass over"},
    }
)
MODELS = _object({"object": {"const": "list"}, "data": {"type": "array", "items": {"$ref": f"{SHARED}Model"}}})
HEALTH = _object(
    {
        "status": {"const": "ok"},
        "model": {"type": "string"},
        "edgeproof": {"type": "string"},
        "slots": WHOLE,
        "busy": WHOLE,
        "queued": WHOLE,
        "notice": {**TEXTS, "description": "why answers share no decoder calls"},
        "key_needed": {"type": "boolean", "description": "whether /v1 wants an API key"},
    }
)
USAGE = _object(
    {
        "prompt_tokens": {**WHOLE, "description": "image rows counted"},
        "completion_tokens": WHOLE,
        "total_tokens": WHOLE,
        "prompt_tokens_details": _object({"cached_tokens": WHOLE}),
    }
)
TIMINGS = {
    **_object(
        {
            "queue_seconds": {**SECONDS, "description": "waiting for a slot"},
            "image_seconds": {**SECONDS, "description": "preprocessing and vision encoder; 0 when every picture was known"},
            "prefill_seconds": {**SECONDS, "description": "reading the prompt"},
            "first_token_seconds": {**SECONDS, "description": "from the request's preparation to the first token"},
            "decode_seconds": {**SECONDS, "description": "all decoder calls after the prefill"},
            "decode_steps": {**WHOLE, "description": "how many they were"},
        }
    ),
    "description": "where the answer's time went; an extension of OpenAI's interface",
}
COMPLETION = _object(
    {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": WHOLE,
        "model": {"type": "string"},
        "choices": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": _object(
                {
                    "index": {"const": 0},
                    "message": _object({"role": {"const": "assistant"}, "content": {"type": "string"}, "refusal": TEXTS}),
                    "logprobs": {"type": ["object", "null"]},
                    "finish_reason": {"enum": ["stop", "length"]},
                }
            ),
        },
        "usage": {"$ref": f"{SHARED}Usage"},
        "timings": {"$ref": f"{SHARED}Timings"},
    }
)


def document(model: str) -> dict[str, Any]:
    """The whole document, version 3.1, of a server of this model."""
    asked = json.loads(json.dumps(request.schema().root).replace('"#/$defs/', f'"{SHARED}'))
    asked["properties"]["model"]["const"] = model
    schemas = {
        **asked.pop("$defs"),
        "ChatRequest": asked,
        "Completion": COMPLETION,
        "Error": ERROR,
        "Health": HEALTH,
        "Model": MODEL,
        "Models": MODELS,
        "Timings": TIMINGS,
        "Usage": USAGE,
    }
    key: dict[str, Any] = {"security": [{"key": []}, {}]}
    chat = {
        **key,
        "operationId": "chat",
        "summary": "An answer, whole or as a stream of chat.completion.chunk events that ends with [DONE]",
        "requestBody": {"required": True, "content": {JSON: {"schema": {"$ref": f"{SHARED}ChatRequest"}}}},
        "responses": {
            "200": {
                "description": "the answer",
                "content": {JSON: {"schema": {"$ref": f"{SHARED}Completion"}}, EVENTS: {}},
            },
            **_refusals(*CHAT_REFUSALS),
        },
    }
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgeproof serve",
            "version": VERSION,
            "summary": "OpenAI's chat interface over a package of a vision-language model",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/chat/completions": {"post": chat},
            "/v1/models": {"get": {**_get("models", "The model that is served", "Models", 401), **key}},
            "/v1/models/{name}": {
                "get": {**_get("model", "The same by its name", "Model", 401, 404), **key, "parameters": [name]}
            },
            "/health": {"get": _get("health", "What the server is doing", "Health")},
            "/metrics": {"get": _get("metrics", "Counters in Prometheus' text form", None)},
        },
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _get(name: str, what: str, schema: str | None, *refusals: int) -> dict[str, Any]:
    content = {TEXT: {"schema": {"type": "string"}}} if schema is None else {JSON: {"schema": {"$ref": f"{SHARED}{schema}"}}}
    answers = {"200": {"description": what, "content": content}, **_refusals(*refusals)}
    return {"operationId": name, "summary": what, "responses": answers}


def _refusals(*statuses: int) -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": f"{SHARED}Error"}}}
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
