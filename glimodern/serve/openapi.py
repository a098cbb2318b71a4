"""The OpenAPI description of the server."""

from __future__ import annotations

from typing import Any

from glimodern.inference.redaction import STYLES
from glimodern.inference.windows import LONG_TEXTS
from glimodern.version import __version__

from .body import Limits

_STRING, _INTEGER, _NUMBER, _BOOLEAN = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
_STATUSES = {
    "400": "The body is no JSON object.",
    "401": "The bearer token is missing, or another one.",
    "408": "The body did not arrive in time.",
    "413": "The body, a number of texts or labels, or the work asked for is too large.",
    "415": "The content type is not application/json.",
    "422": "A field has a wrong value; the answer names it.",
    "429": "The queue is full; Retry-After says when to try again.",
    "500": "An error of the server; its log has the request's id.",
    "503": "The server is not ready, or did not answer in time.",
}


def openapi(limits: Limits) -> dict[str, Any]:
    """Return the description, with the limits of this server."""
    ready = {"200": _json("Ready.", _ref("Status")), "503": _json("Loading, or draining.", _ref("Status"))}
    described = {
        "/v1/entities": {"post": _post("Find entities.", "EntitiesRequest", "Entities", "EntitiesOfTexts")},
        "/v1/redact": {"post": _post("Replace entities.", "RedactRequest", "Redaction", "RedactionOfTexts")},
        "/v1/models": {"get": _get("Describe the models.", {"200": _json("The models.", _ref("Models"))})},
        "/healthz": {"get": _get("Whether the server runs.", {"200": _json("It runs.", _ref("Status"))}, open_=True)},
        "/readyz": {"get": _get("Whether the models are loaded and warm.", ready, open_=True)},
        "/metrics": {"get": _get("Metrics for Prometheus.", {"200": _plain("text/plain", "Metrics.")})},
        "/": {"get": _get("A page to try the models.", {"200": _plain("text/html", "The page.")}, open_=True)},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "glimodern",
            "version": __version__,
            "description": "Zero-shot named entity recognition. Offsets count Unicode code points; ends are exclusive.",
        },
        "paths": described,
        "components": {
            "schemas": _schemas(limits),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _plain(kind: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": _STRING}}}


def _get(summary: str, answers: dict[str, Any], *, open_: bool = False) -> dict[str, Any]:
    errors = {} if open_ else {"401": _json(_STATUSES["401"], _ref("Error"))}
    return {"summary": summary, "responses": {**answers, **errors}, **({"security": [{}]} if open_ else {})}


def _post(summary: str, body: str, of_text: str, of_texts: str) -> dict[str, Any]:
    answer = _json("Of text: one result. Of texts: one a text, in order.", {"anyOf": [_ref(of_text), _ref(of_texts)]})
    errors = {status: _json(description, _ref("Error")) for status, description in _STATUSES.items()}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
        "responses": {"200": answer, **errors},
    }


def _object(properties: dict[str, Any], required: tuple[str, ...] | None = None, **how: Any) -> dict[str, Any]:
    """Return the schema of an object. required: the properties that it always has; None: all."""
    return {"type": "object", "properties": properties, "required": list(required or properties), **how}


def _schemas(limits: Limits) -> dict[str, Any]:
    label = {"type": "string", "minLength": 1, "maxLength": limits.max_label_length}
    labels = [
        {"type": "array", "items": label, "maxItems": limits.max_labels},
        {"type": "object", "additionalProperties": label, "maxProperties": limits.max_labels},
    ]
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    thresholds = [probability, {"type": "object", "additionalProperties": probability}]
    request = {
        "model": {**_STRING, "description": "Name of a model; by default the first."},
        "adapter": {**_STRING, "description": "Name of an adapter of the model; by default none."},
        "text": {**_STRING, "description": f"One text, of at most {limits.max_words} words."},
        "texts": {"type": "array", "items": _STRING, "maxItems": limits.max_texts, "description": "Several texts."},
        "labels": {
            "anyOf": [*labels, {"type": "array", "items": {"anyOf": labels}}],
            "description": "Labels, or an object {label: description}; or one of these for each of texts.",
        },
        "threshold": {
            "anyOf": [*thresholds, {"const": "calibrated"}, {"type": "array", "items": {"anyOf": thresholds}}],
            "default": 0.5,
            "description": 'Minimum probability, exclusive; or one by label, where "*" stands for the others; or one '
            "of these for each of texts; or the calibrated ones.",
        },
        "flat": {**_BOOLEAN, "default": True, "description": "No overlapping entities; else nested ones too."},
        "multi_label": {**_BOOLEAN, "default": False, "description": "Several labels for one span."},
        "top_k": {"type": "integer", "minimum": 1, "description": "Most entities of a text."},
        "long_texts": {"enum": list(LONG_TEXTS), "default": LONG_TEXTS[0]},
        "window": {
            "anyOf": [{"type": "integer", "minimum": 1}, {"const": "sentence"}],
            "description": "Most words of a window.",
        },
        "context": {"type": "integer", "minimum": 0, "description": "Words of context on each side of a span."},
        "labels_per_prompt": {"type": "integer", "minimum": 1, "description": "Most labels to ask at a time."},
        "timeout": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": limits.timeout,
            "default": limits.timeout,
            "description": "Seconds after which the request is given up.",
        },
    }
    style = {"enum": list(STYLES), "default": STYLES[0]}
    wholly = {name: schema for name, schema in request.items() if name not in ("flat", "multi_label", "top_k")}
    entity = {
        "start": {**_INTEGER, "description": "In code points of the text."},
        "end": {**_INTEGER, "description": "In code points, exclusive."},
        "text": _STRING,
        "label": _STRING,
        "score": probability,
    }
    replaced = {**entity, "replacement": _STRING, "redacted_start": _INTEGER, "redacted_end": _INTEGER}
    read = {
        "windows": {**_INTEGER, "description": "Windows that the text was read in."},
        "words_cut": {**_INTEGER, "description": "Words at the text's end that were not read."},
    }
    shared = {"model": _STRING, "warnings": {"type": "array", "items": _STRING}}
    found = {"entities": {"type": "array", "items": _ref("Entity")}, **read}
    redacted = {"text": _STRING, "entities": {"type": "array", "items": _ref("ReplacedEntity")}, **read}
    error = {
        "status": _INTEGER,
        "field": {"type": ["string", "null"]},
        "expected": {"type": ["string", "null"]},
        "got": {"type": ["string", "null"]},
        "message": _STRING,
    }
    model = {
        "name": _STRING, "default": _BOOLEAN, "dtype": _STRING, "max_words": _INTEGER,
        "max_width": {"type": ["integer", "null"]}, "max_types": _INTEGER, "calibrated": _BOOLEAN,
        "adapters": {"type": "array", "items": _STRING},
    }  # fmt: skip
    one_of = [{"required": ["text"]}, {"required": ["texts"]}]

    def of_texts(result: dict[str, Any]) -> dict[str, Any]:
        results = {"type": "array", "items": {"anyOf": [_object(result), _ref("Error")]}}
        return _object({**shared, "results": results})

    return {
        "EntitiesRequest": _object(request, ("labels",), oneOf=one_of, additionalProperties=False),
        "RedactRequest": _object({**wholly, "style": style}, ("labels",), oneOf=one_of, additionalProperties=False),
        "Entity": _object(entity),
        "ReplacedEntity": _object(replaced),
        "Entities": _object({**shared, **found}),
        "EntitiesOfTexts": of_texts(found),
        "Redaction": _object({**shared, **redacted}),
        "RedactionOfTexts": of_texts(redacted),
        "Error": _object({"error": _object(error)}),
        "Models": _object({"models": {"type": "array", "items": _object(model)}}),
        "Status": _object({"status": {"enum": ["ok", "loading", "ready", "draining"]}}),
    }
