"""One front over several dtypes: the demo model's policies recorded in fp8 and in mxfp4, which saves twice as much."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from fa_tuner.domain.pareto import Objectives, hypervolume
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.engines.landscape import Landscape
from fa_tuner.search.error_model import ErrorModel
from fa_tuner.search.measured import MSE, Trials
from fa_tuner.search.rectangle import Proposed, RectangleSampler
from fa_tuner.search.samplers import make_sampler
from fa_tuner.search.space import Numbers, Rectangles, Space

DTYPES = ("fp8", "mxfp4")
FOLDER = Path(__file__).parents[2] / "studies" / "landscapes"
SPAN_DB = 25.0


@cache
def recorded() -> Landscape:
    return Landscape.joined([Landscape.read(FOLDER / f"demo-{dtype}-4.json.gz") for dtype in DTYPES])


SPACE = Space(Grid(4, tuple(range(8))), DTYPES)


@cache
def mse(policy: SkipPolicy) -> tuple[float, ...]:
    found = [recorded().record.quality(policy, case) for case in recorded().workload.cases]
    return tuple(quality.metrics["mse"] for quality in found if quality is not None)


def point(policy: SkipPolicy) -> Objectives:
    quality = 10 * np.log10(255**2 / max(mse(policy)))
    return Objectives(recorded().relative_latency(policy), quality)


def volume(policies: Iterable[SkipPolicy]) -> float:
    """Of all policies' hypervolume, in the box above everything quantized in mxfp4."""
    base = point(SkipPolicy("mxfp4")).psnr_db

    def measure(those: Iterable[SkipPolicy]) -> float:
        clipped = [Objectives(p.latency, min(p.psnr_db, base + SPAN_DB)) for p in map(point, those)]
        return hypervolume(clipped, Objectives(1.0, base))

    return measure(policies) / measure(SPACE.policies())


def study_of(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    return optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)


def measured(policy: SkipPolicy) -> optuna.trial.FrozenTrial:
    return create_trial(
        values=list(point(policy)), params=SPACE.to_params(policy), user_attrs={MSE: list(mse(policy))},
        distributions={name: CategoricalDistribution(values) for name, values in SPACE.choices.items()},
    )  # fmt: skip


def walk(seed: int, count: int) -> list[SkipPolicy]:
    sampler = RectangleSampler(SPACE, seed)
    study, policies = study_of(sampler), []
    for _ in range(count):
        proposed = sampler.propose(study)
        assert isinstance(proposed, Proposed)
        policies.append(SPACE.policy_of(proposed.rectangle))
        study.add_trial(measured(policies[-1]))
    return policies


def drawn_by_tpe(seed: int, count: int) -> list[SkipPolicy]:
    study, policies = study_of(make_sampler("tpe", SPACE, seed)), [SkipPolicy(dtype) for dtype in DTYPES]
    for policy in policies:
        study.add_trial(measured(policy))
    while len(policies) < count:
        trial = study.ask({name: CategoricalDistribution(values) for name, values in SPACE.choices.items()})
        policy = SPACE.to_policy(trial.params)
        study.tell(trial, [1.0, 100.0] if policy.is_native else list(point(policy)))
        policies += [policy] if not policy.is_native and policy not in policies else []
    return policies


def test_the_front_over_both() -> None:
    """After two policies a row and column, and no fewer than TPE finds."""
    count = 2 * sum(SPACE.size)
    shares = [volume(walk(seed, count)) for seed in range(3)]
    assert median(shares) >= 0.94 and min(shares) >= 0.9, shares
    assert median(shares) > median(volume(drawn_by_tpe(seed, count)) for seed in range(3)) + 0.03


def test_everything_quantized_in_each_comes_first_and_both_are_searched() -> None:
    policies = walk(0, 24)
    assert policies[:2] == [SkipPolicy(dtype) for dtype in DTYPES]
    assert len({policy.key for policy in policies}) == 24
    assert min(sum(policy.dtype == dtype for policy in policies) for dtype in DTYPES) >= 5


def test_a_dtype_that_saves_no_more_and_errs_more_is_left_alone() -> None:
    """The same landscape, told that mxfp4 saves less than fp8."""
    sampler = RectangleSampler(SPACE)
    study, dtypes = study_of(sampler), []
    for _ in range(16):
        proposed = sampler.propose(study)
        assert isinstance(proposed, Proposed)
        policy = SPACE.policy_of(proposed.rectangle)
        trial = measured(policy)
        if policy.dtype == "mxfp4":
            trial.values = [1 - 0.3 * (1 - trial.values[0]), trial.values[1]]
        study.add_trial(trial)
        dtypes.append(policy.dtype)
    assert dtypes.count("mxfp4") <= 4, dtypes


# --- what goes wrong --------------------------------------------------------------------------------------------------


def walk_without(
    useless: Callable[[SkipPolicy], bool], count: int, latency: Callable[[SkipPolicy], float] | None = None
) -> list[SkipPolicy]:
    """What is measured where some policies fail; `latency` is what the study is told of each instead."""
    sampler = RectangleSampler(SPACE)
    study, policies, failed = study_of(sampler), [], []
    while len(policies) + len(failed) < count:
        proposed = sampler.propose(study, (), [SPACE.to_rectangle(policy) for policy in failed])
        if not isinstance(proposed, Proposed):
            break
        policy = SPACE.policy_of(proposed.rectangle)
        if useless(policy):
            failed.append(policy)
            continue
        policies.append(policy)
        trial = measured(policy)
        if latency is not None:
            trial.values = [latency(policy), trial.values[1]]
        study.add_trial(trial)
    assert len(policies) + len(failed) == len({policy.key for policy in (*policies, *failed)})
    return policies


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_anchor_that_failed_costs_little(dtype: str) -> None:
    """Once, as for want of memory: the dtype begins with a schedule."""
    policies = walk_without(lambda policy: policy == SkipPolicy(dtype), 2 * sum(SPACE.size))
    assert sum(policy.dtype == dtype for policy in policies) >= 5
    either = [SkipPolicy(other) for other in DTYPES if other != dtype]
    assert volume([*policies, *either]) > 0.75


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dtype_that_always_fails_is_left_out(dtype: str) -> None:
    tried: list[SkipPolicy] = []

    def useless(policy: SkipPolicy) -> bool:
        tried.extend([policy] if policy.dtype == dtype else [])
        return policy.dtype == dtype

    policies = walk_without(useless, 20)
    assert len(tried) == 2 and len(policies) == 18


def test_savings_come_from_all_that_was_measured() -> None:
    """An anchor that was told 10 % too slow: later policies set that right."""

    def told(policy: SkipPolicy) -> float:
        true = point(policy).latency
        return true + 0.08 if policy == SkipPolicy("mxfp4") else true

    savings = []
    for latency in (told, lambda policy: point(policy).latency):
        study = study_of(RectangleSampler(SPACE))
        for policy in walk_without(lambda _: False, 32, latency):
            trial = measured(policy)
            trial.values = [latency(policy), trial.values[1]]
            study.add_trial(trial)
        savings.append(Trials(SPACE, np.ones(8)).read(study).savings[0])
    assert savings[1] == pytest.approx(0.2026 / 0.4, abs=0.01) and savings[0] == pytest.approx(savings[1], rel=0.35)


# --- what one dtype teaches of the other ------------------------------------------------------------------------------

STEPS, LAYERS = 6, 10
SIMILAR = Space(Grid(STEPS, tuple(range(LAYERS))), DTYPES)


def weights(seed: int) -> Numbers:
    """Rank one, mxfp4 13 dB worse, with some other sensitivities of steps."""
    draw = np.random.default_rng(seed)
    steps, own = np.exp(draw.standard_normal(STEPS)), np.exp(0.3 * draw.standard_normal(STEPS))
    layers = np.exp(draw.standard_normal(LAYERS))
    return np.concatenate([steps, 20 * steps * own])[:, None] * layers


def drawn(dtype: str, count: int, seed: int) -> Rectangles:
    draw = np.random.default_rng(seed)
    steps, layers = draw.random((count, STEPS)) < 0.6, draw.random((count, LAYERS)) < 0.6
    steps[:, 0], layers[:, 0] = True, True
    return SIMILAR.of(dtype, steps, layers)


def log_of(cells: Numbers, rectangles: Rectangles) -> Numbers:
    return np.asarray(np.log(np.einsum("ni,ij,nj->n", rectangles[0], cells, rectangles[1])))


@pytest.mark.parametrize("seed", range(4))
def test_what_fp8_showed_tells_mxfp4(seed: int) -> None:
    cells, asked = weights(seed), drawn("mxfp4", 100, seed + 50)
    everything = [SIMILAR.to_rectangle(SkipPolicy(dtype)) for dtype in DTYPES]
    anchors = np.array([r for r, _ in everything]), np.array([v for _, v in everything])
    seen = drawn("fp8", 30, seed + 100)
    both = np.concatenate([anchors[0], seen[0]]), np.concatenate([anchors[1], seen[1]])
    errors = []
    for known in (anchors, both):
        model = ErrorModel(*SIMILAR.size, prior=np.repeat([1.0, 20.0], STEPS)[:, None] * np.ones(LAYERS), dtypes=2)
        for _ in range(2):
            model.fit(*known, log_of(cells, known))
        errors.append(float(np.sqrt(np.mean((model.mean(*asked) - log_of(cells, asked)) ** 2))))
    assert errors[1] < 0.5 * errors[0], errors
