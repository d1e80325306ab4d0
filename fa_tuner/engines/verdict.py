"""What `fa-tune doctor` says of one thing: it works, it cannot, or it cannot be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Verdict:
    """`what` is a stable name; `detail` says the value that was found, why it cannot, and what to install or change."""

    what: str
    verdict: Literal["works", "cannot", "unknown"]
    detail: str = ""


def works(what: str, detail: str) -> Verdict:
    return Verdict(what, "works", detail)


def cannot(what: str, detail: str) -> Verdict:
    return Verdict(what, "cannot", detail)


def unknown(what: str, detail: str) -> Verdict:
    return Verdict(what, "unknown", detail)
