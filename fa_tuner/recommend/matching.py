"""What is asked for, and in what a stored study differs from it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from fa_tuner.domain.errors import NotFoundError
from fa_tuner.domain.measurement import Requirement
from fa_tuner.domain.study import Difference, Study
from fa_tuner.engines.vllm_omni.npu import generation_in

_NO_FILTER = ("model", "requirement")


@dataclass(frozen=True)
class Question:
    """Which selectors for this model and workload? A field that is None matches any value. `device` is matched word by
    word against the device that a study ran on, its generation (A5) and the device profile of a projected latency;
    `engine_version` is "MAJOR.MINOR"."""

    model: str
    requirement: Requirement | None = None
    dtype: str | None = None
    steps: int | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    revision: str | None = None
    task: str | None = None
    guided: bool | None = None
    device: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    latency_source: str | None = None

    def differences(self, study: Study) -> tuple[Difference, ...]:
        """In what a study of the model differs from what was asked; none where it matches."""
        return tuple(self._differences(study))

    def _differences(self, study: Study) -> Iterator[Difference]:
        for known in fields(self):
            asked = getattr(self, known.name)
            if asked is None or known.name in _NO_FILTER:
                continue
            stored = _stored(study, known.name)
            if known.name == "dtype":
                alike = asked in study.spec.dtypes
            elif known.name == "device":
                alike = _is_of_device(study, asked)
            else:
                alike = asked == stored
            if not alike:
                yield Difference(known.name, asked, stored)


@dataclass(frozen=True)
class Nearest:
    """A study that does not match, and in what it differs."""

    study: Study
    differences: tuple[Difference, ...]


class NoMatchError(NotFoundError):
    """No study matches; `nearest` are those that differ least, the nearest first."""

    def __init__(self, message: str, nearest: tuple[Nearest, ...] = ()) -> None:
        super().__init__(message)
        self.nearest = nearest


def distance(near: Nearest) -> tuple[int, float]:
    """The number of fields that differ, then by how much the numbers among them do (the sum of the logarithms of their
    ratios)."""
    ratios = (
        abs(math.log(d.asked / d.stored))
        for d in near.differences
        if type(d.asked) is int and type(d.stored) is int and d.asked > 0 and d.stored > 0
    )
    return len(near.differences), round(math.fsum(ratios), 9)


def _stored(study: Study, name: str) -> str | int | bool:
    """A study's own value of a field of `Question`."""
    spec = study.spec
    work, environment = spec.workload, spec.environment
    if name == "engine_version":
        version = str((environment.get("versions") or {}).get(environment.get("engine"), ""))
        release = re.match(r"\d+\.\d+", version, re.ASCII)
        return release.group() if release else version or "not recorded"
    if name == "device":
        return " / ".join(filter(None, [str(environment.get("device", "not recorded")), spec.latency_profile]))
    if name == "engine":
        return str(environment.get("engine", "not recorded"))
    if name in ("dtype", "latency_source"):
        return str(getattr(spec, name))
    value: str | int | bool | None = getattr(work, name)
    return "not pinned" if value is None else value


def _is_of_device(study: Study, asked: str) -> bool:
    """Whether what is asked for begins at a word of the device's or profile's name, with or without spaces and dashes
    between letters and digits ("Ascend 950" in "ascend950pr"), or is the device's generation."""
    device, profile = str(study.spec.environment.get("device", "")), study.spec.latency_profile or ""
    parts = re.findall(r"[^\W\d_]+|\d+", asked.casefold())
    if not parts:
        return False
    if (generation := generation_in(device)) is not None and "".join(parts) == generation.casefold():
        return True
    pattern = re.compile(r"(?<![^\W_])" + r"[\s_-]*".join(map(re.escape, parts)))
    return any(pattern.search(text.casefold()) for text in (device, profile))
