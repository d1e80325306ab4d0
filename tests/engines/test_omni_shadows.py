"""Shadows inside vLLM-Omni's workers: a step's velocity once more, and nothing of the run changed by it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fa_tuner.engines.base import Shadow
from fa_tuner.engines.vllm_omni import worker as worker_module
from tests.support.omni_modules import CONTEXT, Attention, Config, Parallel, Pipeline, Worker, installed

NATIVE, EVERYTHING = ("native", "", ""), ("fp8", "", "")
SHADOWS = [Shadow(step, layers, "fp8") for step in range(4) for layers in ((0, 1), (0,), (1,))]


@pytest.fixture(autouse=True)
def vllm_omni(one_thread: None) -> Iterator[None]:
    with installed():
        yield


def velocities(pipeline: Pipeline) -> list[torch.Tensor]:
    """What it will predict, step by step."""
    seen: list[torch.Tensor] = []
    finish = pipeline.scheduler_step_maybe_with_cfg

    def finished(noise: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(noise)
        return finish(noise, *rest)

    pipeline.scheduler_step_maybe_with_cfg = finished  # type: ignore[assignment]
    return seen


def test_an_answer_is_the_squared_change_of_the_velocity() -> None:
    """As it would be if the cells were quantized at this step alone: up to there, that run is the native one."""
    worker = Worker(Pipeline())
    seen = velocities(worker.pipeline)
    _, report = worker.run(NATIVE, shadows=SHADOWS)
    native, sigmas = list(seen), worker.pipeline.scheduler.sigmas
    assert set(report["shadows"]) == set(SHADOWS)
    for shadow, value in report["shadows"].items():
        seen.clear()
        others = ",".join(str(step) for step in range(4) if step != shadow.step)
        worker.run(("fp8", others, ",".join(str(n) for n in (0, 1) if n not in shadow.layers)))
        change = (seen[shadow.step] - native[shadow.step]).square().mean()
        assert value == pytest.approx(float(change * (sigmas[shadow.step + 1] - sigmas[shadow.step]) ** 2), rel=1e-6)
        assert value > 0


@pytest.mark.parametrize("policy", [NATIVE, EVERYTHING, ("mxfp4", "0,2", "1")], ids=str)
def test_nothing_of_the_run_is_changed(policy: tuple[str, str, str]) -> None:
    worker, alone = Worker(Pipeline()), Worker(Pipeline()).run(policy)
    latents, report = worker.run(policy, shadows=SHADOWS)
    assert torch.equal(latents, alone[0])
    for name in ("calls", "ignored", "cross_attention_quantized", "start"):
        assert report[name] == alone[1][name]
    assert alone[1]["shadows"] == {} and alone[1]["shadow_seconds"] == 0
    (answer,) = worker.fa_tune_begin(None, "case", ("x",) * 4, "none")
    assert answer["policies"] == Worker(Pipeline()).fa_tune_begin(policy, "case", ("x",) * 4, "none")[0]["policies"]
    assert torch.equal(worker.run(NATIVE)[0], Worker(Pipeline()).run(NATIVE)[0])


def test_the_steps_that_a_policy_skips_have_shadows_too() -> None:
    """Beside what the policy runs: where that is the same, nothing is changed."""
    worker = Worker(Pipeline())
    _, report = worker.run(("fp8", "1", ""), shadows=SHADOWS)
    assert report["shadows"][SHADOWS[0]] == 0 and report["shadows"][Shadow(1, (0, 1), "fp8")] > 0


def test_they_are_not_those_of_the_next_run() -> None:
    worker = Worker(Pipeline())
    worker.run(NATIVE, shadows=SHADOWS)
    assert worker.run(NATIVE)[1]["shadows"] == {}


# --- those that cannot be given -------------------------------------------------------------------------------------


def test_steps_that_are_not_run() -> None:
    worker = Worker(Pipeline())
    worker.run(NATIVE, prefix="keep", shadows=SHADOWS)
    odd = Shadow(4, (0,), "fp8")
    _, report = worker.run(("fp8", "0,1", ""), ("native", "native", "fp8/", "fp8/"), "reuse", shadows=[*SHADOWS, odd])
    assert report["start"] == 2
    assert {shadow.step for shadow in report["shadows"]} == {2, 3}, "the loop counts from 0, the steps do not"
    _, whole = worker.run(("fp8", "0,1", ""), ("native", "native", "fp8/", "fp8/"), shadows=SHADOWS)
    assert report["shadows"] == {s: v for s, v in whole["shadows"].items() if s.step >= 2}


@pytest.mark.parametrize("fault", ["ignores", "raises"])
def test_a_shadow_that_ran_native_has_no_answer(fault: str) -> None:
    """It would be 0, and say that the layer takes no harm."""
    worker = Worker(Pipeline(Attention(0), Attention(1, fault=fault)))
    _, report = worker.run(NATIVE, shadows=SHADOWS)
    assert set(report["shadows"]) == {shadow for shadow in SHADOWS if shadow.layers == (0,)}
    assert report["ignored"] == {}, "which is about the run"


def test_a_shadow_that_quantized_more_than_was_asked_has_no_answer() -> None:
    worker = Worker(Pipeline(Attention(0), Attention(1), Attention(0, role="cross")))
    _, report = worker.run(NATIVE, shadows=SHADOWS)
    assert {shadow.layers for shadow in report["shadows"]} == {(1,)} and report["cross_attention_quantized"] == 0


def test_a_layer_that_the_step_does_not_run() -> None:
    worker = Worker(Pipeline())
    _, report = worker.run(NATIVE, shadows=[Shadow(0, (0, 5), "fp8"), Shadow(0, (5,), "fp8")])
    assert report["shadows"] == {}


def test_no_step_is_published() -> None:
    worker = Worker(Pipeline())
    worker.pipeline.publishes = False
    assert worker.run(NATIVE, shadows=SHADOWS)[1]["shadows"] == {}
    CONTEXT.available = False
    assert worker.run(NATIVE, shadows=SHADOWS)[1]["shadows"] == {}


def test_a_scheduler_that_counts_otherwise() -> None:
    """As one of second order: its noise levels are more than the steps."""
    worker = Worker(Pipeline())
    _, report = worker.run(NATIVE, ("native",) * 3, shadows=SHADOWS, act=lambda: worker.pipeline.generate(0, 4))
    assert report["shadows"] == {}


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_that_fails_has_no_answer(ranks: int) -> None:
    """Of several ranks the others would wait for this one, so the run is lost, as vLLM-Omni's engine is, and the error
    says that it was a shadow. The policy in force is what it was."""
    worker = Worker(Pipeline(), Config(parallel_config=Parallel(world_size=ranks)))
    kernel = worker.pipeline.transformer.blocks[1].attention

    def fails(*_: Any) -> Any:
        raise ValueError("EZ9999: inner error")

    kernel.forward_fa_quant_npu = fails
    if ranks == 1:
        answered = worker.run(NATIVE, shadows=SHADOWS)[1]["shadows"]
        assert {shadow for shadow in SHADOWS if 1 not in shadow.layers} == set(answered)
    else:
        with pytest.raises(RuntimeError, match="the shadow probe of step 0 in fp8 failed: EZ9999: inner error"):
            worker.run(NATIVE, shadows=SHADOWS)
    (answer,) = worker.fa_tune_begin(None, "case", ("x",) * 4, "none")
    assert answer["policies"] == [("native", (), ())]
    assert torch.equal(worker.run(NATIVE)[0], Worker(Pipeline()).run(NATIVE)[0])


# --- where they are offered -----------------------------------------------------------------------------------------


class Distilled(Pipeline):
    is_dmd = True


class NoVelocity(Pipeline):
    """Its loop calls the transformer itself."""

    def __getattribute__(self, name: str) -> Any:
        if name == "predict_noise_maybe_with_cfg":
            raise AttributeError(name)
        return super().__getattribute__(name)


class NoSigmas(Pipeline):
    def __init__(self) -> None:
        super().__init__()
        del self.scheduler.sigmas


@pytest.mark.parametrize(("kind", "offered"), [(Pipeline, 1), (Distilled, 0), (NoVelocity, 0), (NoSigmas, 0)])
def test_pipelines_that_offer_them(kind: type[Pipeline], offered: int) -> None:
    assert Worker(kind()).found["shadows"] == bool(offered)


def test_a_pipeline_that_offers_none_gives_none() -> None:
    assert Worker(Distilled()).run(NATIVE, shadows=SHADOWS)[1]["shadows"] == {}


def test_several_ranks_offer_them() -> None:
    """All hold the whole velocity, and all repeat it."""
    worker = Worker(Pipeline(), Config(parallel_config=Parallel(world_size=2)))
    assert worker.found["shadows"] and set(worker.run(NATIVE, shadows=SHADOWS)[1]["shadows"]) == set(SHADOWS)


# --- time -----------------------------------------------------------------------------------------------------------


def test_their_time_is_not_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pipeline = [0.0], Pipeline()
    kernel = pipeline.transformer.blocks[0].attention
    forward = kernel.forward

    def slow(value: torch.Tensor, metadata: Any) -> torch.Tensor:
        clock[0] += 2.0
        return forward(value, metadata)

    kernel.forward = slow
    monkeypatch.setattr(worker_module, "_now", lambda: clock[0])
    _, report = Worker(pipeline).run(NATIVE, shadows=SHADOWS)
    assert report["step_seconds"] == [2.0] * 4 and report["shadow_seconds"] == 24.0


def test_the_watchdog_hears_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step with many shadows is longer than one without."""
    heartbeat, clock, beats = tmp_path / "heartbeat", [0.0], []
    heartbeat.touch()
    monkeypatch.setenv(worker_module.HEARTBEAT, str(heartbeat))
    monkeypatch.setattr(worker_module, "_last_beat", -1.0)
    monkeypatch.setattr(worker_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(os, "utime", lambda path: beats.append(clock[0]))
    pipeline = Pipeline(Attention(0))
    kernel = pipeline.transformer.blocks[0].attention
    forward = kernel.forward

    def slow(value: torch.Tensor, metadata: Any) -> torch.Tensor:
        clock[0] += 1.0
        return forward(value, metadata)

    kernel.forward = slow
    Worker(pipeline).run(NATIVE, ("native",), shadows=[Shadow(0, (0,), "fp8"), Shadow(0, (0,), "mxfp4")])
    assert beats == [0.0, 1.0, 2.0]
