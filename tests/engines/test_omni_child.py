"""What is told of a child that is gone without an answer."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fa_tuner.engines.vllm_omni.child import how_it_ended, last_line


@pytest.mark.parametrize(
    ("code", "words"),
    [(-signal.SIGKILL, "was killed by SIGKILL"), (-signal.SIGABRT, "was killed by SIGABRT"), (0, "ended with 0"),
     (3, "ended with 3")],
)  # fmt: skip
def test_how_it_ended(code: int, words: str) -> None:
    assert how_it_ended(code) == words


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("INFO a\nValueError: no such thing\nINFO bye\n", "ValueError: no such thing"),
        ("an error\n  Fatal Python error: Aborted  \nINFO bye\n", "Fatal Python error: Aborted"),
        ("terminate called\n  what(): out of blocks\nINFO bye\n", "what(): out of blocks"),
        ("INFO a\nINFO bye\n\n", "INFO bye"),
        ("", "it wrote nothing"),
    ],
)
def test_the_line_that_says_most(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "log").write_text(text)
    assert last_line(tmp_path / "log") == line


def test_a_log_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\xff" * 50_000 + b"\nError \x1b[31mred" + b"x" * 1000)
    said = last_line(tmp_path / "log")
    assert said.startswith("Error ") and said.isprintable() and len(said) == 400
