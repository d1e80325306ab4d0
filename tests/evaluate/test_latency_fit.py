"""When latency may be fitted in place of being measured, and how sure it is."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from fa_tuner.domain.measurement import Latency
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.study import Evaluation
from fa_tuner.evaluate.latency_fit import (
    CHECK_EVERY,
    LEAST_ERROR,
    LEAST_TIMED,
    LatencyFit,
    due_for_timing,
    fit_latency,
)
from tests.support.measured import GRID, a_measurement, a_policy

# 24, 20, 16, 15, 12, 8, 6 and 4 of 24 cells
TEXTS = ("/", "0/", "0,1/", "0/0", "/0,1", "0,1/0,1", "/0-2", "0,1/0-2")
SIX = TEXTS[:6]


def linear(policy: SkipPolicy) -> float:
    return 1 - 0.02 - 0.3 * policy.share(GRID)


def timed(
    texts: Sequence[str] = SIX, latency: Callable[[SkipPolicy], float] = linear, spread: float = 0.005, repeats: int = 3
) -> list[Evaluation]:
    made = [a_measurement(text, latency(a_policy(text)), 40) for text in texts]
    known = [replace(m, latency=Latency(m.latency.relative, "measured", 1.0, spread, repeats)) for m in made]
    return [Evaluation(m.policy, "sampler", number, m) for number, m in enumerate(known)]


def fitted(evaluations: Sequence[Evaluation], dtype: str = "fp8") -> LatencyFit:
    fit = fit_latency(evaluations, dtype, GRID)
    assert fit is not None
    return fit


# --- what it finds --------------------------------------------------------------------------------------------------


def test_overhead_and_saving_come_back() -> None:
    fit = fitted(timed())
    assert (fit.overhead, fit.saving) == (pytest.approx(0.02), pytest.approx(0.3))
    assert (fit.timed, fit.rms, fit.worst) == (6, pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert fit.holds and not fit.doubt
    new = a_policy("0-2/")
    latency = fit.latency(new)
    assert latency.relative == pytest.approx(linear(new))
    assert (latency.source, latency.repeats, latency.seconds) == ("fitted", 0, None)
    assert latency.detail == str(fit) == "fitted over 6 timed policies, residuals 0.0% RMS, 0.0% worst"


def test_quantization_that_costs_more_than_it_saves_is_fitted_too() -> None:
    fit = fitted(timed(latency=lambda p: 1.05 + 0.1 * p.share(GRID)))
    assert (fit.overhead, fit.saving) == (pytest.approx(-0.05), pytest.approx(-0.1)) and fit.holds


def test_only_what_was_timed_and_of_one_dtype() -> None:
    """A fitted figure proves nothing, and another dtype takes another time."""
    evaluations = timed()
    wrong = a_measurement("3/", 0.1, 40)
    other = replace(wrong, policy=replace(wrong.policy, dtype="mxfp4"), latency=Latency(0.2, "measured"))
    native = replace(a_measurement("native", 1.0, 100), latency=Latency(1.0, "measured"))
    more = [
        Evaluation(wrong.policy, "sampler", 6, replace(wrong, latency=Latency(0.1, "fitted", spread=0.1))),
        Evaluation(other.policy, "sampler", 7, other),
        Evaluation(SkipPolicy(), "baseline", 8, native),
        Evaluation(a_policy("4/"), "sampler", 9, None, "out of memory"),
    ]  # fmt: skip
    assert fitted([*evaluations, *more]) == fitted(evaluations)
    assert fit_latency([*evaluations, *more], "mxfp4", GRID) is None


def test_layers_of_unequal_cost() -> None:
    """By their cost the line is straight; by their count it is not."""
    costs = (3.0, 1.0, 1.0, 1.0)
    evaluations = timed(TEXTS, lambda p: 1 - 0.3 * p.share(GRID, costs))
    by_cost = fit_latency(evaluations, "fp8", GRID, costs)
    assert by_cost is not None and by_cost.holds and by_cost.saving == pytest.approx(0.3)
    assert by_cost.latency(a_policy("/1")).relative == pytest.approx(1 - 0.3 * 5 / 6)
    assert not fitted(evaluations).holds


# --- when it is believed --------------------------------------------------------------------------------------------


def test_it_needs_enough() -> None:
    assert fit_latency([], "fp8", GRID) is None
    assert fit_latency(timed(SIX[: LEAST_TIMED - 1]), "fp8", GRID) is None
    assert fitted(timed(SIX[:LEAST_TIMED])).holds


def test_it_needs_different_shares() -> None:
    assert fit_latency(timed(("/", "0/", "1/", "2/", "3/", "4/")), "fp8", GRID) is None
    assert fitted(timed(("/", "0/", "1/", "2/", "3/", "0,1/"))).holds


def test_an_interaction_of_steps_and_layers_is_no_line() -> None:
    """Where a step that is quantized in part costs extra to switch."""

    def switching(policy: SkipPolicy) -> float:
        return linear(policy) + (0.08 if policy.skip_layers.indices else 0.0)

    fit = fitted(timed(("/", "/0", "0/", "/0,1", "0-2/", "0-3/"), switching))
    assert not fit.holds and fit.worst > 0.05
    assert "off where" in fit.doubt and "of native" in fit.doubt


def test_a_cliff_is_no_line() -> None:
    fit = fitted(timed(latency=lambda p: linear(p) + (0.1 if p.share(GRID) == 1 else 0.0)))
    assert not fit.holds and 'skip steps "", layers ""' in fit.doubt


def test_what_misses_by_little_holds_and_says_so() -> None:
    """The spread covers what the residuals show beyond the noise of timing."""
    uneven = [0.006, -0.006] * 4
    latencies = {a_policy(text).key: linear(a_policy(text)) + by for text, by in zip(TEXTS, uneven, strict=True)}
    fit = fitted(timed(TEXTS, lambda p: latencies[p.key], spread=0.0))
    assert fit.holds and 0.006 < fit.worst < 0.02
    assert fit.latency(a_policy("0-2/")).spread > 0.006
    assert fitted(timed(TEXTS, spread=0.0)).latency(a_policy("0-2/")).spread < 2.5 * LEAST_ERROR


def test_noise_is_told_from_a_bend() -> None:
    """One timing that is off by 6 % where timings spread by 4 % may be; where they spread by 1 % it may not. That its
    own repeats agree by chance proves nothing."""

    def off(policy: SkipPolicy) -> float:
        return linear(policy) + (0.06 if policy == a_policy("0,1/") else 0.0)

    steady = timed(latency=off, spread=0.04)
    lucky = [
        replace(e, measurement=replace(e.measurement, latency=replace(e.measurement.latency, spread=0.0)))
        if e.policy == a_policy("0,1/") and e.measurement else e
        for e in steady
    ]  # fmt: skip
    assert fitted(steady).holds and fitted(lucky).holds
    assert not fitted(timed(latency=off, spread=0.01)).holds
    assert not fitted(timed(latency=off, spread=0.015, repeats=15)).holds


def test_it_covers_what_lies_between_timed_policies() -> None:
    fit = fitted(timed(("0/", "0,1/", "0/0", "/0,1", "0,1/0,1")))  # 8 to 20 of 24 cells
    assert fit.covers(a_policy("0-2/")) and fit.covers(a_policy("1/"))
    assert not fit.covers(a_policy("/")) and not fit.covers(a_policy("0-4/"))
    assert not fit.covers(replace(a_policy("0-2/"), dtype="mxfp4"))


@pytest.mark.parametrize("noise", [0.002, 0.01, 0.04])
def test_the_truth_lies_within_the_spread(noise: float) -> None:
    """Over many clocks: mostly within the stated spread, which is two standard errors, and a straight line is seldom
    doubted."""
    rng, grid = random.Random(1), Grid(10, tuple(range(10)))
    within, held, clocks = 0, 0, 200
    for _ in range(clocks):
        evaluations = []
        for number in range(8):
            policy = SkipPolicy.parse(f"0-{number}/" if number < 4 else f"/0-{number}", ("fp8",), grid)
            three = sorted(1 - 0.3 * policy.share(grid) + rng.gauss(0, noise) for _ in range(3))
            latency = Latency(three[1], "measured", 1.0, (three[2] - three[0]) / 2 / three[1], 3)
            evaluations.append(
                Evaluation(
                    policy, "sampler", number, replace(a_measurement("/", 0.5, 40), policy=policy, latency=latency)
                )
            )
        fit = fit_latency(evaluations, "fp8", grid)
        assert fit is not None
        held += fit.holds
        found = fit.latency(SkipPolicy.parse("0-2/0,1", ("fp8",), grid))
        within += abs(found.relative - (1 - 0.3 * 0.56)) <= found.spread * found.relative
    assert within > 0.93 * clocks and held > 0.93 * clocks


# --- which are timed all the same -----------------------------------------------------------------------------------


def test_one_in_so_many_is_due_for_timing() -> None:
    evaluations = timed()
    assert not due_for_timing(evaluations, "fp8") and not due_for_timing([], "fp8")
    for count in range(1, CHECK_EVERY):
        number = len(evaluations)
        known = a_measurement(f"{count % 6}/{count // 6}", 0.9, 40)
        known = replace(known, latency=Latency(0.9, "fitted", spread=0.01))
        evaluations.append(Evaluation(known.policy, "predicted", number, known))
        assert due_for_timing(reversed(evaluations), "fp8") == (
            count == CHECK_EVERY - 1
        )  # by number, not by their order
    failed = Evaluation(a_policy("5/3"), "predicted", len(evaluations), None, "out of memory")
    assert due_for_timing([*evaluations, failed], "fp8")  # the check is still to be made
    (check,) = timed(("4,5/3",))
    assert not due_for_timing([*evaluations, replace(check, number=len(evaluations))], "fp8")
    assert check.measurement is not None
    other = replace(check.measurement, policy=SkipPolicy("mxfp4"))
    timed_there = Evaluation(other.policy, "predicted", len(evaluations), other)
    assert due_for_timing([*evaluations, timed_there], "fp8"), "a timing of another dtype is no check of this one"
