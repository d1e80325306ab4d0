"""Shadow probes on the real engine: as engine `diffusers` answers them, beside a run that they do not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.base import Shadow
from fa_tuner.engines.diffusers import DiffusersEngine
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.evaluate.coverage import prove
from fa_tuner.search.shadows import cell_weights, worth_asking
from fa_tuner.search.space import Space

from .conftest import OPTIONS, VLLM_WARNS, WORKLOAD, use_scheduler_of_vllm_omni

pytestmark = [pytest.mark.timeout(900), *VLLM_WARNS]
NATIVE = SkipPolicy()
UNGUIDED = replace(WORKLOAD, guidance=1.0)
CASE = WORKLOAD.cases[0]
POLICIES = (NATIVE, *(SkipPolicy.parse(text, ("fp8",), Grid(6, tuple(range(8)))) for text in ("0-2/1", "/")))


@pytest.fixture(scope="module", params=[WORKLOAD, UNGUIDED], ids=["guided", "unguided"])
def workload(request: pytest.FixtureRequest) -> Workload:
    asked: Workload = request.param
    return asked


@pytest.fixture(scope="module")
def engine(workload: Workload) -> Iterator[VllmOmniEngine]:
    opened = VllmOmniEngine.open(workload, OPTIONS)
    yield opened
    opened.close()


def answers_of_diffusers(workload: Workload, asked: list[Shadow]) -> dict[Shadow, float]:
    """With the scheduler that vLLM-Omni takes."""
    other = DiffusersEngine.open(workload, {"device": "cpu"})
    try:
        use_scheduler_of_vllm_omni(other, workload)
        return dict(other.generate(NATIVE, CASE, "none", asked).shadows)
    finally:
        other.close()


@pytest.mark.parametrize("dtype", ["fp8", "mxfp4"])
def test_both_engines_answer_alike(engine: VllmOmniEngine, workload: Workload, dtype: str) -> None:
    """At every step, those of the second transformer, too. Engine diffusers' own answers move by up to 15 % where the
    initial latents are multiplied by 1 + 1e-6, since values at the edge of two codes fall to either side."""
    grid = engine.describe().grid
    asked = list(worth_asking(Space(grid, (dtype,))))
    ours = engine.generate(NATIVE, CASE, "none", asked).shadows
    theirs = answers_of_diffusers(workload, asked)
    assert set(ours) == set(theirs) == set(asked)
    ratios = np.array([ours[shadow] / theirs[shadow] for shadow in asked])
    print(f"{dtype}: {ratios.min():.3f} to {ratios.max():.3f}, median {np.median(ratios):.4f}")
    assert np.median(ratios) == pytest.approx(1, abs=0.02) and np.abs(np.log(ratios)).max() < 0.4
    assert max(ours.values()) > 3 * min(ours.values()), "nothing to be told apart"
    weights = [cell_weights(answers, Space(grid, (dtype,))) for answers in (ours, theirs)]
    assert weights[0] is not None and weights[1] is not None
    assert spearmanr(weights[0].ravel(), weights[1].ravel()).statistic > 0.95


def test_a_run_is_what_it_is_without(engine: VllmOmniEngine) -> None:
    description = engine.describe()
    assert description.shadows
    asked = worth_asking(Space(description.grid, ("fp8",)))
    before = {policy: engine.generate(policy, CASE) for policy in POLICIES}
    for policy, alone in before.items():  # each after one with shadows, and the native one first
        beside = engine.generate(policy, CASE, "none", asked)
        again = engine.generate(policy, CASE)
        for generation in (beside, again):
            prove(description, policy, generation)
            assert generation.calls == alone.calls and generation.doubts == () and generation.reused_steps == 0
            assert np.array_equal(generation.frames, alone.frames)
        assert set(beside.shadows) == set(asked) and again.shadows == {}
        assert beside.end_to_end_seconds < 3 * alone.end_to_end_seconds, "22 forwards beside its 6"
        assert len(beside.step_seconds) == 6 and sum(beside.step_seconds) <= beside.denoise_seconds


def test_prefixes_go_on_with_shadows_beside_them(engine: VllmOmniEngine) -> None:
    """What a native run with shadows kept is what a policy goes on from; it answers for the steps that it runs."""
    grid, late = engine.describe().grid, POLICIES[1]
    asked = worth_asking(Space(grid, ("fp8",)))
    whole = engine.generate(late, CASE, "none", asked)
    other = WORKLOAD.cases[1]
    engine.generate(NATIVE, other, "keep", asked)
    kept = engine.generate(NATIVE, CASE, "keep", asked)
    resumed = engine.generate(late, CASE, "reuse", asked)
    assert kept.reused_steps == 0 and resumed.reused_steps == 3
    assert np.array_equal(resumed.frames, whole.frames)
    assert resumed.calls + resumed.reused_calls == whole.calls
    assert resumed.shadows == {s: v for s, v in whole.shadows.items() if s.step >= 3}


def test_one_that_ran_native_has_no_answer(monkeypatch: pytest.MonkeyPatch, one_case: Workload) -> None:
    """It would be 0. The run itself is native, and as it should be."""
    monkeypatch.setenv("FA_TUNE_EMULATE_NPU_FAULTS", "ignores-dtype")
    with closing(VllmOmniEngine.open(one_case, OPTIONS)) as broken:
        generation = broken.generate(NATIVE, CASE, "none", worth_asking(Space(broken.describe().grid, ("fp8",))))
        prove(broken.describe(), NATIVE, generation)
        assert generation.shadows == {} and generation.doubts == ()
