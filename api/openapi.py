"""The OpenAPI document; `make openapi` renews the committed one, docs/openapi.json."""

from __future__ import annotations

import json
from typing import Any

from .access import COOKIE
from .problems import MEDIA_TYPE


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's own document, with problem documents under their media type and the ways in which a request may bring a
    key; none is needed where the service is open."""
    for operations in document["paths"].values():
        for operation in operations.values():
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
