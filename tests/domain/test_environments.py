"""Environments of studies, compared."""

from __future__ import annotations

from typing import Any

import pytest

from fa_tuner.domain.study import differing

ENVIRONMENT = {"device": "cpu", "layers": [0, 1], "versions": {"torch": "2.13"}, "settings": {"odd": None}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"device": "npu"}, [("device", "cpu", "npu")]),
        ({"layers": [0, 2]}, [("layers", [0, 1], [0, 2])]),
        (
            {"versions": {"torch": "2.14", "cann": "8.5"}},
            [("versions torch", "2.13", "2.14"), ("versions cann", "absent", "8.5")],
        ),
        ({"versions": {}}, [("versions torch", "2.13", "absent")]),
        ({"settings": {}}, [("settings odd", None, "absent")]),
        ({"more": {"deep": {"down": 1}}}, [("more deep down", "absent", 1)]),
        ({"versions": "none"}, [("versions torch", "2.13", "absent"), ("versions", "absent", "none")]),
    ],
    ids=str,
)
def test_what_differs_is_named(changes: dict[str, Any], expected: list[tuple[str, Any, Any]]) -> None:
    other = {**ENVIRONMENT, **changes}
    assert differing(ENVIRONMENT, other) == expected
    assert sorted(differing(other, ENVIRONMENT)) == sorted((name, b, a) for name, a, b in expected)


def test_what_only_the_first_has() -> None:
    rest = {key: value for key, value in ENVIRONMENT.items() if key != "settings"}
    assert differing(ENVIRONMENT, rest) == [("settings odd", None, "absent")]
