"""What could go wrong in silence, provoked on purpose; and what goes wrong aloud: an exception, a crash, a hang."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from fa_tuner.domain.errors import EngineError, NotQuantizedError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.engines.vllm_omni.process import MARK
from fa_tuner.evaluate.coverage import prove

from .conftest import OPTIONS

FAULTS, STRIKES = "FA_TUNE_EMULATE_NPU_FAULTS", "FA_TUNE_EMULATE_NPU_STRIKES"


def left_over(mark: str) -> list[int]:
    """Processes that an engine started and that are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no-support", "backend FLASH_ATTN declares no quantized dtype here"),
        ("sdpa", "attention backend SDPA has no quantized kernel that fa-tune knows"),
        ("no-mindiesd", "which vLLM-Omni takes on an NPU without MindIE-SD"),
        ("no-quant-attention", "mindiesd.quant_attention is missing"),
        ("no-layer-index", "16 attention layers have no layer index"),
        ("opted-out", "every attention layer opts out by disable_kv_quant"),
    ],
)
def test_what_cannot_quantize_is_refused_when_the_engine_opens(
    monkeypatch: pytest.MonkeyPatch, one_case: Workload, fault: str, said: str
) -> None:
    monkeypatch.setenv(FAULTS, fault)
    with pytest.raises(NotQuantizedError, match=said):
        VllmOmniEngine.open(one_case, OPTIONS)


@pytest.mark.parametrize(
    ("fault", "text", "said"),
    [
        ("no-step-index", None, "the pipeline publishes no denoising step index"),
        (
            "ignores-dtype",
            "0/",
            "backend FLASH_ATTN was asked for a quantized dtype in 80 calls and ran another kernel",
        ),
        ("ignores-skip-steps", "0/", "step 0 layer 0 made 2 fp8 attention calls and should have made 0"),
    ],
)
def test_what_runs_something_else_is_caught_by_the_count(
    monkeypatch: pytest.MonkeyPatch, one_case: Workload, fault: str, text: str | None, said: str
) -> None:
    monkeypatch.setenv(FAULTS, fault)
    engine = VllmOmniEngine.open(one_case, OPTIONS)
    try:
        grid = engine.describe().grid
        policy = SkipPolicy.parse(text, ("fp8",), grid) if text else SkipPolicy()
        with pytest.raises(NotQuantizedError, match=said):
            prove(engine.describe(), policy, engine.generate(policy, one_case.cases[0]))
    finally:
        engine.close()


def test_without_a_device_the_engine_says_so(monkeypatch: pytest.MonkeyPatch, one_case: Workload) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "")  # no plugin, no emulated NPU
    with pytest.raises(EngineError, match="device"):
        VllmOmniEngine.open(one_case, OPTIONS)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raises", "EZ9999: inner error of the operator"),
        ("dies", "was killed by SIGKILL; the system may have run out of memory"),
        ("hangs", "hangs: no denoising step for"),
    ],
)
def test_a_failure_costs_one_generation(
    monkeypatch: pytest.MonkeyPatch, one_case: Workload, tmp_path: Path, fault: str, said: str
) -> None:
    strikes = tmp_path / "strikes"
    strikes.write_text("0")
    monkeypatch.setenv(FAULTS, fault)
    monkeypatch.setenv(STRIKES, str(strikes))
    engine = VllmOmniEngine.open(one_case, {**OPTIONS, "hang_seconds": "15"})
    try:
        case, policy = one_case.cases[0], SkipPolicy.parse("0/", ("fp8",), engine.describe().grid)
        native = engine.generate(SkipPolicy(), case)
        assert engine._process is not None
        mark, pid = engine._process.mark, engine._process.pid
        strikes.write_text("1")
        with pytest.raises(EngineError, match=said):
            engine.generate(policy, case)
        assert not left_over(mark) and not psutil.pid_exists(pid)
        again = engine.generate(policy, case)  # a new engine, without being asked
        prove(engine.describe(), policy, again)
        assert (engine.generate(SkipPolicy(), case).frames == native.frames).all()
    finally:
        engine.close()


def test_close_leaves_nothing_behind(one_case: Workload) -> None:
    engine = VllmOmniEngine.open(one_case, OPTIONS)
    assert engine._process is not None
    mark, folder = engine._process.mark, engine._process.folder
    assert left_over(mark), "otherwise this test could not fail"
    engine.close()
    engine.close()
    assert not left_over(mark) and not folder.exists()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(SkipPolicy(), one_case.cases[0])
    assert os.environ.get(MARK) is None
