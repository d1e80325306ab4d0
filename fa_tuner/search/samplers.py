"""Samplers by name. A sampler of ours is one more `optuna.samplers.BaseSampler` in this table."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler, NSGAIISampler, RandomSampler, TPESampler

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.policy import Grid

BRUTE_FORCE_LIMIT = 14  # parameters: 2^14 policies


class AskTellBruteForce(BruteForceSampler):
    """Optuna's brute force stops `study.optimize` when nothing is left; under ask and tell that would raise.
    Here the caller counts the policies itself."""

    def after_trial(self, *_: Any) -> None:
        """Nothing to stop."""


_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "brute-force": lambda seed: AskTellBruteForce(seed=seed),
}


def make_sampler(name: str, grid: Grid, seed: int) -> BaseSampler:
    """
    Raises:
        UsageError: no sampler of that name, or brute force over too many policies.
    """
    if name not in _SAMPLERS:
        raise UsageError(f"sampler {name!r} is unknown; choose one of {', '.join(_SAMPLERS)}")
    parameters = grid.steps + len(grid.layers)
    if name == "brute-force" and parameters > BRUTE_FORCE_LIMIT:
        raise UsageError(
            f"brute force over {grid} would be 2^{parameters} policies; it is refused past 2^{BRUTE_FORCE_LIMIT}"
        )
    with warnings.catch_warnings():
        # multivariate TPE is marked experimental; without it TPE ignores how steps and layers interact
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _SAMPLERS[name](seed)
