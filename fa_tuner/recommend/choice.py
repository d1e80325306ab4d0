"""Which of a study's measured policies answers a requirement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from fa_tuner.domain.errors import NothingQualifiesError, ThresholdError
from fa_tuner.domain.measurement import Aggregate, Measurement, Requirement
from fa_tuner.domain.pareto import Objectives, front
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Baseline, Evaluation
from fa_tuner.evaluate.timing import ROBUST_FROM


@dataclass(frozen=True)
class Candidate:
    """An evaluation that has a measurement. `native_spread` is what timing noise makes of two native runs."""

    evaluation: Evaluation
    measurement: Measurement
    native_spread: float = 0.0

    @property
    def policy(self) -> SkipPolicy:
        return self.measurement.policy

    def objectives(self, how: Aggregate) -> Objectives:
        return Objectives(self.measurement.latency.relative, self.measurement.psnr_db(how))

    @property
    def gains_beyond_noise(self) -> bool:
        latency = self.measurement.latency
        noise = latency.spread * latency.relative
        if latency.repeats < ROBUST_FROM:  # so few repeats may agree by chance; then native's own noise counts too
            noise = max(noise, self.native_spread)
        return not self.policy.is_native and latency.gain > noise

    def holdout_met(self, requirement: Requirement) -> bool | None:
        """None where no held-out prompt has been generated under this policy."""
        return requirement.met_by(self.measurement.holdout) if self.measurement.holdout else None


def candidates(evaluations: Iterable[Evaluation]) -> list[Candidate]:
    """The measured ones of a study's evaluations."""
    measured = [(e, e.measurement) for e in evaluations if e.measurement is not None]
    noise = max((m.latency.spread for _, m in measured if m.policy.is_native), default=0.0)
    return [Candidate(e, m, noise) for e, m in measured]


def pareto_front(measured: Iterable[Candidate], how: Aggregate) -> list[Candidate]:
    """The non-dominated candidates, fastest first; of equal ones that with the shorter selectors."""
    return front(sorted(measured, key=_selector_length), lambda c: c.objectives(how))


def ranked(measured: Iterable[Candidate], requirement: Requirement) -> list[Candidate]:
    """Those that meet the requirement with a gain beyond noise, best first.

    Of equal latencies (projected ones often are) the better picture counts; candidates whose latencies differ by less
    than their spread are ties, and go by the shorter selectors. One that failed on held-out prompts does not meet the
    requirement.
    """
    qualified = (
        c
        for c in measured
        if c.gains_beyond_noise and requirement.met_by(c.measurement.cases) and c.holdout_met(requirement) is not False
    )
    how = requirement.aggregate
    left = sorted(qualified, key=lambda c: (c.objectives(how).latency, -c.objectives(how).psnr_db, _selector_length(c)))
    order: list[Candidate] = []
    while left:
        fastest = left[0].measurement.latency
        reach = fastest.relative * (1 + fastest.spread)
        ties = takewhile(lambda c: c.measurement.latency.relative <= reach, left)  # noqa: B023 - used here
        leaders = {c.measurement.latency.relative: c for c in reversed(list(ties))}
        chosen = min(reversed(leaders.values()), key=_selector_length)
        order.append(chosen)
        left.remove(chosen)
    return order


def unsettled(measured: Iterable[Candidate], requirement: Requirement, repeats: int) -> list[Candidate]:
    """Those whose measured latency could still make them the answer: they meet the requirement, were timed with fewer
    than `repeats`, and their interval begins below the best one's figure. The most promising first."""

    def least(candidate: Candidate) -> float:
        latency = candidate.measurement.latency
        return latency.relative * (1 - latency.spread)

    able = [
        c
        for c in measured
        if not c.policy.is_native
        and requirement.met_by(c.measurement.cases)
        and c.holdout_met(requirement) is not False
    ]
    order = ranked(able, requirement)
    bound = order[0].measurement.latency.relative if order else 1.0
    return sorted((c for c in able if c.measurement.latency.repeats < repeats and least(c) <= bound), key=least)


def best(measured: Sequence[Candidate], requirement: Requirement) -> Candidate:
    """
    Raises:
        NothingQualifiesError: none does; the message names the nearest policy.
    """
    order = ranked(measured, requirement)
    if not order:
        raise NothingQualifiesError(_nearest_message(measured, requirement))
    return order[0]


def check_floor(requirement: Requirement, baseline: Baseline) -> None:
    """
    Raises:
        ThresholdError: two native runs differ by more than the requirement allows.
    """
    wanted, floor = requirement.min_psnr, baseline.noise_floor_db
    if wanted is not None and wanted > floor:
        raise ThresholdError(
            f"a PSNR of {wanted:g} dB is asked for, but two native runs of this workload agree to {floor:.2f} dB only "
            "(the noise floor); lower the threshold below that"
        )


def _selector_length(candidate: Candidate) -> int:
    policy = candidate.policy
    return len(str(policy.skip_steps)) + len(str(policy.skip_layers))


def _nearest_message(measured: Sequence[Candidate], requirement: Requirement) -> str:
    quantized = [c for c in measured if c.gains_beyond_noise]
    if not quantized:
        tried = sum(not c.policy.is_native for c in measured)
        return f"none of the {tried} quantized policies measured has a latency gain beyond noise; measure more policies"

    def miss(candidate: Candidate) -> float:
        return max(
            (v / (abs(c.value) or 1.0) for c, v in zip(
                requirement.constraints, requirement.violations(candidate.measurement.cases).values(), strict=True
            )), default=0.0,
        )  # fmt: skip

    nearest = min(quantized, key=miss)
    held_out = " but failed on the held-out prompts" if miss(nearest) <= 0 else ""
    return (
        f"none of the {len(quantized)} quantized policies measured meets {requirement}; the nearest is "
        f"{nearest.policy} with {nearest.measurement.psnr_db(requirement.aggregate):.2f} dB and a gain of "
        f"{nearest.measurement.latency.gain:.1%}{held_out}. Lower the threshold or raise --trials"
    )
