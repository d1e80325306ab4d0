"""The rectangle sampler: fa-tune's own, for policies that quantize a rectangle of steps and layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from fa_tuner.domain.policy import Grid
from fa_tuner.search import candidates, space
from fa_tuner.search.acquisition import Goal, Yardstick, aggregated
from fa_tuner.search.candidates import Phase, Rectangle, Rectangles
from fa_tuner.search.error_model import Belief, ErrorModel, Spreads
from fa_tuner.search.space import Flags, Indices, Numbers

MSE = "mse"  # user attribute of a trial: mean squared error by searched prompt
LEAST_MSE = 255.0**2 / 1e10  # of identical frames: 100 dB
MOST_FITTED = 200  # measurements the models are fitted to: those nearest the front
MOST_RATED = 600  # candidates that the models are asked about
FITS = 2  # the second with the spreads that the first one learned
ASSUMED_SPREAD = 0.5
SHADOWED = Spreads(steps=0.5, layers=0.5)  # about what shadow probes say; how true they are is learned
CERTAIN = 1e-6  # deviation of ln MSE that stands for none
NO_GAIN = 1e-6  # of the same box as NOTHING_LEFT
LEARNING = 1.0  # the worth of narrowing what is believed of promising candidates, beside their own gain
PROMISING = 40
DRAWS = 2  # of the sensitivities, for candidates beside the most likely ones
NOTHING_LEFT = 1e-4  # of the box that the front is measured in
LEAST_MEASURED = 6  # before the models are believed that nothing is left


# why nothing is proposed: all of the predicted front is measured; or what is not is not worth its generation
Settled = Literal["front verified", "nothing left to gain"]


@dataclass(frozen=True)
class Proposed:
    """The next policy as a rectangle, what brought it up, and the expected gain."""

    rectangle: Rectangle
    phase: Phase
    gain: float


@dataclass(frozen=True)
class _Row:
    steps: Flags
    layers: Flags
    log_mse: Numbers
    feasible: bool


@dataclass(frozen=True)
class _Measured:
    """Rectangles [n, T] and [n, N] with ln MSE [prompts, n], the largest first; and those being run."""

    steps: Flags
    layers: Flags
    log_mse: Numbers
    feasible: Flags
    pending: list[Rectangle]


class RectangleSampler(BaseSampler):
    """Chooses the policy with the largest expected gain for its cost.

    From the trials of the study (parameters as in `space`, user attribute `mse`) it fits an `ErrorModel` a prompt,
    lists the policies of the predicted front, of plausible other fronts, and exchanges around the measured one, and
    rates each by the hypervolume that it is expected to add, and by the gain at the threshold, over the square root of
    the cost in generations. All of its state comes from the storage, so that it resumes, and several processes may ask
    it: what they run meanwhile counts as measured as predicted.
    """

    def __init__(
        self, grid: Grid, seed: int = 0, goal: Goal | None = None, *, resumes: bool = False,
        priors: Sequence[Numbers] | None = None, costs: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            goal: what is searched for; the front over the worst prompt where none is given.
            resumes: whether the engine goes on from kept prefixes, which makes some policies cheap.
            priors: cell weights [steps, layers] by prompt, from shadow probes.
            costs: relative cost of a layer's native attention by layer; all alike where none are given.
        """
        self._grid, self._seed, self._goal, self._resumes = grid, seed, goal or Goal(), resumes
        self._priors = priors
        weights = np.ones(len(grid.layers)) if costs is None else np.asarray(costs, dtype=np.float64)
        self._costs = weights / weights.mean()
        self._models: list[ErrorModel] = []
        self._known: dict[int, _Row] = {}
        self._otherwise = RandomSampler(seed)
        self._next: Proposed | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: CategoricalDistribution(space.CHOICES) for name in space.names(self._grid)}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        proposed, self._next = self._next or self.propose(study), None
        if isinstance(proposed, str):
            return {}
        steps, layers = proposed.rectangle
        flags = dict(zip(space.names(self._grid), (*steps.tolist(), *layers.tolist()), strict=True))
        return {name: not quantized for name, quantized in flags.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Where nothing is proposed any more, or a parameter is not one of the selectors'."""
        return self._otherwise.sample_independent(study, trial, param_name, param_distribution)

    def propose(
        self, study: optuna.Study, elsewhere: Sequence[Rectangle] = (), failed: Sequence[Rectangle] = ()
    ) -> Proposed | Settled:
        """The next policy, which is then also what the study's next trial is given; why there is none, where no policy
        is left or none is expected to gain. `elsewhere` are rectangles that others are about to measure; those that
        `failed` are not proposed again."""
        measured = self._measured(study)
        pending = [r for r in (*measured.pending, *elsewhere) if r[0].any() and r[1].any()]
        useless = set(candidates.keys(*_stacked(failed))) if failed else set()
        found = self._best(measured, pending, useless) if len(measured.steps) else self._first(pending, useless)
        self._next = None if isinstance(found, str) else found
        return found

    def _first(self, pending: Sequence[Rectangle], useless: set[bytes]) -> Proposed | Settled:
        """Before anything was measured: everything quantized, which the yardstick begins with; then schedules."""
        count, width = self._grid.steps, len(self._grid.layers)
        u, v = candidates.schedules(count, width)
        u, v = np.concatenate([np.ones((1, count), bool), u]), np.concatenate([np.ones((1, width), bool), v])
        taken = useless.union(candidates.keys(*_stacked(pending)) if pending else ())
        left = [index for index, name in enumerate(candidates.keys(u, v)) if name not in taken]
        return Proposed((u[left[0]], v[left[0]]), "preset", 1.0) if left else "nothing left to gain"

    def _best(self, measured: _Measured, pending: Sequence[Rectangle], useless: set[bytes]) -> Proposed | Settled:
        steps, layers = measured.steps, measured.layers
        share, quality = self._share(steps, layers), aggregated(measured.log_mse, self._goal.how)
        goal = self._goal.given(quality, measured.feasible)
        near = _nearest(share, quality, MOST_FITTED)
        self._fit(steps[near], layers[near], measured.log_mse[:, near])
        front = _front(share, quality)
        seen = useless.union(candidates.keys(steps, layers))
        if pending:
            waiting = _stacked(pending)
            believed = np.array([model.mean(*waiting) for model in self._models])
            share = np.concatenate([share, self._share(*waiting)])
            quality = np.concatenate([quality, aggregated(believed, goal.how)])
            seen.update(candidates.keys(*waiting))
        yardstick = Yardstick(share, quality, goal)
        draw = np.random.default_rng([self._seed, len(seen)])
        phases, u, v = candidates.unseen(self._listed(steps, layers, front, draw), seen)
        if not phases:
            return "front verified"
        kept = self._promising(u, v, yardstick)
        beliefs = [model.predict(u[kept], v[kept]) for model in self._models]
        gains = _gains(beliefs, self._share(u[kept], v[kept]), yardstick)
        if gains.max() < NOTHING_LEFT and len(kept) < len(phases):  # before giving up, all of them
            kept = np.arange(len(phases))
            beliefs = [model.predict(u, v) for model in self._models]
            gains = _gains(beliefs, self._share(u, v), yardstick)
        if gains.max() < NOTHING_LEFT and len(steps) >= LEAST_MEASURED:
            mean = np.array([model.mean(u, v) for model in self._models])
            predicted = yardstick.gains(self._share(u, v), mean, np.full_like(mean, CERTAIN))
            return "front verified" if predicted.max() < NO_GAIN else "nothing left to gain"
        value = gains + LEARNING * self._lessons(beliefs, gains)
        best = int(np.argmax(value / np.sqrt(self._generations(u[kept], v[kept], steps, layers))))
        chosen = kept[best]
        return Proposed((u[chosen], v[chosen]), phases[chosen], float(gains[best]))

    def _lessons(self, beliefs: Sequence[Belief], gains: Numbers) -> Numbers:
        """What measuring each candidate would teach of the most promising ones, in the measure of their gains."""
        promising = np.argsort(-gains)[:PROMISING]
        weights = gains[promising] / max(gains[promising].sum(), NO_GAIN)
        told = [model.learned(belief, promising) @ weights for model, belief in zip(self._models, beliefs, strict=True)]
        return np.asarray(gains.max() * np.sum(told, axis=0))

    def sensitivities(self, study: optuna.Study) -> list[tuple[Numbers, Numbers]]:
        """By prompt, the share of the squared error of each step [T] and of each layer [N]; empty before anything was
        measured."""
        measured = self._measured(study)
        if not len(measured.steps):
            return []
        self._fit(measured.steps, measured.layers, measured.log_mse)
        return [model.sensitivities for model in self._models]

    def _measured(self, study: optuna.Study) -> _Measured:
        pending: list[Rectangle] = []
        rows: list[_Row] = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING)):
            if len(trial.params) != self._grid.steps + len(self._grid.layers):
                continue
            if trial.state is TrialState.RUNNING:
                pending.append(space.flags_of(trial.params, self._grid))
            elif trial.user_attrs.get(MSE):
                if trial.number not in self._known:
                    mse = np.maximum(np.asarray(trial.user_attrs[MSE], dtype=np.float64), LEAST_MSE)
                    feasible = all(violation <= 0 for violation in trial.constraints.values())
                    self._known[trial.number] = _Row(*space.flags_of(trial.params, self._grid), np.log(mse), feasible)
                rows.append(self._known[trial.number])
        rows = sorted(
            (r for r in rows if r.steps.any() and r.layers.any()), key=lambda r: -r.steps.sum() * r.layers.sum()
        )
        return _Measured(
            np.array([r.steps for r in rows]), np.array([r.layers for r in rows]),
            np.array([r.log_mse for r in rows]).T, np.array([r.feasible for r in rows], dtype=np.bool_), pending,
        )  # fmt: skip

    def _fit(self, steps: Flags, layers: Flags, log_mse: Numbers) -> None:
        """Anew each time: what a model was before would not be there in a resumed study."""
        size, priors = (self._grid.steps, len(self._grid.layers)), self._priors
        self._models = (
            [ErrorModel(*size) for _ in log_mse]
            if priors is None
            else [ErrorModel(*size, prior, SHADOWED) for prior in priors]
        )
        for model, row in zip(self._models, log_mse, strict=True):
            for _ in range(FITS):
                model.fit(steps, layers, row)

    def _listed(
        self, steps: Flags, layers: Flags, front: Sequence[int], draw: np.random.Generator
    ) -> Iterator[tuple[Phase, Rectangles]]:
        by_prompt = [model.cells() for model in self._models]
        together = np.sum(by_prompt, axis=0)
        yield "preset", candidates.schedules(*together.shape)
        yield "predicted", candidates.chains(together, self._costs)
        if len(by_prompt) > 1:
            yield "predicted", candidates.chains(max(by_prompt, key=np.sum), self._costs)
        for index in front:
            yield "exchange", candidates.exchanges((steps[index], layers[index]), together)
        for _ in range(DRAWS):
            drawn = np.sum([model.cells(draw) for model in self._models], axis=0)
            yield "probe", candidates.chains(drawn, self._costs)

    def _promising(self, u: Flags, v: Flags, yardstick: Yardstick) -> Indices:
        """Indices of the candidates that the means of the models rate highest, all deviations taken as alike."""
        if len(u) <= MOST_RATED:
            return np.arange(len(u))
        mean = np.array([model.mean(u, v) for model in self._models])
        gains = yardstick.gains(self._share(u, v), mean, np.full_like(mean, ASSUMED_SPREAD))
        return np.sort(np.argpartition(-gains, MOST_RATED)[:MOST_RATED])

    def _share(self, steps: Flags, layers: Flags) -> Numbers:
        """Of the cells, by cost."""
        return np.asarray(steps.mean(1) * (layers * self._costs).mean(1))

    def _generations(self, u: Flags, v: Flags, steps: Flags, layers: Flags) -> Numbers:
        """The share of the steps that each candidate has to run, after the longest prefix that it shares with the
        native run or with a measured policy of the same layers; at least the last step is run."""
        count = self._grid.steps
        if not self._resumes:
            return np.ones(len(u))
        shared = np.argmax(u, axis=1)
        alike: dict[bytes, list[int]] = {}
        for index, row in enumerate(layers):
            alike.setdefault(row.tobytes(), []).append(index)
        for index, row in enumerate(v):
            if (others := alike.get(row.tobytes())) is not None:
                differs = np.column_stack([steps[others] != u[index], np.ones(len(others), dtype=np.bool_)])
                shared[index] = max(shared[index], int(np.argmax(differs, axis=1).max()))
        return np.asarray((count - np.minimum(shared, count - 1)) / count)


def _gains(beliefs: Sequence[Belief], share: Numbers, yardstick: Yardstick) -> Numbers:
    return yardstick.gains(share, np.array([b.mean for b in beliefs]), np.array([b.deviation for b in beliefs]))


def _stacked(rectangles: Sequence[Rectangle]) -> Rectangles:
    return np.array([u for u, _ in rectangles]), np.array([v for _, v in rectangles])


def _front(share: Numbers, quality: Numbers) -> list[int]:
    best, found = -np.inf, []
    for index in np.lexsort((-quality, -share)).tolist():
        if quality[index] > best:
            best = quality[index]
            found.append(index)
    return found


def _nearest(share: Numbers, quality: Numbers, most: int) -> Indices:
    """The `most` measurements that miss the front by the fewest dB, in their order; the first one always."""
    if len(share) <= most:
        return np.arange(len(share))
    order = np.argsort(-share, kind="stable")
    missed = np.empty_like(quality)
    missed[order] = np.maximum.accumulate(quality[order]) - quality[order]
    missed[0] = -1.0
    return np.sort(np.argsort(missed, kind="stable")[:most])
