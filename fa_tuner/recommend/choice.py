"""Which of a study's measured policies answers a requirement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from fa_tuner.domain.errors import NothingQualifiesError, ThresholdError
from fa_tuner.domain.measurement import Aggregate, Measurement, Requirement
from fa_tuner.domain.pareto import Objectives, front, hypervolume
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Baseline, Evaluation
from fa_tuner.evaluate.latency_fit import LatencyFit, may_be_faster
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
    def fitted(self) -> bool:
        """Its latency is a prediction: it may be timed, it is not recommended, and it is on no front."""
        return self.measurement.latency.source == "fitted"

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


def pareto_front(measured: Iterable[Candidate], how: Aggregate, fitted: bool = False) -> list[Candidate]:
    """The non-dominated candidates, fastest first; of equal ones that with the shorter selectors. Those whose latency
    is `fitted` only where that is asked for: a front is drawn in one kind."""
    drawn = (c for c in measured if fitted or not c.fitted)
    return front(sorted(drawn, key=_selector_length), lambda c: c.objectives(how))


def missing(measured: Sequence[Candidate], how: Aggregate) -> list[Candidate]:
    """Those that by their fitted latency are on the front and have to be timed to be drawn; first the one that adds
    most hypervolume to it."""
    reference = Objectives(1.0, 0.0)  # native latency, as for the study's snapshots
    drawn = [c.objectives(how) for c in pareto_front(measured, how)]
    return sorted(
        (c for c in pareto_front(measured, how, fitted=True) if c.fitted),
        key=lambda c: -hypervolume([*drawn, c.objectives(how)], reference),
    )


def ranked(measured: Iterable[Candidate], requirement: Requirement, fitted: bool = False) -> list[Candidate]:
    """Those that meet the requirement with a gain beyond noise, best first; those whose latency is `fitted` only where
    that is asked for, as nothing predicted is recommended.

    Of equal latencies (projected ones often are) the better picture counts; candidates whose latencies differ by less
    than their spread are ties, and go by the shorter selectors. One that failed on held-out prompts does not meet the
    requirement.
    """
    qualified = (c for c in measured if _qualifies(c, requirement, fitted))
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


def unsettled(
    measured: Iterable[Candidate], requirement: Requirement, repeats: int, fits: Mapping[str, LatencyFit] | None = None
) -> list[Candidate]:
    """Those whose latency could still make them the answer: they meet the requirement, were timed with fewer than
    `repeats`, or not at all, and their interval begins below the best one's figure; by the `fits` of their dtypes only
    the best one and those that may be faster than it. The most promising first."""

    def least(candidate: Candidate) -> float:
        latency = candidate.measurement.latency
        return latency.relative * (1 - latency.spread)

    able = [c for c in measured if _able(c, requirement)]
    order = ranked(able, requirement)
    bound = order[0].measurement.latency.relative if order else 1.0
    if fits and order:
        able = [c for c in able if c is order[0] or may_be_faster(fits, c.policy, order[0].policy)]
    return sorted((c for c in able if c.measurement.latency.repeats < repeats and least(c) <= bound), key=least)


def _qualifies(candidate: Candidate, requirement: Requirement, fitted: bool = False) -> bool:
    return (fitted or not candidate.fitted) and candidate.gains_beyond_noise and _able(candidate, requirement)


def _able(candidate: Candidate, requirement: Requirement) -> bool:
    return (
        not candidate.policy.is_native
        and requirement.met_by(candidate.measurement.cases)
        and candidate.holdout_met(requirement) is not False
    )


def faster_by_fit(measured: Iterable[Candidate], requirement: Requirement, chosen: Candidate) -> int:
    """How many that meet the requirement are faster than the chosen one by a latency that is only fitted."""
    limit = chosen.measurement.latency.relative
    return sum(c.fitted and c.measurement.latency.relative < limit and _able(c, requirement) for c in measured)


def best(measured: Sequence[Candidate], requirement: Requirement) -> Candidate:
    """The first of the `ranked`, without ranking those that are too slow to be it.

    Raises:
        NothingQualifiesError: none does; the message names the nearest policy.
    """
    order = sorted(measured, key=lambda c: c.measurement.latency.relative)
    fastest = next((c.measurement.latency for c in order if _qualifies(c, requirement)), None)
    if fastest is None:
        raise NothingQualifiesError(_nearest_message(measured, requirement))
    spread = max(c.measurement.latency.spread for c in order if c.measurement.latency.relative == fastest.relative)
    reach = fastest.relative * (1 + spread)
    near = (c for c in measured if fastest.relative <= c.measurement.latency.relative <= reach)
    return ranked(near, requirement)[0]


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
    untimed = len(ranked(measured, requirement, fitted=True))  # nothing timed is among them
    if untimed:
        return (
            f"no policy that was timed meets {requirement}; {untimed} that do have a latency that is only fitted, and "
            "a prediction is not recommended. Run the same command again to have the best of them timed"
        )
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
    fitted = " (fitted)" if nearest.fitted else ""
    held_out = " but failed on the held-out prompts" if miss(nearest) <= 0 else ""
    return (
        f"none of the {len(quantized)} quantized policies measured meets {requirement}; the nearest is "
        f"{nearest.policy} with {nearest.measurement.psnr_db(requirement.aggregate):.2f} dB and a gain of "
        f"{nearest.measurement.latency.gain:.1%}{fitted}{held_out}. Lower the threshold or raise --trials"
    )
