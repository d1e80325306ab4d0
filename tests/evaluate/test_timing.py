"""What is concluded from repeated, interleaved times."""

from __future__ import annotations

import random

import pytest

from fa_tuner.evaluate.timing import Pair, conclude


def pair(candidate: float, native: float) -> Pair:
    return Pair(candidate, native, candidate + 1, native + 1)


def test_one_repeat() -> None:
    latency = conclude([[pair(9.0, 10.0)]], "a card")
    assert latency.relative == pytest.approx(0.9) and latency.gain == pytest.approx(0.1)
    assert (latency.seconds, latency.end_to_end_seconds) == (9.0, 10.0)
    assert (latency.spread, latency.repeats, latency.source, latency.detail) == (0.0, 1, "measured", "a card")


def test_the_median_of_the_repeats() -> None:
    latency = conclude([[pair(c, 10.0)] for c in (9.4, 9.0, 8.8)], "")
    assert latency.relative == pytest.approx(0.9) and latency.seconds == 9.0
    assert latency.spread == pytest.approx((0.94 - 0.88) / 2 / 0.9)
    assert latency.repeats == 3


def test_an_even_number_of_repeats() -> None:
    assert conclude([[pair(c, 10.0)] for c in (9.0, 8.0)], "").relative == pytest.approx(0.85)


def test_cases_are_summed_before_the_ratio() -> None:
    """A long prompt counts as much as it takes."""
    latency = conclude([[pair(1.0, 2.0), pair(9.0, 10.0)]], "")
    assert latency.relative == pytest.approx(10 / 12)
    assert (latency.seconds, latency.end_to_end_seconds) == (10.0, 12.0)


@pytest.mark.parametrize("side", ["candidate", "native"])
@pytest.mark.parametrize("at", range(3))
def test_one_outlier_in_three_moves_nothing_but_the_spread(side: str, at: int) -> None:
    times = [{"candidate": 9.0, "native": 10.0} for _ in range(3)]
    times[at][side] *= 3
    latency = conclude([[pair(t["candidate"], t["native"])] for t in times], "")
    assert latency.relative == pytest.approx(0.9)
    assert latency.seconds == 9.0
    assert latency.spread > 0.3


def test_drift_cancels() -> None:
    """A device that gets slower by 5 % each pair: raw medians would be off, their ratio is not."""
    rounds = [[pair(9.0 * 1.05**i, 10.0 * 1.05**i)] for i in range(5)]
    latency = conclude(rounds, "")
    assert latency.relative == pytest.approx(0.9) and latency.spread == pytest.approx(0, abs=1e-12)


def test_drift_within_a_pair_shows_no_more_than_itself() -> None:
    rounds = [[pair(9.0 * 1.001 ** (2 * i), 10.0 * 1.001 ** (2 * i + 1))] for i in range(5)]
    assert conclude(rounds, "").relative == pytest.approx(0.9 / 1.001)


def test_noise_averages_to_the_truth_and_the_spread_covers_it() -> None:
    rng = random.Random(0)
    hits = 0
    for _ in range(200):
        rounds = [[pair(9.0 * rng.gauss(1, 0.02), 10.0 * rng.gauss(1, 0.02))] for _ in range(5)]
        latency = conclude(rounds, "")
        assert abs(latency.relative - 0.9) < 0.1
        hits += abs(latency.relative - 0.9) <= latency.spread * latency.relative
    assert hits > 160
