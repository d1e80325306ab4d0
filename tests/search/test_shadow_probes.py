"""Shadow probes: which are asked for, what they say of the cells, and how far they were right."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.engines.base import Shadow
from fa_tuner.search.shadows import LEAST_COMPARED, agreement, cell_weights, cost, worth_asking
from fa_tuner.search.space import Numbers, Space

SPACE = Space(Grid(4, (0, 1, 5)), ("fp8",))
WEIGHTS = np.outer([8.0, 1.0, 2.0, 1.0], [1.0, 3.0, 0.5])


def answers_of(weights: Numbers, space: Space = SPACE, dtype: str = "fp8") -> dict[Shadow, float]:
    """To all shadows worth asking, of cells whose errors add up."""
    columns = {layer: index for index, layer in enumerate(space.grid.layers)}
    return {
        shadow: float(weights[shadow.step, [columns[layer] for layer in shadow.layers]].sum())
        for shadow in worth_asking(Space(space.grid, (dtype,)))
    }


@pytest.mark.parametrize(("steps", "layers"), [(4, 8), (1, 3), (2, 1), (40, 40)])
def test_what_is_asked_for(steps: int, layers: int) -> None:
    space = Space(Grid(steps, tuple(range(layers))), ("fp8",))
    asked = worth_asking(space)
    assert len(set(asked)) == len(asked) and all(shadow.fits(space.grid, ("fp8",)) for shadow in asked)
    together = [shadow for shadow in asked if shadow.layers == space.grid.layers]
    assert [shadow.step for shadow in together] == list(range(steps))
    singled = min(2, steps) if layers > 1 else 0
    assert len(asked) == steps + singled * layers
    assert cost(asked, space.grid) == pytest.approx(1 + singled * layers / steps)


def test_of_several_dtypes_each_is_asked_for() -> None:
    both = worth_asking(Space(SPACE.grid, ("fp8", "mxfp4")))
    assert [shadow for shadow in both if shadow.dtype == "fp8"] == list(worth_asking(SPACE))
    assert len(both) == 2 * len(worth_asking(SPACE))


def test_cells_of_rank_one_are_found() -> None:
    assert np.allclose(cell_weights(answers_of(WEIGHTS), SPACE), WEIGHTS)


def test_cells_of_two_dtypes_stand_one_below_the_other() -> None:
    both = Space(SPACE.grid, ("fp8", "mxfp4"))
    answers = answers_of(WEIGHTS) | answers_of(20 * WEIGHTS, dtype="mxfp4")
    assert np.allclose(cell_weights(answers, both), np.concatenate([WEIGHTS, 20 * WEIGHTS]))
    assert cell_weights(answers_of(WEIGHTS), both) is None


def test_a_missing_answer_gives_no_weights() -> None:
    answers = answers_of(WEIGHTS)
    del answers[Shadow(2, SPACE.grid.layers, "fp8")]
    assert cell_weights(answers, SPACE) is None


def test_a_cell_that_changed_nothing_still_weighs_something() -> None:
    weights = WEIGHTS.copy()
    weights[1] = 0.0
    found = cell_weights(answers_of(weights), SPACE)
    assert found is not None and (found > 0).all() and found[1].sum() < found[0].sum() / 100


def measured_by(weights: Numbers) -> tuple[list[SkipPolicy], list[float]]:
    policies = list(SPACE.policies())
    rectangles = [SPACE.to_rectangle(policy) for policy in policies]
    return policies, [float(weights[np.ix_(u, v)].sum()) for u, v in rectangles]


def test_probes_that_are_right_agree() -> None:
    found = agreement(answers_of(WEIGHTS), SPACE, *measured_by(7 * WEIGHTS))
    assert found is not None and found.policies == 15 * 7
    assert found.rank_correlation == pytest.approx(1, abs=1e-3) and found.spread_db == pytest.approx(0, abs=1e-6)


def test_probes_that_are_wrong_do_not() -> None:
    """The first step's error grows eightfold; it was the smallest."""
    true = WEIGHTS * np.array([0.01, 1.0, 0.1, 5.0])[:, None]
    found = agreement(answers_of(WEIGHTS), SPACE, *measured_by(true))
    assert found is not None and found.rank_correlation < 0.6 and found.spread_db > 3


def test_the_spread_is_in_db() -> None:
    policies, mse = measured_by(WEIGHTS)
    off = [error * 10 ** (0.2 * (-1) ** index) for index, error in enumerate(mse)]
    found = agreement(answers_of(WEIGHTS), SPACE, policies, off)
    assert found is not None and math.isclose(found.spread_db, 2.0, rel_tol=0.01)


def test_too_little_to_compare() -> None:
    policies, mse = measured_by(WEIGHTS)
    few = LEAST_COMPARED - 1
    assert agreement(answers_of(WEIGHTS), SPACE, policies[:few], mse[:few]) is None
    assert agreement(answers_of(WEIGHTS), SPACE, policies, [1.0] * len(policies)) is None
    assert agreement(answers_of(WEIGHTS), SPACE, policies, [0.0] * len(policies)) is None
    assert agreement({}, SPACE, policies, mse) is None
