"""What runs inside vLLM-Omni's workers: calls are counted, policies switched and read back, prefixes resumed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fa_tuner.engines.base import UNPUBLISHED
from fa_tuner.engines.vllm_omni import worker as worker_module
from tests.support.omni_modules import CONTEXT, Attention, Config, Parallel, Pipeline, Worker, installed

Cells = dict[tuple[int, int, str], int]
EVERYTHING = ("fp8", "", "")


@pytest.fixture(autouse=True)
def vllm_omni(one_thread: None) -> Iterator[None]:
    with installed():
        yield


def cells(*, steps: int = 4, layers: int = 2, dtype: str = "fp8", native: set[tuple[int, int]] = frozenset()) -> Cells:  # type: ignore[assignment]
    return {
        (step, layer, "native" if (step, layer) in native else dtype): 1
        for step in range(steps)
        for layer in range(layers)
    }


# --- counting -------------------------------------------------------------------------------------------------------


def test_native_calls() -> None:
    _, report = Worker(Pipeline()).run()
    assert report["calls"] == cells(dtype="native")
    assert (report["cross_attention_quantized"], report["ignored"], report["start"]) == (0, {}, 0)
    assert report["reused_calls"] == {}


def test_quantized_calls_and_skipped_ones() -> None:
    """A layer that skips asks for "float", which is native."""
    _, report = Worker(Pipeline()).run(("mxfp8", "0,3", "1"))
    native = {(step, layer) for step in range(4) for layer in range(2) if step in (0, 3) or layer == 1}
    assert report["calls"] == cells(dtype="mxfp8", native=native) and report["ignored"] == {}


def test_two_calls_a_cell() -> None:
    """Both branches of guidance, one after the other."""
    worker = Worker(Pipeline())
    transformer = worker.pipeline.transformer.forward
    worker.pipeline.transformer.forward = lambda value: transformer(value) + transformer(-value)
    _, report = worker.run(EVERYTHING)
    assert report["calls"] == dict.fromkeys(cells(), 2)


def test_each_report_is_of_its_own_run() -> None:
    worker = Worker(Pipeline())
    worker.run(EVERYTHING)
    assert worker.run(("native", "", ""))[1]["calls"] == cells(dtype="native")
    (after,) = worker.fa_tune_report()
    assert after["calls"] == [] and after["step_seconds"] == []


@pytest.mark.parametrize("fault", ["ignores", "raises"])
def test_asking_is_not_running(fault: str) -> None:
    """A backend that ignores the dtype, or falls back when its quantized kernel fails, ran native."""
    worker = Worker(Pipeline(Attention(0), Attention(1, fault=fault)))
    _, report = worker.run(("fp8", "0", ""))
    assert report["calls"] == cells(native={(0, 0), (0, 1), (1, 1), (2, 1), (3, 1)})
    assert report["ignored"] == {"FLASH_ATTN": 3}


def test_a_backend_that_falls_back_from_some_call_on() -> None:
    worker = Worker(Pipeline(Attention(0)))
    step = worker.pipeline.scheduler_step_maybe_with_cfg

    def breaks(*arguments: Any) -> Any:
        worker.pipeline.transformer.blocks[0].attention.fault = "ignores"
        return step(*arguments)

    worker.pipeline.scheduler_step_maybe_with_cfg = breaks
    _, report = worker.run(EVERYTHING)
    assert report["calls"] == cells(layers=1, native={(1, 0), (2, 0), (3, 0)}) and report["ignored"] == {
        "FLASH_ATTN": 3
    }


@pytest.mark.parametrize(("backend", "name"), [("SDPA", "SDPA"), (None, "custom")])
def test_a_backend_that_is_not_known_never_counts_as_quantized(backend: str | None, name: str) -> None:
    pipeline = Pipeline(Attention(0), Attention(1, disable=backend is None, backend=backend))
    if backend is None:  # a model's own kernel, which is never eligible here
        _, report = Worker(pipeline).run(EVERYTHING)
        assert report["calls"] == cells(layers=1) and report["cross_attention_quantized"] == 0
        return
    _, report = Worker(pipeline).run(EVERYTHING)
    assert report["ignored"] == {name: 4}
    assert {layer for _, layer, dtype in report["calls"] if dtype == "fp8"} == {0}


def test_no_step_is_published() -> None:
    worker = Worker(Pipeline())
    worker.pipeline.publishes = False
    _, report = worker.run(EVERYTHING)
    assert report["calls"] == {(UNPUBLISHED, 0, "fp8"): 4, (UNPUBLISHED, 1, "fp8"): 4}


def test_there_is_no_context_to_publish_in() -> None:
    worker = Worker(Pipeline())
    CONTEXT.available = False
    _, report = worker.run(EVERYTHING)
    assert {step for step, _, _ in report["calls"]} == {UNPUBLISHED}


def test_no_layer_index() -> None:
    _, report = Worker(Pipeline(Attention(None), Attention(None))).run(EVERYTHING)
    assert report["calls"] == {(step, UNPUBLISHED, "fp8"): 2 for step in range(4)}


@pytest.mark.parametrize(
    "cross", [Attention(0, role="cross"), Attention(0, disable=True)], ids=["by its role", "opted out"]
)
def test_cross_attention_has_no_cell(cross: Attention) -> None:
    worker = Worker(Pipeline(Attention(0), cross))
    assert worker.found["eligible"] == 1
    _, report = worker.run(("native", "", ""))
    assert report["calls"] == cells(layers=1, dtype="native")


def test_cross_attention_that_ran_quantized() -> None:
    worker = Worker(Pipeline(Attention(0), Attention(0, role="cross")))
    _, report = worker.run(("fp8", "0", ""))
    assert report["cross_attention_quantized"] == 3
    assert report["calls"] == cells(layers=1, native={(0, 0)})


def test_counting_changes_nothing() -> None:
    plain = {seed: Pipeline().generate(seed) for seed in (0, 1)}
    worker = Worker(Pipeline())
    for seed, latents in plain.items():
        assert torch.equal(worker.run(seed=seed, prefix="keep")[0], latents)
    assert not torch.equal(worker.run(EVERYTHING)[0], plain[0])


# --- switching and reading back -------------------------------------------------------------------------------------


def in_force(worker: Worker, policy: tuple[str, str, str] | None) -> list[Any]:
    (answer,) = worker.fa_tune_begin(policy, "case", ("x",) * 4, "none")
    return list(answer["policies"])


def test_a_policy_is_put_in_force_everywhere() -> None:
    worker = Worker(Pipeline())
    assert worker.found["policies"] == [("native", (), ())]
    assert in_force(worker, ("fp8", "2,0", "1")) == [("fp8", (0, 2), (1,))]
    config = worker.config
    assert (config.diffusion_kv_cache_dtype, config.diffusion_kv_cache_skip_steps) == ("fp8", "2,0")
    assert config.diffusion_kv_cache_skip_layers == "1"
    assert config.diffusion_kv_cache_skip_step_indices == {0, 2}
    assert {m._kv_cache_dtype for m in worker.pipeline.modules() if isinstance(m, Attention)} == {"fp8"}
    assert in_force(worker, None) == [("fp8", (0, 2), (1,))]
    assert in_force(worker, ("native", "", "")) == [("native", (), ())]
    assert config.diffusion_kv_cache_dtype is None and config.diffusion_kv_cache_skip_step_indices is None


def test_what_is_read_back_is_what_the_layers_hold() -> None:
    """Not what the configuration says."""
    worker = Worker(Pipeline())
    first, second, cross = worker.pipeline.transformer.blocks
    in_force(worker, EVERYTHING)
    second._kv_cache_skip_steps = {3, 1}
    cross._kv_cache_dtype = "mxfp4"
    assert in_force(worker, None) == [("fp8", (), ()), ("fp8", (1, 3), ())]
    for name in ("auto", "float", None):
        first._kv_cache_dtype = second._kv_cache_dtype = name
        assert {dtype for dtype, _, _ in in_force(worker, None)} == {"native"}


def test_what_vllm_omni_refuses_is_passed_on() -> None:
    with pytest.raises(RuntimeError, match=r"^ValueError: .* does not support kv_cache_dtype='int8' on npu"):
        in_force(Worker(Pipeline()), ("int8", "", ""))


# --- time -----------------------------------------------------------------------------------------------------------


def test_each_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the loop's begin, or the end of the step before, the device synchronized."""
    now = iter(range(100))
    monkeypatch.setattr(worker_module, "_now", lambda: float(next(now)))
    _, report = Worker(Pipeline()).run()
    assert report["step_seconds"] == [1.0] * 4


def test_the_watchdog_hears_of_it_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat = tmp_path / "heartbeat"
    heartbeat.touch()
    clock = [100.0]
    monkeypatch.setenv(worker_module.HEARTBEAT, str(heartbeat))
    monkeypatch.setattr(worker_module, "_last_beat", 0.0)
    monkeypatch.setattr(worker_module.time, "monotonic", lambda: clock[0])
    worker = Worker(Pipeline())
    for seconds, heard in ((100.0, True), (100.9, False), (101.0, True)):
        clock[0] = seconds
        os.utime(heartbeat, (0, 0))
        worker.run()
        assert (heartbeat.stat().st_mtime > 0) == heard


# --- prefixes -------------------------------------------------------------------------------------------------------

LATE = (("fp8", "0,1", ""), ("native", "native", "fp8/", "fp8/"))
LATE_1 = (("fp8", "0,1", "1"), ("native", "native", "fp8/1", "fp8/1"))
ALL = (EVERYTHING, ("fp8/",) * 4)


def test_resumed_is_full_bit_by_bit() -> None:
    """Latents and the scheduler's history, from steps that native and policy share."""
    worker = Worker(Pipeline())
    full, whole = worker.run(*LATE)
    worker.run(("native", "", ""), prefix="keep")
    resumed, report = worker.run(*LATE, prefix="reuse")
    assert torch.equal(resumed, full)
    assert report["start"] == 2 and len(report["step_seconds"]) == 2
    assert {step for step, _, _ in report["calls"]} == {2, 3}, "the loop counts from 0, the steps do not"
    assert report["reused_calls"] == cells(steps=2, dtype="native")
    assert {**report["calls"], **report["reused_calls"]} == whole["calls"]


def test_a_resumed_run_keeps_the_rest() -> None:
    worker = Worker(Pipeline())
    worker.run(("native", "", ""), prefix="keep")
    first, report = worker.run(*LATE, prefix="reuse")
    assert report["start"] == 2
    again, report = worker.run(*LATE, prefix="reuse")
    assert report["start"] == 3 and torch.equal(again, first)
    assert report["reused_calls"] == {**cells(steps=2, dtype="native"), (2, 0, "fp8"): 1, (2, 1, "fp8"): 1}
    assert report["calls"] == {(3, 0, "fp8"): 1, (3, 1, "fp8"): 1}


def test_the_last_state_is_not_kept() -> None:
    worker = Worker(Pipeline())
    worker.run(*ALL, prefix="keep")
    found = worker._fa_tune.prefixes.longest("0:a cat", (*ALL[1], "one more"))
    assert found is not None and found[0] == 3, "nothing goes on from the end"


def test_a_prefix_is_shared_only_where_it_is_equal() -> None:
    worker = Worker(Pipeline())
    worker.run(*LATE, prefix="keep")
    assert worker.run(*LATE_1, prefix="reuse")[1]["start"] == 2, "the two native steps"
    assert worker.run(*ALL, prefix="reuse")[1]["start"] == 0
    assert worker.run(*ALL, prefix="reuse")[1]["start"] == 3


def test_a_prefix_is_that_of_its_case() -> None:
    worker = Worker(Pipeline())
    full = worker.run(*LATE, seed=1)[0]
    worker.run(*LATE, seed=0, prefix="keep")
    latents, report = worker.run(*LATE, seed=1, prefix="reuse")
    assert report["start"] == 0 and torch.equal(latents, full)


@pytest.mark.parametrize(("prefix", "kept", "started"), [("none", False, 0), ("keep", True, 0), ("reuse", True, 3)])
def test_what_each_kind_of_run_does(prefix: str, kept: bool, started: int) -> None:
    before, after = Worker(Pipeline()), Worker(Pipeline())
    before.run(*ALL, prefix="keep")
    assert before.run(*ALL, prefix=prefix)[1]["start"] == started
    after.run(*ALL, prefix=prefix)
    assert (after.run(*ALL, prefix="reuse")[1]["start"] == 3) == kept


def test_a_run_after_a_resumed_one_is_whole() -> None:
    worker = Worker(Pipeline())
    full = worker.run(*ALL, prefix="keep")[0]
    worker.run(*ALL, prefix="reuse")
    latents, report = worker.run(*ALL)
    assert torch.equal(latents, full) and report["start"] == 0 and report["calls"] == cells()


def test_a_scheduler_that_makes_another_number_of_steps() -> None:
    """Such as one of second order, which evaluates twice."""
    worker = Worker(Pipeline())
    worker.run(*ALL, prefix="keep")
    with pytest.raises(RuntimeError, match="the scheduler makes 5 steps, not 4"):
        worker.run(*ALL, prefix="reuse", act=lambda: worker.pipeline.generate(0, 5))


def test_nothing_is_kept_beyond_the_limit() -> None:
    worker = Worker(Pipeline(), prefix_cache_mb=0)
    worker.run(*ALL, prefix="keep")
    assert worker.run(*ALL, prefix="reuse")[1]["start"] == 0
    assert worker._fa_tune.prefixes.held_bytes == 0


class Distilled(Pipeline):
    is_dmd = True


class NoLatents(Pipeline):
    def diffuse(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().diffuse(x, timesteps)


class Without(Pipeline):
    """Its loop has another name for what the extension looks for."""

    def __getattribute__(self, name: str) -> Any:
        if name in vars(type(self)).get("missing", ()):
            raise AttributeError(name)
        return super().__getattribute__(name)


class NoStepMethod(Without):
    missing = ("scheduler_step_maybe_with_cfg",)


class NoRecord(Without):
    missing = ("record_denoise_step",)


class NoLoop(Without):
    missing = ("diffuse",)


@pytest.mark.parametrize("kind", [Distilled, NoLatents])
def test_pipelines_that_cannot_resume_run_in_full(kind: type[Pipeline]) -> None:
    worker = Worker(kind())
    assert worker.found["resumable"] is False
    full = worker.run(*ALL, prefix="keep")[0]
    latents, report = worker.run(*ALL, prefix="reuse")
    assert report["start"] == 0 and torch.equal(latents, full) and report["calls"] == cells()
    assert len(report["step_seconds"]) == 4, "but it is timed all the same"


@pytest.mark.parametrize("kind", [NoStepMethod, NoRecord, NoLoop])
def test_pipelines_without_the_methods_cannot_resume(kind: type[Pipeline]) -> None:
    assert Worker(kind()).found["resumable"] is False


def test_several_ranks_do_not_resume() -> None:
    """They would have to go on from the same step, or wait for each other for ever."""
    worker = Worker(Pipeline(), Config(parallel_config=Parallel(world_size=2)))
    assert worker.found["resumable"] is False
    worker.run(*ALL, prefix="keep")
    assert worker.run(*ALL, prefix="reuse")[1]["start"] == 0


def test_this_one_resumes() -> None:
    assert Worker(Pipeline()).found["resumable"] is True
