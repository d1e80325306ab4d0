"""Policies to measurements, on one open engine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from fa_tuner.domain.errors import EngineError
from fa_tuner.domain.measurement import CaseQuality, Coverage, Latency, Measurement
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Baseline
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import Engine, Generation, Prefix, Shadow
from fa_tuner.evaluate import coverage
from fa_tuner.evaluate.profile import DeviceProfile
from fa_tuner.evaluate.timing import Pair, conclude, finalist_repeats

if TYPE_CHECKING:
    from fa_tuner.engines.base import Frames

NATIVE = SkipPolicy()


class Evaluator:
    """Measures policies against a native baseline that is generated once and kept.

    With a `profile` latency is projected from it; without one it is measured over `repeats` interleaved pairs, or given
    where it is fitted.
    """

    def __init__(
        self,
        engine: Engine,
        workload: Workload,
        profile: DeviceProfile | None,
        repeats: int = 3,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._engine = engine
        self._workload = workload
        self._profile = profile
        self._repeats = repeats
        self._description = engine.describe()
        self._reference: dict[Case, Frames | None] = {}
        self._warm = False
        self._note = note
        self._resuming: bool | None = None  # whether resumed runs were found equal to full ones; None before the first

    def run_baseline(self, shadows: Sequence[Shadow] = ()) -> tuple[Measurement, Baseline]:
        """Generate every searched case natively, twice; the second against the first is the noise floor. Where latency
        is measured the pairs are repeated, and their ratio is what the timing noise makes of no difference at all.

        `shadows` are asked for beside the first; the answers to them stand in the measurement's detail, see
        `shadow_answers`."""
        started = time.perf_counter()
        self.warm_up()
        seen: list[CaseQuality] = []
        coverages: list[Coverage] = []
        rounds: list[list[Pair]] = []
        answers: list[Mapping[Shadow, float]] = []
        for repeat in range(self._rounds):
            row = []
            for case in self._workload.cases:
                asked = () if repeat else shadows
                first, proof = self._generate(NATIVE, case, "keep" if self._profile else "none", asked)
                second, other = self._generate(NATIVE, case)
                coverages += [proof, other]
                row.append(_pair(first, second))
                if repeat == 0:
                    self._reference[case] = first.frames
                    seen.append(self._compare(case, second))
                    answers.append(first.shadows)
            rounds.append(row)
        if self._profile:
            latency = self._profile.project(NATIVE, self._description.grid, self._workload)
        else:
            timed = conclude(rounds, self._description.device)
            latency = replace(timed, relative=1.0, spread=max(timed.spread, abs(timed.relative - 1.0)))
        baseline = Baseline(
            noise_floor_db=min(quality.metrics["psnr_db"] for quality in seen),
            native_seconds=median(sum(p.native for p in row) for row in rounds),
            native_end_to_end_seconds=median(sum(p.native_end_to_end for p in row) for row in rounds),
        )
        given = [shadow for shadow in shadows if all(shadow in answer for answer in answers)]
        detail = {
            "shadows": [
                [shadow.dtype, shadow.step, list(shadow.layers), [answer[shadow] for answer in answers]]
                for shadow in given
            ]
        }  # fmt: skip
        measurement = self._measurement(NATIVE, latency, seen, coverages, started)
        return (replace(measurement, detail=detail) if given else measurement), baseline

    def adopt_baseline(self, frames: Sequence[Frames]) -> None:
        """Take the kept frames of an earlier baseline of this workload and environment, in the order of the cases."""
        self._reference.update(zip(self._workload.cases, frames, strict=True))

    def warm_up(self) -> None:
        """Before any timing: caches, lazy initialisation and clocks settle under one untimed generation."""
        if self._profile is None and not self._warm:
            self._generate(NATIVE, self._workload.cases[0], "keep")
        self._warm = True

    def reference_frames(self) -> list[Frames]:
        """The baseline's frames by case; empty for an engine that answers from a record."""
        frames = [self._reference.get(case) for case in self._workload.cases]
        return [f for f in frames if f is not None]

    def measure(self, policy: SkipPolicy, fitted: Latency | None = None) -> tuple[Measurement, list[Frames]]:
        """The policy's measurement over the searched cases, and its frames by case (none from a record). It is timed,
        unless its latency is `fitted` or projected: then each case is generated once, from what is kept of it.

        Raises:
            EngineError: a generation failed or cannot be compared.
            NotQuantizedError: the coverage proof failed.
        """
        started = time.perf_counter()
        known = self._profile.project(policy, self._description.grid, self._workload) if self._profile else fitted
        if known is None:
            self.warm_up()
        seen: list[CaseQuality] = []
        coverages: list[Coverage] = []
        generations: list[Generation] = []
        rounds: list[list[Pair]] = []
        for repeat in range(self._repeats if known is None else 1):
            row = []
            for case in self._workload.cases:
                generation, proof = self._generate(policy, case, "none" if known is None else "reuse")
                coverages.append(proof)
                if repeat == 0:
                    seen.append(self._compare(case, generation))
                    generations.append(generation)
                if known is None:
                    row.append(_pair(self._generate(NATIVE, case)[0], generation))
            rounds.append(row)
        latency = known or conclude(rounds, self._description.device)
        measurement = replace(
            self._measurement(policy, latency, seen, coverages, started),
            peak_memory_mb=max((g.peak_memory_mb for g in generations if g.peak_memory_mb is not None), default=None),
            detail={
                "engine_denoise_seconds": math.fsum(g.denoise_seconds for g in generations),
                "engine_end_to_end_seconds": math.fsum(g.end_to_end_seconds for g in generations),
                "steps_reused": sum(g.reused_steps for g in generations),
            },
        )
        return measurement, [g.frames for g in generations if g.frames is not None]

    @property
    def finalist_repeats(self) -> int:
        """Repeats of a policy that is about to be recommended."""
        return finalist_repeats(self._repeats)

    def time_again(self, policy: SkipPolicy, repeats: int) -> Latency:
        """The policy's latency from as many new interleaved pairs and nothing else: among many policies the fastest of
        the first timing owes part of that to luck. Raises as `measure`."""
        self.warm_up()
        rounds = [
            [_pair(self._generate(NATIVE, case)[0], self._generate(policy, case)[0]) for case in self._workload.cases]
            for _ in range(repeats)
        ]
        return conclude(rounds, self._description.device)

    def check_holdout(self, policy: SkipPolicy) -> tuple[CaseQuality, ...]:
        """Quality on the held-out prompts, which the search has not seen. Raises as `measure`."""
        seen = []
        for case in self._workload.holdout_cases:
            if case not in self._reference:
                self._reference[case] = self._generate(NATIVE, case, "keep")[0].frames
            seen.append(self._compare(case, self._generate(policy, case, "reuse")[0]))
        return tuple(seen)

    def _generate(
        self, policy: SkipPolicy, case: Case, prefix: Prefix = "none", shadows: Sequence[Shadow] = ()
    ) -> tuple[Generation, Coverage]:
        """One run, native or not, never without its proof."""
        generation = self._engine.generate(policy, case, "none" if self._resuming is False else prefix, shadows)
        # a record has no frames that could differ
        if generation.reused_steps and self._resuming is None and generation.recorded is None:
            generation = self._check_resuming(policy, case, generation)
        for seconds in (generation.denoise_seconds, generation.end_to_end_seconds):
            if not (math.isfinite(seconds) and seconds > 0):
                raise EngineError(f"the engine returned a time of {seconds} seconds; nothing can be concluded from it")
        return generation, coverage.prove(self._description, policy, generation)

    def _check_resuming(self, policy: SkipPolicy, case: Case, resumed: Generation) -> Generation:
        """The first resumed run against the same one in full: only bit-equal frames let later ones be trusted."""
        full = self._engine.generate(policy, case)
        self._resuming = bool((_there(case, resumed.frames) == _there(case, full.frames)).all())
        self._note(
            f"resumed after {resumed.reused_steps} kept steps, the frames were "
            + ("equal to those of the full run, bit by bit: shared steps are not computed again" if self._resuming
               else "not those of the full run: every generation runs in full")
        )  # fmt: skip
        return full

    def _compare(self, case: Case, generation: Generation) -> CaseQuality:
        if generation.recorded is not None:
            return generation.recorded
        from fa_tuner.evaluate.quality import compare

        return compare(case, _there(case, self._reference.get(case)), _there(case, generation.frames))

    @property
    def _rounds(self) -> int:
        """A projected latency needs no repeats."""
        return 1 if self._profile else self._repeats

    def _measurement(
        self, policy: SkipPolicy, latency: Latency, seen: list[CaseQuality], proofs: list[Coverage], started: float
    ) -> Measurement:
        return Measurement(policy, latency, tuple(seen), coverage.total(proofs), seconds=time.perf_counter() - started)


def shadow_answers(baseline: Measurement) -> list[dict[Shadow, float]]:
    """By searched case, what the shadows beside the baseline gave; all empty where none were asked for."""
    asked = baseline.detail.get("shadows", ())
    return [
        {Shadow(step, tuple(layers), dtype): values[index] for dtype, step, layers, values in asked}
        for index in range(len(baseline.cases))
    ]


def _there(case: Case, frames: Frames | None) -> Frames:
    if frames is None:
        raise EngineError(f"the engine returned no frames for prompt {case.prompt[:40]!r}; nothing can be compared")
    return frames


def _pair(native: Generation, candidate: Generation) -> Pair:
    return Pair(
        candidate.denoise_seconds, native.denoise_seconds, candidate.end_to_end_seconds, native.end_to_end_seconds
    )
