"""The OpenAPI document is complete, and the committed one is this program's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fa_tuner_api.openapi import snapshot

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
DOCUMENT = json.loads(snapshot())


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def test_the_committed_document_is_this_programs() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == snapshot(), (
        "the API changed: `make openapi` renews docs/openapi.json"
    )


def test_every_operation_is_described() -> None:
    for name, operation in operations():
        assert operation["summary"] and operation["tags"], name
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                ((media_type, content),) = response["content"].items()
                assert media_type == "application/problem+json", name
                assert "Problem" in str(content["schema"]), name
        if "/api/" in name:
            assert operation["responses"].keys() >= {"200", "422", "500", "503"}, name
            for content in operation["responses"]["200"]["content"].values():
                assert content["schema"], name


def test_every_parameter_is_typed() -> None:
    for name, operation in operations():
        for parameter in operation.get("parameters", []):
            schema = parameter["schema"]
            assert schema.get("type") or schema.get("anyOf") or schema.get("$ref") or schema.get("enum"), name


def test_no_number_of_an_answer_may_be_null() -> None:
    """But those of a workload that stand for the model's own value."""
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for key, value in schema.get("properties", {}).items():
            kinds = {kind.get("type") for kind in value.get("anyOf", [])}
            if name != "Workload" and kinds & {"number", "integer"}:
                assert "null" not in kinds, f"{name}.{key}"
