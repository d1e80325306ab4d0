"""What prefix reuse saves a search, told before anything is generated: it is rehearsed on made-up landscapes.

How much that is depends on where the sensitive steps lie, which is what the search has yet to find: where the first
ones have to stay native, nearly all policies go on from the native run. So there are several stand-ins for the model's
landscape, whose answers lie the further apart the more steps there are.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import fsum

from fa_tuner.domain.measurement import Requirement, aggregate
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.engines.landscape import Landscape
from fa_tuner.engines.replay import LatencyNoise, ReplayEngine
from fa_tuner.engines.synthetic import PSNR_DB, synthetic_landscape
from fa_tuner.search.acquisition import SPAN_DB, Goal
from fa_tuner.search.shadows import cell_weights, worth_asking
from fa_tuner.search.space import Space
from fa_tuner.search.study import PolicySearch, Score

HEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # at which a PSNR threshold lies in the front of each stand-in
MOST_POLICIES = 60  # of each
MOST_SECONDS = 8.0  # for all of them
MOST_PROMPTS = 2  # every prompt resumes alike; more of them only make the sampler slower
REPEATS_IN_A_ROW = 20  # proposals of what is known, after which no more is asked
NATIVE = SkipPolicy()


@dataclass(frozen=True)
class Rehearsal:
    """By stand-in, what is left of each policy's generation after reuse, in the order of measuring."""

    costs: tuple[tuple[float, ...], ...]

    @property
    def policies(self) -> int:
        """How many were rehearsed, on each of the stand-ins at most."""
        return max(map(len, self.costs))

    def equivalents(self, policies: int) -> float:
        """Generation equivalents of so many policies: the mean over the stand-ins."""
        return fsum(self.each(policies)) / len(self.costs)

    def each(self, policies: int) -> list[float]:
        """By stand-in; policies beyond those rehearsed cost what the later half of them did."""
        return [_total(costs, policies) for costs in self.costs]

    def affordable(self, equivalents: float, most: int) -> int:
        """How many policies, up to `most`, so many generation equivalents pay for."""
        return bisect_right(range(1, most + 1), equivalents, key=self.equivalents)


def rehearse(
    space: Space, prompts: int, requirement: Requirement, queued: Sequence[SkipPolicy], policies: int, *,
    sampler: str = "rectangle", seed: int = 0, shadows: bool = False,
) -> Rehearsal:  # fmt: skip
    """Search as a study does, the `queued` policies (at least one, none of them native) first, until `policies` are
    measured, `MOST_POLICIES` of each stand-in, or `MOST_SECONDS` are over.

    Each stand-in has the model's grid and as many prompts, up to `MOST_PROMPTS`; a threshold of PSNR lies higher in the
    front of each than in that before.
    """
    grid = space.grid
    positions = {layer: position for position, layer in enumerate(grid.layers)}
    first = [_renumbered(policy, positions) for policy in queued]
    walks = [
        _walk(
            synthetic_landscape(
                grid.steps, len(grid.layers), min(prompts, MOST_PROMPTS), number,
                psnr_db=_levels(space.dtypes, requirement.min_psnr, height), shadow_noise=0.2 if shadows else None,
                growth=0.3,
            ),
            requirement, first, sampler, seed,
        )
        for number, height in enumerate(HEIGHTS)
    ]  # fmt: skip
    deadline = time.monotonic() + MOST_SECONDS
    costs: list[list[float]] = [[next(walk)] for walk in walks]
    for _ in range(min(policies, MOST_POLICIES) - 1):
        for walk, known in zip(walks, costs, strict=True):
            if time.monotonic() < deadline:
                known.extend(islice(walk, 1))
    return Rehearsal(tuple(map(tuple, costs)))


def _walk(
    landscape: Landscape, requirement: Requirement, queued: Sequence[SkipPolicy], sampler: str, seed: int
) -> Iterator[float]:
    """The cost of each policy, as long as the search names new ones."""
    engine = ReplayEngine(landscape, LatencyNoise(), "projected", "")
    grid, cases, space = landscape.grid, landscape.workload.cases, Space(landscape.grid, landscape.dtypes)
    asked = worth_asking(space) if landscape.has_shadows else ()
    answers = [engine.generate(NATIVE, case, "keep", asked).shadows for case in cases]
    weights = [found for answer in answers if (found := cell_weights(answer, space)) is not None]
    goal = Goal.of(requirement)
    search = PolicySearch(None, "rehearsal", space, sampler, seed, goal, True, weights if asked else None)
    for policy in queued:
        search.enqueue(policy, "queued")
    scores: dict[str, Score] = {}
    repeats = 0
    while repeats < REPEATS_IN_A_ROW:
        proposal = search.ask()
        if isinstance(proposal, str):
            return
        policy = proposal.policy
        repeats = repeats + 1 if policy.is_native or policy.key in scores else 0
        if policy.key not in scores:
            made = [engine.generate(policy, case, "reuse") for case in cases]
            seen = [generation.recorded for generation in made if generation.recorded is not None]
            scores[policy.key] = Score(
                landscape.relative_latency(policy), aggregate(seen, "psnr_db", requirement.aggregate),
                requirement.violations(seen), tuple(quality.metrics["mse"] for quality in seen),
            )  # fmt: skip
            if not policy.is_native:
                yield (grid.steps - made[0].reused_steps) / grid.steps
        search.tell(proposal, scores[policy.key])


def _levels(dtypes: Sequence[str], wanted: float | None, height: float) -> dict[str, float]:
    """PSNR in dB of everything quantized by dtype, where a threshold is wanted so that it lies at `height` of the
    worst one's front."""
    usual = {dtype: PSNR_DB[dtype] for dtype in dtypes}
    shift = 0.0 if wanted is None else wanted - SPAN_DB * height - min(usual.values())
    return {dtype: min(max(level + shift, 5.0), 95.0) for dtype, level in usual.items()}


def _renumbered(policy: SkipPolicy, positions: dict[int, int]) -> SkipPolicy:
    """With layers by their position in the grid, as the stand-ins have them."""
    layers = SkipSelector.of(positions[layer] for layer in policy.skip_layers if layer in positions)
    return SkipPolicy(policy.dtype, policy.skip_steps, layers)


def _total(costs: Sequence[float], policies: int) -> float:
    known, later = costs[:policies], costs[len(costs) // 2 :]
    return fsum(known) + (policies - len(known)) * fsum(later) / len(later)
