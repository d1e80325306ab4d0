"""Samplers by name: our own, and Optuna's for comparison."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler, NSGAIISampler, RandomSampler, TPESampler

from fa_tuner.domain.errors import UsageError
from fa_tuner.search.acquisition import Goal
from fa_tuner.search.space import Numbers, Space

BRUTE_FORCE_LIMIT = 14  # parameters: 2^14 policies


class AskTellBruteForce(BruteForceSampler):
    """Optuna's brute force stops `study.optimize` when nothing is left; under ask and tell that would raise.
    Here the caller counts the policies itself."""

    def after_trial(self, *_: Any) -> None:
        """Nothing to stop."""


_OPTUNAS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "brute-force": lambda seed: AskTellBruteForce(seed=seed),
}
SAMPLERS = ("rectangle", *_OPTUNAS)


def check_sampler(name: str, space: Space) -> None:
    """
    Raises:
        UsageError: no sampler of that name, or brute force over too many policies.
    """
    if name not in SAMPLERS:
        raise UsageError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    parameters = (space.count - 1).bit_length()
    if name == "brute-force" and parameters > BRUTE_FORCE_LIMIT:
        raise UsageError(
            f"brute force over {space.grid} would be 2^{parameters} policies; it is refused past 2^{BRUTE_FORCE_LIMIT}"
        )


def make_sampler(
    name: str,
    space: Space,
    seed: int,
    drawn: int = 0,
    goal: Goal | None = None,
    resumes: bool = False,
    priors: Sequence[Numbers] | None = None,
    costs: Sequence[float] | None = None,
) -> BaseSampler:
    """`drawn` is the number of trials that a resumed study has: Optuna's samplers must not draw their first numbers
    again. `goal`, `resumes`, `priors` and `costs` (see `RectangleSampler`) are for our own.

    Raises:
        UsageError: see `check_sampler`.
    """
    check_sampler(name, space)
    if name == "rectangle":
        from fa_tuner.search.rectangle import RectangleSampler

        return RectangleSampler(space, seed, goal, resumes=resumes, priors=priors, costs=costs)
    with warnings.catch_warnings():
        # multivariate TPE is marked experimental; without it TPE ignores how steps and layers interact
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _OPTUNAS[name](seed + drawn)
