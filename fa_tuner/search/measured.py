"""What a study's trials say, as the rectangle sampler reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from fa_tuner.search.fitted import LEAST_MSE
from fa_tuner.search.space import Flags, Numbers, Rectangle, Space

MSE = "mse"  # user attribute of a trial: mean squared error by searched prompt
LEAST_SAVED = 1e-4  # of what the best dtype saves, for one that saves nothing
DOUBTED_SAVING = 0.25  # of the same, until so many policies of a dtype were measured that noise is no reason:
FEW = 4


@dataclass(frozen=True)
class Measured:
    """Rectangles [n, rows], [n, layers] with ln MSE [prompts, n], those that save most first; and those being run.
    `savings` are by dtype what quantizing everything saves, the largest as 1; a dtype of which nothing was measured
    counts as much."""

    rows: Flags
    layers: Flags
    log_mse: Numbers
    feasible: Flags
    pending: list[Rectangle]
    savings: Numbers


@dataclass(frozen=True)
class _Row:
    rectangle: Rectangle
    latency: float
    log_mse: Numbers
    feasible: bool


class Trials:
    """Reads a study again and again; trials that have ended are kept, for reading them takes longest."""

    def __init__(self, space: Space, costs: Numbers) -> None:
        """`costs` are relative costs of the layers, 1 in the mean."""
        self._space, self._costs, self._names = space, costs, space.choices.keys()
        self._known: dict[int, _Row | None] = {}

    def read(self, study: optuna.Study) -> Measured:
        pending: list[Rectangle] = []
        rows: list[_Row] = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING)):
            if trial.state is TrialState.RUNNING:
                pending += [self._space.flags_of(trial.params)] if trial.params.keys() == self._names else []
                continue
            if trial.number not in self._known:
                self._known[trial.number] = self._row_of(trial)
            if (row := self._known[trial.number]) is not None:
                rows.append(row)
        savings = self._savings_of(rows)
        u, v = self._space.stacked([row.rectangle for row in rows])
        order = np.argsort(-self.share(u, v, savings), kind="stable").tolist()
        return Measured(
            u[order], v[order], np.array([rows[i].log_mse for i in order]).T,
            np.array([rows[i].feasible for i in order], dtype=np.bool_), pending, savings,
        )  # fmt: skip

    def share(self, rows: Flags, layers: Flags, savings: Numbers) -> Numbers:
        """Of the cells, by what quantizing them saves: [n]."""
        steps = self._space.grid.steps
        return np.asarray(rows @ savings.repeat(steps) / steps * (layers * self._costs).mean(1))

    def _row_of(self, trial: FrozenTrial) -> _Row | None:
        """None where it is of no use: one of other parameters, without its errors, or the native policy."""
        if trial.params.keys() != self._names or not trial.user_attrs.get(MSE):
            return None
        rectangle = self._space.flags_of(trial.params)
        mse = np.maximum(np.asarray(trial.user_attrs[MSE], dtype=np.float64), LEAST_MSE)
        feasible = all(violation <= 0 for violation in trial.constraints.values())
        filled = all(side.any() for side in rectangle)
        return _Row(rectangle, trial.values[0], np.log(mse), feasible) if filled else None

    def _savings_of(self, rows: Sequence[_Row]) -> Numbers:
        """From all measured policies of a dtype what a cell saves, the median weighed by their cells: one timing that
        went wrong must not decide on a dtype."""
        dtypes = len(self._space.dtypes)
        if dtypes == 1 or not rows:
            return np.ones(dtypes)
        u, v = self._space.stacked([row.rectangle for row in rows])
        share, saved = self.share(u, v, np.ones(dtypes)), 1 - np.array([row.latency for row in rows])
        of, slopes, least = self._space.dtype_of(u), np.full(dtypes, np.nan), np.full(dtypes, 1.0)
        for dtype in np.unique(of).tolist():
            mine = np.flatnonzero(of == dtype)
            mine = mine[np.argsort(saved[mine] / share[mine])]
            weights = np.cumsum(share[mine])
            middle = mine[np.searchsorted(weights, weights[-1] / 2)]
            slopes[dtype] = saved[middle] / share[middle]
            least[dtype] = DOUBTED_SAVING if len(mine) < FEW else LEAST_SAVED
        best = max(float(np.nanmax(slopes)), LEAST_SAVED)
        return np.asarray(np.fmax(slopes / best, least))
