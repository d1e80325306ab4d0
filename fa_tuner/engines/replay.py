"""The replay engine: answers from a recorded landscape, so that search is run and tested without a device."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from fa_tuner.domain.errors import ConflictError, EngineError, UsageError
from fa_tuner.domain.policy import NATIVE, SkipPolicy
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import CellCall, Description, Engine, Generation, Prefix, Shadow
from fa_tuner.engines.landscape import Landscape, named
from fa_tuner.engines.prefixes import step_rows

_FREE = {"model", "revision", "prompts", "holdout", "seeds", "options"}  # may differ; prompts and seeds are looked up
_DRIFT_GENERATIONS = 100.0
_Steps = dict[str, "_Steps"]  # by what a step runs in, those that were run after it


@dataclass(frozen=True)
class LatencyNoise:
    """What is multiplied onto recorded times: a normal factor of relative width `spread`, a drift that approaches
    1 + `drift` over some hundred generations, and with probability `outliers` a factor between 1.5 and 3."""

    spread: float = 0.0
    drift: float = 0.0
    outliers: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("spread", 0.5), ("drift", 10.0), ("outliers", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise UsageError(f"replay option noise: {name} is {value!r}; it must be a number between 0 and {most}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise UsageError(f"replay option noise: seed is {self.seed!r}; it must be a whole number, 0 or above")

    @classmethod
    def parse(cls, spec: str | Mapping[str, Any]) -> LatencyNoise:
        """Read "spread=0.05,drift=0.1,outliers=0.05,seed=1", or the same as a mapping; what is absent is 0."""
        pairs: dict[str, Any] = {}
        if isinstance(spec, Mapping):
            pairs.update(spec)
        elif isinstance(spec, str):
            for part in spec.split(",") if spec.strip() else []:
                name, _, text = (piece.strip() for piece in part.partition("="))
                if name in pairs:
                    raise UsageError(f"replay option noise: {name} is given twice")
                try:
                    pairs[name] = int(text) if name == "seed" else float(text)
                except ValueError:
                    raise UsageError(f"replay option noise: {part[:40]!r} is not of the form name=number") from None
        else:
            raise UsageError("replay option noise must be text such as spread=0.05,seed=1")
        names = [known.name for known in fields(cls)]
        if odd := set(pairs) - set(names):
            raise UsageError(f"replay option noise: {str(odd.pop())[:40]!r} is unknown; choose of {', '.join(names)}")
        return cls(**pairs)

    def factor(self, rng: random.Random, generation: int) -> float:
        """The factor of the `generation`-th time, from three draws of `rng`."""
        normal, chance, height = rng.gauss(0.0, 1.0), rng.random(), rng.random()
        drifted = 1.0 + self.drift * -math.expm1(-generation / _DRIFT_GENERATIONS)
        return max(0.2, 1.0 + self.spread * normal) * drifted * (1.5 + 1.5 * height if chance < self.outliers else 1.0)


class ReplayEngine(Engine):
    """Generates nothing: looks each policy up in the landscape file that `workload.model` names.

    Options: `noise`, see `LatencyNoise`; `latency`, `projected` (default) or `measured`, which says how the times
    given are to be taken. It says of a resumed run what an engine with endless memory would have reused of it.
    """

    def __init__(
        self, landscape: Landscape, noise: LatencyNoise, latency: Literal["measured", "projected"], digest: str
    ) -> None:
        self._landscape: Landscape | None = landscape
        self._noise, self._rng, self._generations = noise, random.Random(noise.seed), 0  # noqa: S311 - no secret
        self._kept: dict[Case, _Steps] = {}
        record = landscape.environment
        self._description = Description(
            engine="replay",
            grid=landscape.grid,
            calls_per_cell=record["calls_per_cell"],
            dtypes=landscape.dtypes,
            latency=latency,
            operator="replayed",
            device=record["device"],
            pipeline=record["pipeline"],
            versions={**record["versions"], "landscape": digest},
            resumes=True,
            shadows=landscape.has_shadows,
        )

    @classmethod
    def unavailable_because(cls) -> str | None:
        return None

    @classmethod
    def open(cls, workload: Workload, options: Mapping[str, Any]) -> ReplayEngine:
        """As the contract says, and:

        Raises:
            DocumentError: the file is not a landscape.
            ConflictError: the workload is not the recorded one.
        """
        if odd := sorted(set(options) - {"noise", "latency"}):
            raise UsageError(f"engine replay has no option {odd[0][:40]!r}; it takes noise and latency")
        noise = LatencyNoise.parse(options.get("noise", ""))
        latency = options.get("latency", "projected")
        if latency not in ("measured", "projected"):
            raise UsageError(f"replay option latency is {str(latency)[:40]!r}; choose measured or projected")
        landscape = Landscape.read(workload.model)
        _check_same(workload, landscape)
        with Path(workload.model).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        return cls(landscape, noise, latency, digest)

    @staticmethod
    def recorded_workload(path: str | Path) -> Workload:
        """The workload that the landscape at `path` was recorded for, with `path` as its model: what `open` takes.

        Raises:
            NotFoundError, DocumentError: as `Landscape.read`.
        """
        return replace(Landscape.read(path).workload, model=str(path))

    def describe(self) -> Description:
        return self._description

    def generate(
        self, policy: SkipPolicy, case: Case, prefix: Prefix = "none", shadows: Sequence[Shadow] = ()
    ) -> Generation:
        landscape = self._landscape
        if landscape is None:
            raise EngineError("engine replay is closed; open it again")
        grid = self._description.grid
        policy = policy.on(grid)
        quality = landscape.record.quality(policy, case)
        if quality is None:
            raise EngineError(_not_recorded(policy, case, landscape))
        model = landscape.latency
        factor = self._noise.factor(self._rng, self._generations)
        self._generations += 1
        start = self._shared(case, step_rows(policy, grid.steps), prefix)
        executed = 1.0 - start / grid.steps
        denoise = model.native_denoise_seconds * landscape.relative_latency(policy) * factor * executed
        other = model.native_end_to_end_seconds - model.native_denoise_seconds
        calls = self._calls(policy)
        reused = Counter({cell: count for cell, count in calls.items() if cell[0] < start})
        return Generation(
            frames=None,
            calls=calls - reused,
            denoise_seconds=denoise,
            end_to_end_seconds=denoise + other,
            phases={"denoise": denoise, "other": other},
            recorded=quality,
            reused_steps=start,
            reused_calls=reused,
            shadows=self._answers(shadows, case, start) if policy.is_native else {},  # they were recorded beside native
        )

    def close(self) -> None:
        self._landscape = None

    def _shared(self, case: Case, rows: Sequence[str], prefix: Prefix) -> int:
        """How many of the first steps are kept from earlier runs; those of this one are kept now."""
        if prefix == "none":
            return 0
        shared, steps = 0, self._kept.setdefault(case, {})
        for done, row in enumerate(rows[:-1], 1):
            if row in steps and shared == done - 1:
                shared = done
            steps = steps.setdefault(row, {})
        return shared if prefix == "reuse" else 0

    def _answers(self, shadows: Iterable[Shadow], case: Case, start: int) -> dict[Shadow, float]:
        assert self._landscape is not None
        found = {shadow: self._landscape.shadow(shadow, case) for shadow in shadows if shadow.step >= start}
        return {shadow: value for shadow, value in found.items() if value is not None}

    def _calls(self, policy: SkipPolicy) -> Counter[CellCall]:
        grid, count = self._description.grid, self._description.calls_per_cell
        steps, layers = set(policy.quantized_steps(grid)), set(policy.quantized_layers(grid))
        if policy.is_native:
            steps.clear()
        return Counter({
            (step, layer, policy.dtype if step in steps and layer in layers else NATIVE): count
            for step in range(grid.steps)
            for layer in grid.layers
        })  # fmt: skip


def _not_recorded(policy: SkipPolicy, case: Case, landscape: Landscape) -> str:
    if case not in landscape.record.cases:
        return f"{named(case)} is not recorded; the landscape has {_listed(landscape.record.cases)}"
    if not policy.is_native and policy.dtype not in landscape.dtypes:
        return f"dtype {policy.dtype} is not recorded; the landscape has {', '.join(landscape.dtypes)}"
    return (
        f"policy {policy.key} is not recorded for {named(case)}; the landscape has {landscape.size} policies, "
        "so record this one too, or search among the recorded ones"
    )


def _check_same(workload: Workload, landscape: Landscape) -> None:
    """A record answers only for what was recorded."""
    recorded = landscape.workload
    differing = [
        f"{known.name} {getattr(recorded, known.name)!r}, not {getattr(workload, known.name)!r}"
        for known in fields(Workload)
        if known.name not in _FREE and getattr(recorded, known.name) != getattr(workload, known.name)
    ]
    if differing:
        raise ConflictError(
            f"landscape {workload.model!r} was recorded with {'; '.join(differing)}; "
            "leave these out to take what is recorded"
        )
    for case in workload.cases + workload.holdout_cases:
        if case not in landscape.record.cases:
            raise ConflictError(
                f"{named(case)} is not recorded; landscape {workload.model!r} has {_listed(landscape.record.cases)}, "
                "so leave prompts and seeds out to take these"
            )


def _listed(cases: tuple[Case, ...]) -> str:
    return "; ".join(map(named, cases[:5])) + (f"; and {len(cases) - 5} more" if len(cases) > 5 else "")
