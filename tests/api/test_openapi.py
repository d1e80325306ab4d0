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
            assert operation["responses"].keys() >= {"422", "500", "503"}, name
            done = [response for status, response in operation["responses"].items() if status.startswith("2")]
            assert done and all(response["content"] for response in done), name
            for content in (content for response in done for content in response["content"].values()):
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


def test_nothing_of_a_request_may_be_null() -> None:
    """What a client leaves out it does not send."""
    for name, operation in operations():
        bodies = operation.get("requestBody", {}).get("content", {}).values()
        for sent in (*operation.get("parameters", []), *bodies):
            assert not nulls(sent["schema"], set()), name


def nulls(schema: Any, known: set[str]) -> bool:
    """Whether null is a value somewhere in it."""
    if isinstance(schema, list):
        return any(nulls(each, known) for each in schema)
    if not isinstance(schema, dict):
        return False
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name and name not in known:
        known.add(name)
        return nulls(DOCUMENT["components"]["schemas"][name], known)
    null = schema.get("type") == "null" or schema.get("default", ...) is None
    return null or any(nulls(each, known) for each in schema.values())
