"""The methods that `bench_search.py` compares, and the oracle through which all of them measure and pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna

from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.engines.landscape import Landscape
from fa_tuner.engines.replay import LatencyNoise, ReplayEngine
from fa_tuner.evaluate.evaluator import NATIVE
from fa_tuner.search import shadows, space
from fa_tuner.search.acquisition import SPAN_DB, Goal
from fa_tuner.search.measured import MSE
from fa_tuner.search.rectangle import RectangleSampler
from fa_tuner.search.samplers import make_sampler

HEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the 25 dB box: five thresholds a landscape


class Spent(Exception):
    """The budget is used up."""


@dataclass
class Oracle:
    """Measures policies of one landscape and counts what that costs. A policy's share is of the cells, and of what the
    dtype that saves most saves."""

    landscape: Landscape
    dtypes: tuple[str, ...]
    budget: float
    cost: float = 0.0
    log: list[tuple[float, float, float]] = field(default_factory=list)  # GE so far, share, PSNR

    def __post_init__(self) -> None:
        self.grid = self.landscape.grid
        self.space = space.Space(self.grid, self.dtypes)
        saved = {d: 1 - self.landscape.latency.attention_ratio[d] for d in self.dtypes}
        self._saving = {d: saving / max(saved.values()) for d, saving in saved.items()}
        self.cases = self.landscape.workload.cases
        self._engine = ReplayEngine(self.landscape, LatencyNoise(), "projected", "")
        self._known: dict[str, tuple[float, ...]] = {}
        for case in self.cases:
            self._engine.generate(NATIVE, case, "keep")

    def mse(self, policy: SkipPolicy) -> tuple[float, ...]:
        """By prompt; a policy asked for again costs nothing.

        Raises:
            Spent: the budget is used up.
        """
        policy = policy.on(self.grid)
        if policy.is_native:
            return (0.0,) * len(self.cases)
        if policy.key not in self._known:
            if self.cost >= self.budget:
                raise Spent
            made = [self._engine.generate(policy, case, "reuse") for case in self.cases]
            self.cost += 1 - sum(g.reused_steps for g in made) / (self.grid.steps * len(made))
            answers = [g.recorded for g in made if g.recorded is not None]
            self._known[policy.key] = tuple(a.metrics["mse"] for a in answers)
            self.log.append((self.cost, self.share(policy), min(a.metrics["psnr_db"] for a in answers)))
        return self._known[policy.key]

    def share(self, policy: SkipPolicy) -> float:
        return 0.0 if policy.is_native else policy.share(self.grid) * self._saving[policy.dtype]

    def psnr(self, policy: SkipPolicy) -> float:
        return min(100.0, 10 * float(np.log10(255.0**2 / max(1e-9, *self.mse(policy)))))

    def policy(self, steps: Sequence[bool], layers: Sequence[bool]) -> SkipPolicy:
        """By flags of what is quantized, in the first dtype."""
        skipped = (
            [i for i, on in enumerate(steps) if not on],
            [n for n, on in zip(self.grid.layers, layers, strict=True) if not on],
        )
        return SkipPolicy(self.dtypes[0], SkipSelector.of(skipped[0]), SkipSelector.of(skipped[1])).on(self.grid)

    def priors(self) -> list[space.Numbers]:
        """Shadow probes beside the baseline, paid for."""
        asked = shadows.worth_asking(self.space)
        self.cost += shadows.cost(asked, self.grid)
        answers = [self._engine.generate(NATIVE, case, "keep", asked).shadows for case in self.cases]
        weights = [shadows.cell_weights(answer, self.space) for answer in answers]
        return [w for w in weights if w is not None]


def distributions_of(oracle: Oracle) -> dict[str, optuna.distributions.BaseDistribution]:
    return {n: optuna.distributions.CategoricalDistribution(v) for n, v in oracle.space.choices.items()}


Method = Callable[[Oracle, int], None]  # (oracle, seed)


def with_optuna(name: str) -> Method:
    def search(oracle: Oracle, seed: int) -> None:
        study = optuna.create_study(
            directions=["minimize", "maximize"], sampler=make_sampler(name, oracle.space, seed)
        )  # fmt: skip
        for dtype in oracle.dtypes:
            study.enqueue_trial(oracle.space.to_params(SkipPolicy(dtype)))
        repeats = 0
        while repeats < 200:  # it proposes nothing new any more
            trial = study.ask(distributions_of(oracle))
            policy, count = oracle.space.to_policy(trial.params), len(oracle.log)
            quality = 100.0 if policy.is_native else oracle.psnr(policy)
            study.tell(trial, [1 - oracle.share(policy), quality])
            repeats = repeats + 1 if len(oracle.log) == count else 0

    return search


def rectangle(shadowed: bool, threshold: float | None = None) -> Method:
    def search(oracle: Oracle, seed: int) -> None:
        priors = oracle.priors() if shadowed else None
        sampler = RectangleSampler(oracle.space, seed, Goal("worst", threshold), resumes=True, priors=priors)
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        while True:
            proposed = sampler.propose(study)
            if isinstance(proposed, str):
                return
            policy = oracle.space.policy_of(proposed.rectangle)
            mse = oracle.mse(policy)
            study.add_trial(optuna.trial.create_trial(
                values=[1 - oracle.share(policy), oracle.psnr(policy)], params=oracle.space.to_params(policy),
                distributions=distributions_of(oracle), user_attrs={MSE: list(mse)},
            ))  # fmt: skip

    return search


def head_and_tail(oracle: Oracle, _seed: int) -> None:
    """As xDiT's hybrid schedules: the first and last steps native, ever more of them, layers never."""
    steps, layers = oracle.grid.steps, [True] * len(oracle.grid.layers)
    oracle.mse(SkipPolicy(oracle.dtypes[0]))
    for depth in range(1, steps):
        for head, tail in ((depth, 0), (0, depth), ((depth + 1) // 2, depth // 2)):
            if head + tail < steps:
                oracle.mse(oracle.policy([head <= t < steps - tail for t in range(steps)], layers))


def ranked_layers(oracle: Oracle, _seed: int) -> None:
    """As msModelSlim: rank the layers by quantizing each alone, then bisect how many of the worst stay native; for the
    front at each of five thresholds."""
    grid = oracle.grid
    steps, width = [True] * grid.steps, len(grid.layers)
    base = oracle.psnr(SkipPolicy(oracle.dtypes[0]))
    alone = [oracle.psnr(oracle.policy(steps, [n == i for n in range(width)])) for i in range(width)]
    worst = np.argsort(alone, kind="stable").tolist()
    for wanted in [base + SPAN_DB * height for height in HEIGHTS]:
        low, high = 0, width - 1  # native layers
        while low < high:
            middle = (low + high) // 2
            met = oracle.psnr(oracle.policy(steps, [n not in worst[:middle] for n in range(width)])) >= wanted
            low, high = (low, middle) if met else (middle + 1, high)
        oracle.psnr(oracle.policy(steps, [n not in worst[:low] for n in range(width)]))


def leave_one_out(oracle: Oracle, _seed: int) -> None:
    """Greedy: rank every step and layer by leaving it native alone, then keep ever more of the best native."""
    grid = oracle.grid
    count, width = grid.steps, len(grid.layers)
    names = [("step", t) for t in range(count)] + [("layer", n) for n in range(width)]

    def kept(native: Sequence[tuple[str, int]]) -> SkipPolicy:
        chosen = set(native)
        return oracle.policy(
            [("step", t) not in chosen for t in range(count)], [("layer", n) not in chosen for n in range(width)]
        )

    base = oracle.psnr(SkipPolicy(oracle.dtypes[0]))
    # what it gains for the cells that it gives up
    gain = {name: (oracle.psnr(kept([name])) - base) * (count if name[0] == "step" else width) for name in names}
    order = sorted(names, key=lambda name: -gain[name])
    native: list[tuple[str, int]] = []
    for name in order:
        native.append(name)
        if not kept(native).is_native:
            oracle.mse(kept(native))


METHODS: dict[str, Method] = {
    "rectangle": rectangle(shadowed=False),
    "TPE": with_optuna("tpe"),
    "NSGA-II": with_optuna("nsga2"),
    "random": with_optuna("random"),
    "head and tail": head_and_tail,
    "ranked layers": ranked_layers,
    "leave one out": leave_one_out,
}
ONE_DTYPE = ("head and tail", "ranked layers", "leave one out")  # they know of one only
OPTUNAS = ("TPE", "NSGA-II", "random")
SHADOWED = "rectangle + shadows"
