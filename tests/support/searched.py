"""Search without engine and store: an oracle answers from a synthetic landscape, and the volume under the front found
is compared with that of all policies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fa_tuner.domain.measurement import Requirement, aggregate
from fa_tuner.domain.pareto import Objectives, hypervolume
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.search.space import Space
from fa_tuner.search.study import PolicySearch, Score
from tests.support.tables import every_policy

SPAN_DB = 25.0  # above everything quantized: the yardstick of docs/benchmarks.md


@dataclass
class Oracle:
    """Knows what each policy of one landscape gives."""

    steps: int
    layers: int
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    requirement: Requirement = field(default_factory=lambda: Requirement(()))

    def __post_init__(self) -> None:
        self.landscape = synthetic_landscape(self.steps, self.layers, seed=self.seed, **{"prompts": 2, **self.options})
        self._known: dict[str, Score] = {}
        self._whole: list[float] = []

    @property
    def grid(self) -> Grid:
        return self.landscape.grid

    @property
    def space(self) -> Space:
        return Space(self.grid, ("fp8",))

    def score(self, policy: SkipPolicy) -> Score:
        if policy.key not in self._known:
            found = (self.landscape.record.quality(policy, case) for case in self.landscape.workload.cases)
            cases = [quality for quality in found if quality is not None]
            self._known[policy.key] = Score(
                1.0 - 0.1 * policy.share(self.grid),
                aggregate(cases, "psnr_db", self.requirement.aggregate),
                self.requirement.violations(cases),
                tuple(case.metrics["mse"] for case in cases),
            )
        return self._known[policy.key]

    def volume(self, policies: Iterable[SkipPolicy]) -> float:
        """Over share of cells and PSNR, clipped to the box above everything quantized."""
        least = self.score(SkipPolicy("fp8")).psnr_db
        points = [
            Objectives(-policy.share(self.grid), min(self.score(policy).psnr_db, least + SPAN_DB))
            for policy in policies if not policy.is_native
        ]  # fmt: skip
        return hypervolume(points, Objectives(0.0, least))

    def share(self, policies: Iterable[SkipPolicy]) -> float:
        """Of the volume under the front of all policies; 1 where there is none to be had."""
        if not self._whole:
            self._whole.append(self.volume(every_policy(self.grid)))
        return self.volume(policies) / self._whole[0] if self._whole[0] else 1.0

    def search(self, sampler: str = "rectangle", seed: int = 0, storage: str = "", **options: Any) -> PolicySearch:
        """In Optuna's own memory where no storage is given: its databases take most of the time."""
        return PolicySearch(storage or None, "s", self.space, sampler, seed, **options)

    def walk(
        self, search: PolicySearch, count: int, elsewhere: Sequence[SkipPolicy] = ()
    ) -> tuple[list[SkipPolicy], str]:
        """Up to `count` proposals, each answered, and why there were no more: "" where there could have been."""
        policies: list[SkipPolicy] = []
        for _ in range(count):
            proposal = search.ask(elsewhere)
            if isinstance(proposal, str):
                return policies, proposal
            policies.append(proposal.policy)
            search.tell(proposal, self.score(proposal.policy))
        return policies, ""

    def from_all_quantized(self, sampler: str, count: int, seed: int = 0) -> list[SkipPolicy]:
        """As a study begins, whatever the sampler."""
        search = self.search(sampler, seed)
        search.enqueue(SkipPolicy("fp8"), "anchor")
        return self.walk(search, count)[0]


def spread_of(values: Iterable[float]) -> str:
    """For the message of an assertion."""
    return " ".join(f"{value:.3f}" for value in np.sort(list(values)))
