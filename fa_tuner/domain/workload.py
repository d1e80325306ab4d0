"""What is generated, in full: two runs of one workload differ in nothing but the policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from fa_tuner.domain.errors import DocumentError, UsageError

MAX_PROMPT_CHARACTERS = 8192
_LISTS = {"prompts": str, "holdout": str, "seeds": int}
_WHOLE = ("height", "width", "frames", "steps")
_REALS = ("guidance", "guidance_2", "flow_shift", "boundary_ratio")
_OPTIONAL = ("revision", "guidance_2", "flow_shift", "boundary_ratio", "image")


def fingerprint_of(document: Mapping[str, Any]) -> str:
    """SHA-256 over canonical JSON, as 16 hexadecimal digits."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Case:
    """One generation's own input: a prompt and a seed."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Workload:
    """A model and everything about a request that the policy is tuned for.

    `prompts` are searched on, `holdout` only checks finalists; each is run under every seed. Sizes are in
    pixels. `image` is the SHA-256 of the conditioning picture for image-to-video, else None. `None` in
    `flow_shift`, `guidance_2` and `boundary_ratio` leaves the model's own value.
    """

    model: str
    prompts: tuple[str, ...]
    height: int
    width: int
    frames: int
    steps: int
    revision: str | None = None
    task: str = "t2v"
    holdout: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    guidance: float = 5.0
    guidance_2: float | None = None
    negative_prompt: str = ""
    flow_shift: float | None = None
    boundary_ratio: float | None = None
    image: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _REALS:  # 5 and 5.0 are one workload with one fingerprint
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        if not self.model:
            raise UsageError("a workload needs a model; give --model")
        if not self.prompts:
            raise UsageError("a workload needs at least one prompt; give --prompt or --prompts-file")
        for name, prompts in (("prompt", self.prompts), ("held-out prompt", self.holdout)):
            for prompt in prompts:
                if not prompt.strip() or "\0" in prompt or len(prompt) > MAX_PROMPT_CHARACTERS:
                    raise UsageError(
                        f"{name} {prompt[:40]!r} is empty, holds a NUL or exceeds {MAX_PROMPT_CHARACTERS} characters"
                    )
            if len(set(prompts)) != len(prompts):
                raise UsageError(f"a {name} is given twice")
        if shared := set(self.prompts) & set(self.holdout):
            raise UsageError(
                f"prompt {min(shared)[:40]!r} is both searched on and held out; held-out prompts must be new"
            )
        if "\0" in self.negative_prompt or len(self.negative_prompt) > MAX_PROMPT_CHARACTERS:
            raise UsageError(f"the negative prompt holds a NUL or exceeds {MAX_PROMPT_CHARACTERS} characters")
        for what, value, least, most in (
            ("height", self.height, 16, 8192),
            ("width", self.width, 16, 8192),
            ("frames", self.frames, 1, 2048),
            ("steps", self.steps, 1, 1000),
            ("guidance", self.guidance, 0.0, 100.0),
            ("guidance_2", self.guidance_2, 0.0, 100.0),
            ("flow_shift", self.flow_shift, 0.0, 1000.0),
            ("boundary_ratio", self.boundary_ratio, 0.0, 1.0),
        ):
            if value is not None and not least <= value <= most:
                raise UsageError(f"{what} is {value}; it must lie between {least} and {most}")
            if type(least) is int and type(value) is not int:
                raise UsageError(f"{what} is {value!r}; it must be a whole number")
        if (
            not self.seeds
            or len(set(self.seeds)) != len(self.seeds)
            or not all(type(s) is int and 0 <= s < 2**63 for s in self.seeds)
        ):
            raise UsageError("seeds must be different whole numbers, 0 or above")
        if (self.task == "i2v") != (self.image is not None):
            raise UsageError("an image-to-video workload needs --image, and only that kind takes one")

    @property
    def cases(self) -> tuple[Case, ...]:
        """What every policy is measured on."""
        return tuple(Case(prompt, seed) for prompt in self.prompts for seed in self.seeds)

    @property
    def holdout_cases(self) -> tuple[Case, ...]:
        return tuple(Case(prompt, seed) for prompt in self.holdout for seed in self.seeds)

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs (two forwards a step)."""
        return self.guidance > 1.0

    def document(self) -> dict[str, Any]:
        """The workload as plain JSON values."""
        return json.loads(json.dumps(asdict(replace(self, options=dict(self.options)))))  # type: ignore[no-any-return]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Workload:
        """The inverse of `document()`.

        Raises:
            DocumentError: a key that is missing or unknown, or a value of the wrong kind.
            UsageError: a value out of its bounds.
        """
        if unknown := set(document) - {known.name for known in fields(cls)}:
            raise DocumentError(f"workload has the unknown key {min(map(repr, unknown))[:40]}")
        for known in fields(cls):
            if known.name not in document:
                if known.default is MISSING and known.default_factory is MISSING:
                    raise DocumentError(f"workload lacks {known.name!r}")
            elif not _fits(known.name, document[known.name]):
                raise DocumentError(f"workload.{known.name} is {ascii(document[known.name])[:40]}, which it cannot be")
        lists = {name: tuple(document[name]) for name in _LISTS if name in document}
        return cls(**{**document, **lists})

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.document())


def _fits(name: str, value: Any) -> bool:
    """Whether a JSON value is of the kind that the workload's field `name` takes."""
    if value is None:
        return name in _OPTIONAL
    if name in _LISTS:
        return isinstance(value, list | tuple) and all(type(entry) is _LISTS[name] for entry in value)
    if name in _WHOLE:
        return type(value) is int
    if name in _REALS:
        return type(value) in (int, float)
    return isinstance(value, Mapping if name == "options" else str)


def split_holdout(prompts: tuple[str, ...], holdout: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(searched, held out): the given held-out prompts, else the last third of three or more, else none."""
    if holdout or len(prompts) < 3:
        return prompts, holdout
    kept = len(prompts) - len(prompts) // 3
    return prompts[:kept], prompts[kept:]
