from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.domain.pareto import Objectives, dominates, front, hypervolume

coarse = st.builds(Objectives, st.integers(0, 12).map(float), st.integers(0, 12).map(float))
fine = st.builds(Objectives, st.floats(0.1, 1.5), st.floats(0, 100))
points_of = st.lists(st.one_of(coarse, fine), max_size=30)


def itself(point: Objectives) -> Objectives:
    return point


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((1, 30), (2, 20), True),
        ((1, 30), (1, 20), True),
        ((1, 30), (2, 30), True),
        ((1, 30), (1, 30), False),
        ((1, 20), (2, 30), False),
        ((2, 30), (1, 20), False),
    ],
)
def test_dominance(a: tuple[float, float], b: tuple[float, float], expected: bool) -> None:
    assert dominates(Objectives(*a), Objectives(*b)) is expected


@given(fine, fine, fine)
def test_dominance_is_a_strict_order(a: Objectives, b: Objectives, c: Objectives) -> None:
    assert not dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a))
    if dominates(a, b) and dominates(b, c):
        assert dominates(a, c)


@given(points_of)
def test_the_front_is_what_nothing_dominates(points: list[Objectives]) -> None:
    found = front(points, itself)
    assert set(found) == {p for p in points if not any(dominates(q, p) for q in points)}
    assert len(found) == len(set(found))


@given(points_of)
def test_the_front_goes_from_fast_to_faithful(points: list[Objectives]) -> None:
    found = front(points, itself)
    assert found == sorted(found)
    assert [p.psnr_db for p in found] == sorted(p.psnr_db for p in found)


def test_of_equals_the_first_is_kept() -> None:
    named = [("first", Objectives(1, 2)), ("second", Objectives(1, 2))]
    assert front(iter(named), lambda pair: pair[1]) == named[:1]


@given(st.lists(coarse, max_size=10))
def test_hypervolume_equals_the_area_counted_on_a_grid(points: list[Objectives]) -> None:
    """Whole coordinates: the area is the number of unit squares whose middle some point dominates."""
    reference = Objectives(10.0, 2.0)
    latency, psnr_db = np.meshgrid(np.arange(10) + 0.5, np.arange(2, 12) + 0.5)
    covered = np.zeros_like(latency, dtype=bool)
    for point in points:
        covered |= (latency > point.latency) & (psnr_db < point.psnr_db)
    assert hypervolume(points, reference) == pytest.approx(float(covered.sum()))


@given(points_of, fine)
def test_hypervolume_never_shrinks(points: list[Objectives], more: Objectives) -> None:
    reference = Objectives(1.0, 30.0)
    area = hypervolume(points, reference)
    assert 0 <= area <= hypervolume([*points, more], reference) * (1 + 1e-9) + 1e-9


def test_nothing_has_no_area() -> None:
    reference = Objectives(1.0, 30.0)
    assert hypervolume([], reference) == 0.0
    assert hypervolume([reference, Objectives(1.2, 50.0), Objectives(0.5, 20.0)], reference) == 0.0
    assert hypervolume(iter([Objectives(0.5, 40.0)]), reference) == pytest.approx(5.0)
