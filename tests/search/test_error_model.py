"""The error model on data that it was made for, and on data that it was not."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest

from fa_tuner.search.acquisition import DB
from fa_tuner.search.candidates import Rectangles
from fa_tuner.search.error_model import ErrorModel
from fa_tuner.search.fitted import LEAST_MSE
from fa_tuner.search.space import Numbers

STEPS, LAYERS = 5, 7
SEEDS = range(6)
EVERYTHING = np.ones((1, STEPS), bool), np.ones((1, LAYERS), bool)


def cells(seed: int, interactions: float = 0.0) -> Numbers:
    """What each cell adds to the squared error; of rank one without interactions."""
    draw = np.random.default_rng(seed)
    rows, columns = draw.normal(0, 1, STEPS), draw.normal(0, 1, LAYERS)
    weights = np.exp(rows[:, None] + columns + interactions * draw.normal(0, 1, (STEPS, LAYERS)))
    return np.asarray(300 * weights / weights.sum())


def log_mse(weights: Numbers, rectangles: Rectangles) -> Numbers:
    steps, layers = (side.astype(float) for side in rectangles)
    return np.asarray(np.log(((steps @ weights) * layers).sum(1)))


def together(*parts: Rectangles) -> Rectangles:
    return np.concatenate([u for u, _ in parts]), np.concatenate([v for _, v in parts])


def probes(left_out: bool) -> Rectangles:
    """Everything, and one step or layer alone; or all but one."""
    steps, layers = np.eye(STEPS, dtype=bool) ^ left_out, np.eye(LAYERS, dtype=bool) ^ left_out
    return together(
        EVERYTHING, (steps, np.ones((STEPS, LAYERS), bool)), (np.ones((LAYERS, STEPS), bool), layers)
    )  # fmt: skip


def rectangles(count: int, seed: int, steps: int = STEPS, layers: int = LAYERS) -> Rectangles:
    draw = np.random.default_rng(1000 + seed)
    u, v = draw.random((9 * count, steps)) < 0.6, draw.random((9 * count, layers)) < 0.6
    filled = u.any(axis=1) & v.any(axis=1)
    return u[filled][:count], v[filled][:count]


def fitted(weights: Numbers, measured: Rectangles, prior: Numbers | None = None) -> ErrorModel:
    model = ErrorModel(*weights.shape, prior)
    model.fit(*measured, log_mse(weights, measured))
    return model


def deviation(model: ErrorModel, asked: Rectangles) -> Numbers:
    return model.predict(*asked).deviation


def error_db(model: ErrorModel, weights: Numbers, asked: Rectangles) -> float:
    """Root of the mean square."""
    return float(DB * np.sqrt(np.mean((model.mean(*asked) - log_mse(weights, asked)) ** 2)))


UNSEEN = rectangles(200, 0)
MEASURED = {
    "one in": lambda seed: probes(left_out=False),
    "one left out": lambda seed: probes(left_out=True),
    "at random": lambda seed: together(EVERYTHING, rectangles(20, seed + 1)),
}


@pytest.mark.parametrize(
    ("kind", "typical", "most"), [("one in", 0.6, 2.0), ("at random", 1.2, 2.5), ("one left out", 1.7, 3.5)]
)
def test_a_handful_of_rectangles_tells_the_others(kind: str, typical: float, most: float) -> None:
    """Of data of rank one, in dB. What one index left out changes is small where it is no sensitive one."""
    errors = [error_db(fitted(cells(seed), MEASURED[kind](seed)), cells(seed), UNSEEN) for seed in SEEDS]
    assert median(errors) < typical and max(errors) < most, errors


@pytest.mark.parametrize("interactions", [0.0, 0.3])
@pytest.mark.parametrize("kind", MEASURED)
def test_the_stated_deviation_covers(kind: str, interactions: float) -> None:
    for seed in SEEDS:
        weights = cells(seed, interactions)
        belief = fitted(weights, MEASURED[kind](seed)).predict(*UNSEEN)
        assert np.mean(np.abs(belief.mean - log_mse(weights, UNSEEN)) < 2 * belief.deviation) > 0.93, seed


def test_the_mean_is_that_of_the_prediction() -> None:
    model = fitted(cells(1), MEASURED["at random"](1))
    assert np.allclose(model.mean(*UNSEEN), model.predict(*UNSEEN).mean, rtol=0, atol=1e-4), "single precision"


def test_a_right_prior_needs_no_more_than_the_level() -> None:
    weights = cells(3, interactions=0.5)
    assert error_db(fitted(weights, EVERYTHING, prior=7 * weights), weights, UNSEEN) < 0.01
    assert error_db(fitted(weights, MEASURED["at random"](3), prior=weights), weights, UNSEEN) < 0.3


def test_a_wrong_prior_is_overcome() -> None:
    """One that takes the worst cells for the best."""
    weights, asked = cells(3), log_mse(cells(3), UNSEEN)
    believed = fitted(weights, EVERYTHING, prior=1 / weights)
    corrected = fitted(weights, together(EVERYTHING, rectangles(40, 5)), prior=1 / weights)
    assert error_db(believed, weights, UNSEEN) > 5 > 2.5 > error_db(corrected, weights, UNSEEN)
    assert (
        np.corrcoef(believed.mean(*UNSEEN), asked)[0, 1]
        < 0.5
        < 0.95
        < np.corrcoef(corrected.mean(*UNSEEN), asked)[0, 1]
    )


def test_deviations_shrink_where_something_was_measured() -> None:
    weights, here, there = cells(2), rectangles(3, 8), rectangles(3, 9)
    before, after = fitted(weights, EVERYTHING), fitted(weights, together(EVERYTHING, here))
    assert (deviation(after, here) < 0.15).all() and (deviation(before, here) > 0.3).all()
    assert (deviation(after, there) < deviation(before, there)).all()
    assert (deviation(after, there) > 0.15).all()


def test_what_a_measurement_would_teach_is_what_it_teaches() -> None:
    """In deviation, which depends on where was measured alone, as far as the model is linear."""
    weights, known, asked = cells(2), MEASURED["at random"](2), rectangles(8, 11)
    before = fitted(weights, known)
    belief = before.predict(*asked)
    told = before.learned(belief, np.arange(8))
    assert told.shape == (8, 8) and (told >= 0).all()
    for index in range(8):
        one = asked[0][[index]], asked[1][[index]]
        narrowed = belief.deviation - deviation(fitted(weights, together(known, one)), asked)
        assert np.abs(told[index] - narrowed).max() < 0.1
        assert told[index, index] == told[index].max()


def test_what_was_measured_is_believed() -> None:
    weights = cells(4, interactions=1.0)
    measured = MEASURED["at random"](4)
    assert np.abs(fitted(weights, measured).mean(*measured) - log_mse(weights, measured)).max() < 0.15


def test_cells_follow_the_measurements() -> None:
    weights = cells(5)
    found = fitted(weights, probes(left_out=False)).cells()
    assert found.shape == (STEPS, LAYERS)
    assert np.corrcoef(np.log(found).ravel(), np.log(weights).ravel())[0, 1] > 0.95
    assert found.sum() == pytest.approx(weights.sum(), rel=0.3)


def test_a_cell_that_is_worse_than_its_step_and_its_layer_stands_out() -> None:
    weights, alone = np.full((STEPS, LAYERS), 3.0), (np.eye(STEPS, dtype=bool)[[2]], np.eye(LAYERS, dtype=bool)[[4]])
    weights[2, 4] = 30.0
    rest = probes(left_out=False)
    before, after = (fitted(weights, measured).cells() for measured in (rest, together(rest, alone)))
    assert after[2, 4] > 1.3 * before[2, 4]
    assert after[2, 4] == after.max() > 1.3 * after[2, np.arange(LAYERS) != 4].max()


def test_draws_differ_as_much_as_is_open() -> None:
    weights, draw = cells(6), np.random.default_rng(0)
    spread = {}
    for name, measured in (("before", EVERYTHING), ("after", MEASURED["at random"](6))):
        model = fitted(weights, measured)
        spread[name] = np.std([np.log(model.cells(draw)) for _ in range(50)], axis=0).mean()
    assert spread["after"] < 0.8 * spread["before"]
    assert spread["after"] > 0


@pytest.mark.parametrize(("steps", "layers"), [(1, 1), (1, 6), (6, 1)])
def test_one_step_or_one_layer(steps: int, layers: int) -> None:
    weights = np.exp(np.random.default_rng(0).normal(0, 1, (steps, layers)))
    measured = np.ones((1, steps), bool), np.ones((1, layers), bool)
    if steps * layers > 1:
        indices = np.eye(steps * layers, dtype=bool)
        alone = (indices, np.ones((steps, 1), bool)) if layers == 1 else (np.ones((layers, 1), bool), indices)
        measured = together(measured, alone)
    model, asked = fitted(weights, measured), rectangles(20, 0, steps, layers)
    assert np.abs(model.mean(*asked) - log_mse(weights, asked)).max() < 0.3
    assert np.isfinite(deviation(model, asked)).all() and model.cells().shape == (steps, layers)


@pytest.mark.parametrize("identical", [slice(None), slice(1, None), slice(8, None)])
def test_identical_frames(identical: slice) -> None:
    """Nothing of what was measured, all of it but the first, or some of it differs from the native frames."""
    measured = MEASURED["at random"](7)
    values = log_mse(cells(7), measured)
    values[identical] = np.log(LEAST_MSE)
    model = ErrorModel(STEPS, LAYERS)
    model.fit(*measured, values)
    belief = model.predict(*UNSEEN)
    assert np.isfinite(belief.mean).all() and np.isfinite(belief.deviation).all()
    assert np.isfinite(model.cells()).all() and (model.cells() > 0).all()
    if identical == slice(None):
        assert np.abs(belief.mean - np.log(LEAST_MSE)).max() < 8


def test_the_same_rectangle_twice() -> None:
    weights, measured = cells(1), MEASURED["at random"](1)
    once, twice = fitted(weights, measured), fitted(weights, together(measured, measured))
    assert np.abs(once.mean(*UNSEEN) - twice.mean(*UNSEEN)).max() < 0.3


def test_a_second_fit_takes_more_data() -> None:
    weights, measured = cells(2, interactions=0.3), MEASURED["at random"](2)
    model = fitted(weights, (measured[0][:6], measured[1][:6]))
    few = error_db(model, weights, UNSEEN)
    model.fit(*measured, log_mse(weights, measured))
    assert error_db(model, weights, UNSEEN) < few
    fresh = fitted(weights, measured).mean(*UNSEEN)
    assert DB * np.abs(model.mean(*UNSEEN) - fresh).mean() < 1.0
