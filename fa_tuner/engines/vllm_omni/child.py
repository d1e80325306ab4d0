"""What can be told of a child that is gone without an answer: how it ended, and what it wrote last."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from fa_tuner.documents import one_line

_TAIL_BYTES = 20_000
_LINE_CHARACTERS = 400
_TELLING = re.compile(r"[Ee]rror|Exception|Fatal|what\(\)")


def how_it_ended(code: int | None) -> str:
    """A return code of `subprocess` in words, such as "was killed by SIGSEGV" or "ended with 1"."""
    return f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"


def last_line(log: Path) -> str:
    """The line that says most: the last that names an error, else the last."""
    text = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it wrote nothing"]
    return one_line(([line for line in lines if _TELLING.search(line)] or lines)[-1], _LINE_CHARACTERS)
