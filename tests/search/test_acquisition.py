"""What a policy is expected to gain, against figures found by drawing."""

from __future__ import annotations

import numpy as np
import pytest

from fa_tuner.domain.measurement import (
    METRICS,
    Aggregate,
    CaseQuality,
    Constraint,
    Requirement,
    aggregate,
    psnr_of_mse,
)
from fa_tuner.domain.workload import Case
from fa_tuner.search.acquisition import (
    FRONT_WEIGHT,
    LEVELS,
    SPAN_DB,
    UNMET_DB,
    Goal,
    Yardstick,
    aggregated,
    psnr,
    reaching,
)  # fmt: skip
from fa_tuner.search.space import Numbers

SHARE, QUALITY = np.array([1.0, 0.75, 0.5, 0.4]), np.array([20.0, 24.0, 31.0, 29.0])  # the last one is dominated
CERTAIN = 1e-6


def log_mse(quality: Numbers | float) -> Numbers:
    return np.asarray(np.log(255.0**2) - np.asarray(quality) * np.log(10) / 10)


def volume(share: Numbers, quality: Numbers) -> float:
    """Of the box above all quantized, with all its levels, by the trapezium of a fine grid."""
    levels = np.linspace(QUALITY[0], QUALITY[0] + SPAN_DB, 2001)[1:]
    return float(np.where(quality[:, None] >= levels, share[:, None], 0.0).max(0).mean())


def drawn(mean: Numbers, deviation: Numbers, count: int, how: Aggregate, seed: int = 0) -> Numbers:
    """PSNR of one policy, [count], from ln MSE [prompts]."""
    draw = np.random.default_rng(seed)
    return aggregated(mean[:, None] + deviation[:, None] * draw.standard_normal((len(mean), count)), how)


# --- quality --------------------------------------------------------------------------------------------------------


def test_psnr() -> None:
    assert psnr(log_mse(33.0)) == pytest.approx(33.0)
    assert psnr(np.array([np.log(255.0**2), np.log(1.0)])) == pytest.approx([0.0, 48.1308])


def test_the_worst_prompt_or_the_mean_error() -> None:
    mse = np.array([[100.0, 4.0], [300.0, 1.0]])
    assert aggregated(np.log(mse), "worst") == pytest.approx(psnr(np.log([300.0, 4.0])))
    assert aggregated(np.log(mse), "mean") == pytest.approx(psnr(np.log([200.0, 2.5])))


@pytest.mark.parametrize("how", ["worst", "mean", "p10", "p25", "p50"])
@pytest.mark.parametrize("prompts", [1, 4, 10, 11])
def test_it_is_what_the_requirement_is_judged_by(how: Aggregate, prompts: int) -> None:
    mse = np.random.default_rng(prompts).uniform(1, 500, (prompts, 3))
    cases = [[CaseQuality(Case("a", 0), {**dict.fromkeys(METRICS, 0.0), "mse": value, "psnr_db": psnr_of_mse(value)})
              for value in column] for column in mse.T]  # fmt: skip
    assert aggregated(np.log(mse), how) == pytest.approx([aggregate(c, "psnr_db", how) for c in cases])


@pytest.mark.parametrize("how", ["worst", "mean", "p25", "p50"])
@pytest.mark.parametrize("prompts", [1, 3, 4, 9])
def test_the_chance_to_reach_a_level(how: Aggregate, prompts: int) -> None:
    draw = np.random.default_rng(5)
    levels = np.linspace(15, 45, 13)
    for seed in range(5):
        mean, deviation = log_mse(draw.uniform(25, 35, prompts)), draw.uniform(0.2, 0.6, prompts)
        found = reaching(mean[:, None], deviation[:, None], levels, how)[0]
        sampled = (drawn(mean, deviation, 40_000, how, seed) >= levels[:, None]).mean(1)
        assert np.abs(found - sampled).max() < (0.04 if how == "mean" and prompts > 1 else 0.01)


@pytest.mark.parametrize("how", ["worst", "mean", "p50"])
def test_chances_are_by_policy_and_fall_with_the_level(how: Aggregate) -> None:
    mean = log_mse(np.array([[25.0, 30.0, 35.0], [35.0, 30.0, 25.0]]))
    found = reaching(mean, np.full_like(mean, 0.5), np.array([20.0, 27.0, 33.0]), how)
    assert found.shape == (3, 3)
    assert (np.diff(found) < 0).all()


# --- gains ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["worst", "mean", "p50"])
def test_gains_are_the_expected_growth_of_the_volume(how: Aggregate) -> None:
    yardstick, before = Yardstick(SHARE, QUALITY, Goal(how)), volume(SHARE, QUALITY)
    for seed, (share, centre) in enumerate([(0.9, 21.0), (0.75, 26.0), (0.6, 30.0), (0.3, 38.0), (0.2, 60.0)]):
        mean, deviation = log_mse(np.array([centre, centre + 2])), np.array([0.4, 0.7])
        expected = np.mean([
            volume(np.append(SHARE, share), np.append(QUALITY, quality)) - before
            for quality in drawn(mean, deviation, 1500, how, seed)
        ])  # fmt: skip
        found = yardstick.gains(np.array([share]), mean[:, None], deviation[:, None])[0]
        assert found == pytest.approx(expected, rel=0.12, abs=1.5 / LEVELS / 10), (share, centre)


def test_what_is_dominated_for_certain_gains_nothing() -> None:
    share, quality = np.array([0.75, 0.6, 0.4, 0.5, 1.0]), np.array([24.0, 22.0, 30.9, 31.0, 10.0])
    gains = Yardstick(SHARE, QUALITY, Goal()).gains(share, log_mse(quality)[None], np.full((1, 5), CERTAIN))
    assert (gains == 0).all()


def test_what_was_measured_already_gains_nothing() -> None:
    gains = Yardstick(SHARE, QUALITY, Goal()).gains(SHARE, log_mse(QUALITY)[None], np.full((1, 4), CERTAIN))
    assert gains == pytest.approx(0, abs=0.5 / LEVELS)


def test_beyond_the_box_nothing_more_is_gained() -> None:
    mean = log_mse(np.array([QUALITY[0] + SPAN_DB + 1, 90.0]))[None]
    near, far = Yardstick(SHARE, QUALITY, Goal()).gains(np.full(2, 0.3), mean, np.full((1, 2), 0.01))
    assert near == pytest.approx(far) and near > 0


def test_a_threshold_asks_for_the_largest_share_that_meets_it() -> None:
    """At 28 dB the share is 0.5 so far; one of 0.7 that meets it for certain gains 0.2, beside the front's."""
    plain, goal = Yardstick(SHARE, QUALITY, Goal()), Yardstick(SHARE, QUALITY, Goal(threshold_db=28.0))
    share, deviation = np.array([0.7, 0.7, 0.5, 0.7]), np.full((1, 4), CERTAIN)
    mean = log_mse(np.array([28.5, 27.5, 40.0, 28.0]))[None]
    deviation[0, 3] = 0.5  # a half chance
    front = FRONT_WEIGHT * plain.gains(share, mean, deviation)
    assert goal.gains(share, mean, deviation) - front == pytest.approx([0.2, 0.0, 0.0, 0.1])


def test_where_nothing_meets_the_threshold_all_of_the_share_is_to_gain() -> None:
    goal = Yardstick(SHARE, QUALITY, Goal(threshold_db=35.0))
    mean, deviation = log_mse(np.array([[36.0]])), np.array([[CERTAIN]])
    front = FRONT_WEIGHT * Yardstick(SHARE, QUALITY, Goal()).gains(np.array([0.3]), mean, deviation)
    assert goal.gains(np.array([0.3]), mean, deviation) - front == pytest.approx([0.3])


def test_where_everything_meets_the_threshold_the_front_is_left() -> None:
    mean, deviation = log_mse(np.array([[40.0]])), np.array([[0.5]])
    plain = Yardstick(SHARE, QUALITY, Goal()).gains(np.array([0.3]), mean, deviation)
    met = Yardstick(SHARE, QUALITY, Goal(threshold_db=15.0)).gains(np.array([0.3]), mean, deviation)
    assert met == pytest.approx(FRONT_WEIGHT * plain) and met > 0


# --- goals ----------------------------------------------------------------------------------------------------------


def required(*texts: str, how: Aggregate = "worst") -> Goal:
    return Goal.of(Requirement(tuple(map(Constraint.parse, texts)), how))


def test_goals_of_requirements() -> None:
    assert required("psnr_db>=30") == Goal("worst", 30.0)
    assert required("psnr_db>=30", "psnr_db>=33", how="mean") == Goal("mean", 33.0)
    assert required("psnr_db>=30", how="p10") == Goal("p10", 30.0)
    assert required("mae<=3") == Goal("worst", None, learned=True)
    assert required("psnr_db>=25", "mae<=6") == Goal("worst", 25.0, learned=True)
    assert required() == Goal()


def test_a_threshold_of_psnr_is_as_given() -> None:
    goal = Goal(threshold_db=30.0)
    assert goal.given(QUALITY, QUALITY > 22) == goal


def test_a_learned_threshold_divides_those_that_meet_it_from_the_others() -> None:
    goal = Goal(learned=True)
    assert goal.given(QUALITY, QUALITY >= 29).threshold_db == pytest.approx((29 + 24) / 2)
    mixed = np.array([False, True, False, True])  # 31 dB does not meet it, 24 dB does: another metric decides
    assert goal.given(QUALITY, mixed).threshold_db == pytest.approx((24 + 20) / 2)


def test_a_learned_threshold_where_none_or_all_meet_it() -> None:
    goal = Goal(learned=True)
    assert goal.given(QUALITY, np.zeros(4, bool)).threshold_db == pytest.approx(31 + UNMET_DB)
    assert goal.given(QUALITY, np.ones(4, bool)).threshold_db == pytest.approx(20)
    assert goal.given(QUALITY[:1], np.zeros(1, bool)).threshold_db == pytest.approx(20 + UNMET_DB)
