"""The share of the squared error by step and by layer, from what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from fa_tuner.domain.errors import NotFoundError
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.search.sensitivity import LEAST_MEASURED, MOST_FITTED, sensitivities
from fa_tuner.search.space import Numbers, Space

STEPS, LAYERS = 6, 8
GRID = Grid(STEPS, tuple(range(2, 2 + LAYERS)))
ONE = Space(GRID, ("fp8",))
TWO = Space(GRID, ("fp8", "mxfp4"))


def weights(seed: int, dtypes: int = 1) -> Numbers:
    draw = np.random.default_rng(seed)
    return np.asarray(np.exp(draw.normal(0, 1, (dtypes * STEPS, 1)) + draw.normal(0, 1, LAYERS)))


def drawn(space: Space, count: int, seed: int) -> list[SkipPolicy]:
    """Different ones, everything quantized first."""
    draw = np.random.default_rng(seed)
    found = {SkipPolicy(dtype).key: SkipPolicy(dtype) for dtype in space.dtypes}
    while len(found) < count:
        steps = SkipSelector.of(np.flatnonzero(draw.random(STEPS) < 0.4).tolist())
        layers = SkipSelector.of((2 + np.flatnonzero(draw.random(LAYERS) < 0.4)).tolist())
        policy = SkipPolicy(str(draw.choice(space.dtypes)), steps, layers).on(GRID)
        if not policy.is_native:
            found[policy.key] = policy
    return list(found.values())


def errors(space: Space, cells: Numbers, policies: list[SkipPolicy]) -> list[float]:
    rows, layers = space.stacked([space.to_rectangle(policy) for policy in policies])
    return [float(value) for value in np.einsum("ni,ij,nj->n", rows, cells, layers)]


def order(values: Numbers | tuple[float, ...]) -> list[int]:
    return [int(index) for index in np.argsort(values)]


def test_each_prompt_has_its_own_shares() -> None:
    policies = drawn(ONE, 40, 0)
    truths = weights(1), weights(2)
    mse = list(zip(*(errors(ONE, cells, policies) for cells in truths), strict=True))
    found = sensitivities(ONE, policies, mse)
    assert len(found) == 2
    for cells, (of_fp8,) in zip(truths, found, strict=True):
        assert of_fp8.dtype == "fp8"
        assert len(of_fp8.steps) == STEPS and len(of_fp8.layers) == LAYERS
        assert sum(of_fp8.steps) == pytest.approx(1) and sum(of_fp8.layers) == pytest.approx(1)
        assert of_fp8.steps == pytest.approx(cells.sum(1) / cells.sum(), abs=0.05)
        assert of_fp8.layers == pytest.approx(cells.sum(0) / cells.sum(), abs=0.05)


def test_each_dtype_has_its_own_shares() -> None:
    policies, cells = drawn(TWO, 80, 0), weights(3, dtypes=2)
    ((of_fp8, of_mxfp4),) = sensitivities(TWO, policies, [[value] for value in errors(TWO, cells, policies)])
    assert (of_fp8.dtype, of_mxfp4.dtype) == ("fp8", "mxfp4")
    for found, rows in ((of_fp8, cells[:STEPS]), (of_mxfp4, cells[STEPS:])):
        assert sum(found.steps) == pytest.approx(1)
        assert order(found.steps)[-1] == order(rows.sum(1))[-1]


def test_a_dtype_of_which_too_little_was_measured_is_left_out() -> None:
    policies = [p for p in drawn(TWO, 60, 0) if p.dtype == "fp8"] + [SkipPolicy("mxfp4")]
    ((only,),) = sensitivities(TWO, policies, [[1.0 + i] for i in range(len(policies))])
    assert only.dtype == "fp8"


def test_too_little_measured() -> None:
    policies = drawn(ONE, LEAST_MEASURED, 0)
    assert sensitivities(ONE, policies, [[1.0]] * LEAST_MEASURED)
    with pytest.raises(NotFoundError, match=f"need {LEAST_MEASURED} .* there are {LEAST_MEASURED - 1} of fp8"):
        sensitivities(ONE, policies[1:], [[1.0]] * (LEAST_MEASURED - 1))
    with pytest.raises(NotFoundError, match="0 of fp8, 0 of mxfp4"):
        sensitivities(TWO, [], [])


def test_identical_frames_and_many_policies() -> None:
    policies = drawn(ONE, MOST_FITTED + 50, 0)
    ((found,),) = sensitivities(ONE, policies, [[0.0]] * len(policies))
    assert np.isfinite([*found.steps, *found.layers]).all()


def test_what_shadow_probes_say_is_begun_with() -> None:
    cells, policies = weights(4), drawn(ONE, LEAST_MEASURED, 0)
    mse = [[value] for value in errors(ONE, cells, policies)]
    ((without,),), ((informed,),) = (sensitivities(ONE, policies, mse, priors) for priors in (None, [cells]))
    truth = cells.sum(0) / cells.sum()
    assert np.abs(np.subtract(informed.layers, truth)).max() < np.abs(np.subtract(without.layers, truth)).max()
