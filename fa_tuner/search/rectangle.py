"""The rectangle sampler: fa-tune's own, for policies that quantize a rectangle of steps and layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from fa_tuner.search import candidates
from fa_tuner.search.acquisition import Goal, Yardstick, aggregated
from fa_tuner.search.candidates import Phase
from fa_tuner.search.error_model import Belief, ErrorModel
from fa_tuner.search.fitted import MOST_FITTED, by_dtype, fit_models, one_thread
from fa_tuner.search.measured import Measured, Trials
from fa_tuner.search.space import Flags, Indices, Numbers, Rectangle, Rectangles, Space

MOST_RATED = 350  # candidates that the models are asked about
ASSUMED_SPREAD = 0.5
CERTAIN = 1e-6  # deviation of ln MSE that stands for none
NO_GAIN = 1e-6  # of the same box as NOTHING_LEFT
LEARNING = 1.0  # the worth of narrowing what is believed of promising candidates, beside their own gain
PROMISING = 40
DRAWS = 2  # of the sensitivities, for candidates beside the most likely ones
NOTHING_LEFT = 1e-4  # of the box that the front is measured in
MOST_FAILED = 2  # policies of a dtype of which none was measured, before it is left out
LEAST_MEASURED = 6  # before the models are believed that nothing is left


# why nothing is proposed: all of the predicted front is measured; or what is not is not worth its generation
Settled = Literal["front verified", "nothing left to gain"]


@dataclass(frozen=True)
class Proposed:
    """The next policy as a rectangle, what brought it up, and the expected gain."""

    rectangle: Rectangle
    phase: Phase
    gain: float


class RectangleSampler(BaseSampler):
    """Chooses the policy with the largest expected gain for its cost.

    From the trials of the study (parameters as in `space`, user attribute `mse`) it fits an `ErrorModel` a prompt,
    lists the policies of the predicted front, of plausible other fronts, and exchanges around the measured one, and
    rates each by the hypervolume that it is expected to add, and by the gain at the threshold, over the square root of
    the cost in generations. All of its state comes from the storage, so that it resumes, and several processes may ask
    it: what they run meanwhile counts as measured as predicted.
    """

    def __init__(
        self, space: Space, seed: int = 0, goal: Goal | None = None, *, resumes: bool = False,
        priors: Sequence[Numbers] | None = None, costs: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            goal: what is searched for; the front over the worst prompt where none is given.
            resumes: whether the engine goes on from kept prefixes, which makes some policies cheap.
            priors: cell weights [rows, layers] by prompt, from shadow probes.
            costs: relative cost of a layer's native attention by layer; all alike where none are given.
        """
        self._space, self._seed, self._goal, self.resumes = space, seed, goal or Goal(), resumes
        self._steps, self._priors = space.grid.steps, priors
        weights = np.ones(len(space.grid.layers)) if costs is None else np.asarray(costs, dtype=np.float64)
        self._costs = weights / weights.mean()
        self._models: list[ErrorModel] = []
        self._trials = Trials(space, self._costs)
        self._otherwise = RandomSampler(seed)
        self._next: Proposed | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: CategoricalDistribution(values) for name, values in self._space.choices.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        proposed, self._next = self._next or self.propose(study), None
        return {} if isinstance(proposed, str) else self._space.params_of(proposed.rectangle)

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
        measured = self._trials.read(study)
        pending = [r for r in (*measured.pending, *elsewhere) if r[0].any() and r[1].any()]
        useless = self._space.stacked(failed)
        found: Proposed | Settled | None = self._anchor(measured, self._space.stacked(pending), useless)
        if found is None:
            with one_thread():
                found = self._best(measured, pending, set(candidates.keys(*useless)))
        self._next = None if isinstance(found, str) else found
        return found

    def _anchor(self, measured: Measured, pending: Rectangles, useless: Rectangles) -> Proposed | Settled | None:
        """Everything quantized in each dtype, which the yardstick and the levels begin with; a schedule of a dtype of
        which nothing is there to fit to; None once all that is done, or a dtype failed `MOST_FAILED` times."""
        everything = np.ones((1, self._steps), bool), np.ones((1, len(self._costs)), bool)
        known = (measured.rows, measured.layers), pending, useless
        wanted = [self._space.of(dtype, *everything) for dtype in self._space.dtypes]
        for index, dtype in enumerate(self._space.dtypes):
            begun, failures = (
                int(np.sum(self._space.dtype_of(rows) == index)) for rows in (_joined(known[:2])[0], useless[0])
            )
            if not len(measured.rows) or (not begun and failures < MOST_FAILED):
                wanted.append(self._space.of(dtype, *candidates.schedules(self._steps, len(self._costs))))
        taken = set().union(*(candidates.keys(*those) for those in known))
        u, v = _joined(wanted)
        left = [index for index, name in enumerate(candidates.keys(u, v)) if name not in taken]
        if left:
            return Proposed((u[left[0]], v[left[0]]), "preset", 1.0)
        return None if len(measured.rows) else "nothing left to gain"

    def _best(self, measured: Measured, pending: Sequence[Rectangle], useless: set[bytes]) -> Proposed | Settled:
        rows, layers, self._savings = measured.rows, measured.layers, measured.savings
        share, quality = self._share(rows, layers), aggregated(measured.log_mse, self._goal.how)
        goal = self._goal.given(quality, measured.feasible)
        near = _nearest(share, quality, MOST_FITTED)
        self._models = fit_models(self._space, rows[near], layers[near], measured.log_mse[:, near], self._priors)
        front = _front(share, quality)
        seen = useless.union(candidates.keys(rows, layers))
        if pending:
            waiting = self._space.stacked(pending)
            believed = np.array([model.mean(*waiting) for model in self._models])
            share = np.concatenate([share, self._share(*waiting)])
            quality = np.concatenate([quality, aggregated(believed, goal.how)])
            seen.update(candidates.keys(*waiting))
        yardstick = Yardstick(share, quality, goal)
        draw = np.random.default_rng([self._seed, len(seen)])
        phases, u, v = candidates.unseen(self._listed(rows, layers, front, draw), seen)
        if not phases:
            return "front verified"
        kept = self._promising(u, v, yardstick)
        beliefs = [model.predict(u[kept], v[kept]) for model in self._models]
        gains = _gains(beliefs, self._share(u[kept], v[kept]), yardstick)
        if gains.max() < NOTHING_LEFT and len(kept) < len(phases):  # before giving up, all of them
            kept = np.arange(len(phases))
            beliefs = [model.predict(u, v) for model in self._models]
            gains = _gains(beliefs, self._share(u, v), yardstick)
        if gains.max() < NOTHING_LEFT and len(rows) >= LEAST_MEASURED:
            mean = np.array([model.mean(u, v) for model in self._models])
            predicted = yardstick.gains(self._share(u, v), mean, np.full_like(mean, CERTAIN))
            return "front verified" if predicted.max() < NO_GAIN else "nothing left to gain"
        value = gains + LEARNING * self._lessons(beliefs, gains)
        best = int(np.argmax(value / np.sqrt(self._generations(u[kept], v[kept], rows, layers))))
        chosen = kept[best]
        return Proposed((u[chosen], v[chosen]), phases[chosen], float(gains[best]))

    def _lessons(self, beliefs: Sequence[Belief], gains: Numbers) -> Numbers:
        """What measuring each candidate would teach of the most promising ones, in the measure of their gains."""
        promising = np.argsort(-gains)[:PROMISING]
        weights = gains[promising] / max(gains[promising].sum(), NO_GAIN)
        told = [model.learned(belief, promising) @ weights for model, belief in zip(self._models, beliefs, strict=True)]
        return np.asarray(gains.max() * np.sum(told, axis=0))

    def _listed(
        self, rows: Flags, layers: Flags, front: Sequence[int], draw: np.random.Generator
    ) -> Iterator[tuple[Phase, Rectangles]]:
        by_prompt = [by_dtype(self._space, model.cells()) for model in self._models]
        together, searched = np.sum(by_prompt, axis=0), np.unique(self._space.dtype_of(rows)).tolist()
        dtypes = {index: self._space.dtypes[index] for index in searched}  # all others failed
        for dtype in dtypes.values():
            yield "preset", self._space.of(dtype, *candidates.schedules(self._steps, len(self._costs)))
        for index, dtype in dtypes.items():
            yield "predicted", self._space.of(dtype, *candidates.chains(together[index], self._costs))
            if len(by_prompt) > 1:
                worst = max((cells[index] for cells in by_prompt), key=np.sum)
                yield "predicted", self._space.of(dtype, *candidates.chains(worst, self._costs))
        for place in front:
            steps, its = (
                rows[place].reshape(-1, self._steps).any(axis=0),
                int(self._space.dtype_of(rows[place][None])[0]),
            )
            near = candidates.exchanges((steps, layers[place]), together[its])
            yield "exchange", self._space.of(self._space.dtypes[its], *near)
            for dtype in dtypes.values():
                yield "exchange", self._space.of(dtype, steps[None], layers[place][None])
        for _ in range(DRAWS):
            drawn = by_dtype(self._space, np.sum([model.cells(draw) for model in self._models], axis=0))
            for index, dtype in dtypes.items():
                yield "probe", self._space.of(dtype, *candidates.chains(drawn[index], self._costs))

    def _promising(self, u: Flags, v: Flags, yardstick: Yardstick) -> Indices:
        """Indices of the candidates that the means of the models rate highest, all deviations taken as alike."""
        if len(u) <= MOST_RATED:
            return np.arange(len(u))
        mean = np.array([model.mean(u, v) for model in self._models])
        gains = yardstick.gains(self._share(u, v), mean, np.full_like(mean, ASSUMED_SPREAD))
        return np.sort(np.argpartition(-gains, MOST_RATED)[:MOST_RATED])

    def _share(self, rows: Flags, layers: Flags) -> Numbers:
        return self._trials.share(rows, layers, self._savings)

    def _generations(self, u: Flags, v: Flags, rows: Flags, layers: Flags) -> Numbers:
        """The share of the steps that each candidate has to run, after the longest prefix that it shares with the
        native run or with a measured policy of the same layers; at least the last step is run."""
        count = self._steps
        if not self.resumes:
            return np.ones(len(u))
        wanted, run = self._dtypes_run(u), self._dtypes_run(rows)
        shared = np.argmax(wanted > 0, axis=1)
        alike: dict[bytes, list[int]] = {}
        for index, row in enumerate(layers):
            alike.setdefault(row.tobytes(), []).append(index)
        for index, row in enumerate(v):
            if (others := alike.get(row.tobytes())) is not None:
                differs = np.column_stack([run[others] != wanted[index], np.ones(len(others), dtype=np.bool_)])
                shared[index] = max(shared[index], int(np.argmax(differs, axis=1).max()))
        return np.asarray((count - np.minimum(shared, count - 1)) / count)

    def _dtypes_run(self, rows: Flags) -> Indices:
        """By step 0 for native, else 1 for the first dtype and so on: [n, steps]."""
        numbers = np.arange(1, len(self._space.dtypes) + 1)[:, None]
        return np.asarray((rows.reshape(len(rows), -1, self._steps) * numbers).sum(1))


def _gains(beliefs: Sequence[Belief], share: Numbers, yardstick: Yardstick) -> Numbers:
    return yardstick.gains(share, np.array([b.mean for b in beliefs]), np.array([b.deviation for b in beliefs]))


def _joined(parts: Sequence[Rectangles]) -> Rectangles:
    return np.concatenate([u for u, _ in parts]), np.concatenate([v for _, v in parts])


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
