"""The OpenAPI document; `make openapi` renews the committed one, docs/openapi.json."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from .access import COOKIE
from .fields import never_null
from .problems import MEDIA_TYPE

HEALTH = "/healthz"  # which nothing guards
GUARDED = (400, 401, 403, 408, 413, 429)  # what the guard may answer before any other route is looked for
PROBLEM = {"$ref": "#/components/schemas/Problem"}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's own document, with problem documents under their media type and the ways in which a request may bring a
    key; none is needed where the service is open."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            bodies = operation.get("requestBody", {}).get("content", {}).values()
            for sent in (*operation.get("parameters", ()), *bodies):
                never_null(sent["schema"])
            guarded = () if path == HEALTH else GUARDED
            for status in guarded:
                response = {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": PROBLEM}}}
                operation["responses"].setdefault(str(status), response)
            for status, response in operation["responses"].items():
                if int(status) >= 400 and "application/json" in response.get("content", {}):
                    response["content"] = {MEDIA_TYPE: response["content"]["application/json"]}
    document.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
    }
    document["security"] = [{"bearer": []}, {"header": []}, {"session": []}, {}]
    return document


def snapshot() -> str:
    """The document of the application as text that can be compared."""
    from .app import create_app

    return json.dumps(create_app().openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
