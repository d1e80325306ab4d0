"""Which measured policy answers a requirement."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.domain.errors import NothingQualifiesError, ThresholdError
from fa_tuner.domain.measurement import Constraint, Requirement
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Baseline, Evaluation
from fa_tuner.recommend.choice import (
    Candidate,
    best,
    candidates,
    check_floor,
    faster_by_fit,
    missing,
    pareto_front,
    ranked,
    unsettled,
)
from tests.support.measured import a_candidate, a_measurement, a_policy

FROM_30 = Requirement((Constraint.parse("psnr_db>=30"),))
NATIVE = a_candidate("native", 1.0, 100.0)


def texts(found: list[Candidate]) -> list[str]:
    return [c.policy.key.removeprefix("fp8:") for c in found]


def refusal(measured: list[Candidate], requirement: Requirement = FROM_30) -> str:
    with pytest.raises(NothingQualifiesError) as caught:
        best(measured, requirement)
    return str(caught.value)


# --- what qualifies -------------------------------------------------------------------------------------------------


def test_the_fastest_that_meets_the_requirement() -> None:
    measured = [NATIVE, a_candidate("0/", 0.95, 35), a_candidate("/", 0.90, 25), a_candidate("/0", 0.93, 31)]
    assert best(measured, FROM_30).policy == a_policy("/0")
    assert texts(ranked(measured, FROM_30)) == ["/0", "0/"]


def test_the_bound_itself_is_met() -> None:
    assert best([a_candidate("0/", 0.9, 30.0)], FROM_30).policy == a_policy("0/")
    refusal([a_candidate("0/", 0.9, 29.999)])


def test_native_is_never_recommended() -> None:
    assert ranked([NATIVE], FROM_30) == []
    assert "none of the 0 quantized policies" in refusal([NATIVE])
    faster_by_noise = a_candidate("native", 0.5, 100.0)
    assert ranked([faster_by_noise], FROM_30) == []


@pytest.mark.parametrize("relative", [1.0, 1.2])
def test_no_gain_no_recommendation(relative: float) -> None:
    assert "none of the 1 quantized policies measured has a latency gain beyond noise" in refusal(
        [NATIVE, a_candidate("0/", relative, 90)]
    )


def test_a_gain_within_the_noise_is_none() -> None:
    """The spread is relative to the candidate's own time: 0.96 +- 4.2 % reaches native."""
    assert ranked([a_candidate("0/", 0.96, 90, spread=0.042)], FROM_30) == []
    assert texts(ranked([a_candidate("0/", 0.96, 90, spread=0.041)], FROM_30)) == ["0/"]
    assert ranked([a_candidate("0/", 0.5, 90, spread=1.0)], FROM_30) == []


def test_all_constraints_must_hold() -> None:
    both = Requirement((Constraint.parse("psnr_db>=30"), Constraint.parse("mae<=1.5")))  # mae is 2 in all
    assert ranked([a_candidate("0/", 0.9, 40)], both) == []
    assert ranked([a_candidate("0/", 0.9, 40)], FROM_30)


def test_the_worst_prompt_counts_unless_the_mean_is_asked_for() -> None:
    uneven = a_candidate("0/", 0.9, (60, 28))
    assert ranked([uneven], FROM_30) == []
    mean = Requirement(FROM_30.constraints, "mean")  # of the squared error: 28 + 3 dB
    assert texts(ranked([uneven], mean)) == ["0/"]


def test_what_failed_on_held_out_prompts_is_out() -> None:
    failed = a_candidate("/", 0.80, 40, holdout=(50, 29))
    passed = a_candidate("0/", 0.90, 40, holdout=(30,))
    unchecked = a_candidate("/0", 0.95, 40)
    assert texts(ranked([failed, passed, unchecked], FROM_30)) == ["0/", "/0"]
    assert (failed.holdout_met(FROM_30), passed.holdout_met(FROM_30)) == (False, True)
    assert unchecked.holdout_met(FROM_30) is None
    assert "but failed on the held-out prompts" in refusal([failed])


def test_failed_evaluations_are_no_candidates() -> None:
    measurement = a_measurement("0/", 0.9, 40)
    evaluations = [
        Evaluation(a_policy("/"), "anchor", 0, None, "out of memory"),
        Evaluation(measurement.policy, "try", 1, measurement),
    ]
    (only,) = candidates(evaluations)
    assert only.evaluation == evaluations[1] and only.measurement is measurement


# --- ties -----------------------------------------------------------------------------------------------------------


def test_ties_within_the_spread_go_to_the_shorter_selectors() -> None:
    long = a_candidate("0,2,4/1,3", 0.900, 40, spread=0.02)
    short = a_candidate("0/", 0.915, 40, spread=0.02)
    assert texts(ranked([long, short], FROM_30)) == ["0/", "0,2,4/1,3"]


def test_beyond_the_spread_the_faster_wins() -> None:
    long = a_candidate("0,2,4/1,3", 0.900, 40, spread=0.01)
    short = a_candidate("0/", 0.915, 40, spread=0.01)
    assert texts(ranked([long, short], FROM_30)) == ["0,2,4/1,3", "0/"]


def test_equal_selectors_go_by_latency_then_quality() -> None:
    tied = [a_candidate("0/", 0.90, 33), a_candidate("1/", 0.90, 36), a_candidate("2/", 0.90, 34)]
    assert texts(ranked(tied, FROM_30)) == ["1/", "2/", "0/"]
    near = [a_candidate("0/", 0.901, 50, spread=0.01), a_candidate("1/", 0.900, 31, spread=0.01)]
    assert texts(ranked(near, FROM_30)) == ["1/", "0/"]


def test_a_chain_of_ties_ends_at_the_fastests_own_reach() -> None:
    chain = [a_candidate(text, relative, 40, spread=0.01) for text, relative in
             (("0,2,4/1,3", 0.900), ("0,2/1", 0.906), ("0/", 0.912))]  # fmt: skip
    assert texts(ranked(chain, FROM_30))[0] == "0,2/1"


@given(st.lists(st.tuples(st.integers(80, 105), st.integers(25, 40), st.sampled_from([0.0, 0.01, 0.05])), max_size=12))
def test_ranking_loses_none_and_invents_none(points: list[tuple[int, int, float]]) -> None:
    measured = [
        a_candidate(f"{i % 6}/{i // 6}", latency / 100, psnr, spread=spread)
        for i, (latency, psnr, spread) in enumerate(points)
    ]
    found = ranked(measured, FROM_30)
    wanted = {
        c.policy.key for c, (latency, psnr, spread) in zip(measured, points, strict=True)
        if psnr >= 30 and 1 - latency / 100 > spread * latency / 100
    }  # fmt: skip
    assert {c.policy.key for c in found} == wanted and len(found) == len(wanted)
    if found:
        fastest = min(c.measurement.latency.relative for c in found)
        reach = max(c.measurement.latency.spread for c in found)
        assert found[0].measurement.latency.relative <= fastest * (1 + reach)
        assert best(measured, FROM_30) is found[0]


# --- what to say when none does -------------------------------------------------------------------------------------


def test_the_nearest_policy_is_named() -> None:
    measured = [NATIVE, a_candidate("/", 0.90, 22), a_candidate("0/", 0.95, 29.31), a_candidate("/0", 0.92, 25)]
    said = refusal(measured)
    assert "none of the 3 quantized policies measured meets psnr_db>=30 (worst prompt)" in said
    assert 'the nearest is fp8, skip steps "0", layers "" with 29.31 dB and a gain of 5.0%' in said
    assert "Lower the threshold" in said and "held-out" not in said


def test_the_nearest_is_so_by_its_worst_constraint_in_proportion() -> None:
    """Decibels and relative errors have no common unit: 1 dB of 30 is less than 0.01 of 0.04."""
    requirement = Requirement((Constraint.parse("psnr_db>=30"), Constraint.parse("relative_l2<=0.04")))
    one_db_off = a_candidate("0/", 0.95, 29, metrics={"relative_l2": 0.03})
    quarter_off = a_candidate("/", 0.90, 50, metrics={"relative_l2": 0.05})
    half_off = a_candidate("/0", 0.90, 15, metrics={"relative_l2": 0.03})
    assert 'skip steps "0", layers ""' in refusal([half_off, quarter_off, one_db_off], requirement)
    assert 'skip steps "", layers ""' in refusal([half_off, quarter_off], requirement)


def test_nothing_measured_at_all() -> None:
    assert "none of the 0 quantized policies measured has a latency gain" in refusal([])


# --- the front ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(80, 90), st.integers(25, 35)), min_size=1, max_size=14))
def test_the_front_is_that_of_brute_force(points: list[tuple[int, int]]) -> None:
    measured = [a_candidate(f"{i % 6}/{i // 6}", x / 100, y) for i, (x, y) in enumerate(points)]
    chosen = pareto_front(measured, "worst")
    values = [tuple(c.objectives("worst")) for c in chosen]
    wanted = {
        (x / 100, y) for x, y in points
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
    }  # fmt: skip
    assert [(x, pytest.approx(y)) for x, y in values] == sorted(wanted)


def test_of_equal_points_the_shorter_selectors_are_on_the_front() -> None:
    same = [a_candidate("0,2/1", 0.9, 40), a_candidate("3/", 0.9, 40), a_candidate("0,4/", 0.9, 40)]
    assert texts(pareto_front(same, "worst")) == ["3/"]


def test_the_front_follows_the_aggregate() -> None:
    steady, uneven = a_candidate("0/", 0.91, (33, 33)), a_candidate("1/", 0.90, (80, 31))
    assert texts(pareto_front([steady, uneven], "worst")) == ["1/", "0/"]
    assert texts(pareto_front([steady, uneven], "mean")) == ["1/"]  # 34 dB by the mean squared error


# --- the floor ------------------------------------------------------------------------------------------------------


def test_a_threshold_above_the_noise_floor_is_refused() -> None:
    baseline = Baseline(41.5, 10, 11)
    for constraint in ("psnr_db>=41.5", "psnr_db>=20", "mae<=0.001"):
        check_floor(Requirement((Constraint.parse(constraint),)), baseline)
    with pytest.raises(ThresholdError, match=r"41\.6 dB is asked for, but two native runs .* agree to 41\.50 dB"):
        check_floor(Requirement((Constraint.parse("psnr_db>=41.6"),)), baseline)


def test_where_native_repeats_itself_nothing_is_above_the_floor() -> None:
    check_floor(Requirement((Constraint.parse("psnr_db>=100"),)), Baseline(100.0, 10, 11))
    with pytest.raises(ThresholdError):
        check_floor(Requirement((Constraint("psnr_db", ">=", math.nextafter(100, 101)),)), Baseline(100.0, 10, 11))


def test_of_equal_latencies_the_better_picture_counts_before_the_selectors() -> None:
    short, better = a_candidate("2,5/2", 0.9, 40), a_candidate("2,4,5/1,3", 0.9, 45)
    assert texts(ranked([short, better], FROM_30)) == ["2,4,5/1,3", "2,5/2"]


# --- fitted latency -------------------------------------------------------------------------------------------------


def timed(text: str, relative: float, psnr_db: float, spread: float = 0.01) -> Candidate:
    return a_candidate(text, relative, psnr_db, spread=spread, source="measured")


def fitted(text: str, relative: float, psnr_db: float, spread: float = 0.01) -> Candidate:
    return a_candidate(text, relative, psnr_db, spread=spread, source="fitted")


def test_what_is_fitted_orders_but_is_not_recommended() -> None:
    measured = [timed("0/", 0.95, 35), fitted("/", 0.80, 35)]
    assert texts(ranked(measured, FROM_30)) == ["0/"] == texts([best(measured, FROM_30)])
    assert texts(ranked(measured, FROM_30, fitted=True)) == ["/", "0/"]
    assert faster_by_fit(measured, FROM_30, measured[0]) == 1
    assert faster_by_fit([timed("0/", 0.75, 35), fitted("/", 0.80, 35)], FROM_30, timed("0/", 0.75, 35)) == 0


def test_where_only_fitted_ones_qualify_it_says_to_have_them_timed() -> None:
    said = refusal([NATIVE, timed("0,1/", 0.97, 20), fitted("0/", 0.95, 35), fitted("/", 0.90, 31)])
    assert (
        "no policy that was timed meets psnr_db>=30" in said and "2 that do have a latency that is only fitted" in said
    )
    assert "Run the same command again" in said
    assert "the nearest is" in refusal([NATIVE, timed("0,1/", 0.97, 20), fitted("0/", 0.95, 25)])


def test_a_fitted_candidate_is_unsettled() -> None:
    measured = [timed("0/", 0.90, 35), fitted("1/", 0.89, 35), fitted("2/", 0.93, 35), fitted("3/", 0.80, 20)]
    assert texts(unsettled(measured, FROM_30, 15)) == ["1/", "0/"]
    assert texts(unsettled(measured[1:], FROM_30, 15)) == ["1/", "2/"]  # any that gains, as long as none is timed


class Fit:
    """Makes some policies faster than others."""

    def __init__(self, *faster: str) -> None:
        self.faster = faster

    def may_be_faster(self, one: SkipPolicy, other: SkipPolicy) -> bool:
        return one.key.removeprefix("fp8:") in self.faster


def test_with_a_fit_only_what_may_be_faster_is_unsettled() -> None:
    """Of many timings that overlap, those that only luck makes faster are not worth timing again."""
    measured = [timed("0/", 0.90, 35), timed("1/", 0.905, 35), timed("2/", 0.904, 35), fitted("3/", 0.903, 35)]
    assert texts(unsettled(measured, FROM_30, 15)) == ["0/", "3/", "2/", "1/"]
    assert texts(unsettled(measured, FROM_30, 15, {"fp8": Fit("2/")})) == ["0/", "2/"]  # type: ignore[arg-type]
    assert texts(unsettled(measured, FROM_30, 15, {"fp8": Fit()})) == ["0/"]  # type: ignore[arg-type]


def test_a_front_is_drawn_in_one_kind() -> None:
    measured = [timed("0/", 0.95, 40), fitted("/", 0.90, 35), fitted("1/", 0.96, 50), fitted("2/", 0.97, 30)]
    assert texts(pareto_front(measured, "worst")) == ["0/"]
    assert texts(pareto_front(measured, "worst", fitted=True)) == ["/", "0/", "1/"]


def test_what_is_missing_on_the_front_and_adds_most_to_it_comes_first() -> None:
    measured = [timed("0/", 0.95, 40), fitted("1/", 0.949, 30), fitted("/", 0.80, 35), fitted("2/", 0.97, 30)]
    assert texts(missing(measured, "worst")) == ["/"]  # 1/ is slower and worse than it
    apart = [*measured, fitted("3/", 0.96, 40.1), fitted("4/", 0.97, 60)]
    assert texts(missing(apart, "worst")) == ["/", "4/", "3/"]
    assert missing([timed("0/", 0.95, 40)], "worst") == []
