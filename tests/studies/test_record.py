"""The recorder of the demo's landscapes, on a checkpoint of two layers."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fa_tuner.domain.errors import ConflictError, UsageError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.base import Shadow
from fa_tuner.engines.landscape import Landscape
from fa_tuner.engines.registry import open_engine
from fa_tuner.evaluate.quality import compare

SCRIPT = Path(__file__).parents[2] / "studies" / "demo" / "record.py"


@pytest.fixture(scope="module")
def recorder() -> Any:
    spec = importlib.util.spec_from_file_location("record", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def work(tiny_wan: Path) -> Workload:
    return Workload(
        str(tiny_wan), ("red digit moving left",), 32, 32, 5, 2, guidance=4.0, holdout=("blue digit moving right",)
    )


def test_what_is_recorded_is_what_the_engine_gives(recorder: Any, work: Workload, tmp_path: Path) -> None:
    recorder.record(work, "fp8", None, tmp_path / "x.json.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json.gz"], "the journal is gone"
    landscape = Landscape.read(tmp_path / "x.json.gz")
    assert landscape.workload == work and landscape.size == 9 and landscape.dtypes == ("fp8",)
    assert landscape.latency.attention_share == pytest.approx(6.81 / 14.13)
    assert landscape.latency.attention_ratio["fp8"] == pytest.approx(5.43 / 6.81)
    engine = open_engine("diffusers", work, {"device": "cpu"})
    policy = SkipPolicy.parse("1/0", ("fp8",), landscape.grid)
    shadow = Shadow(1, (0,), "fp8")
    for case in work.cases + work.holdout_cases:
        native = engine.generate(SkipPolicy(), case, "none", [shadow])
        frames = engine.generate(policy, case).frames
        assert native.frames is not None and frames is not None
        recorded = landscape.record.quality(policy, case)
        assert recorded is not None
        assert recorded.metrics == pytest.approx(compare(case, native.frames, frames).metrics, rel=1e-8)
        assert landscape.shadows[case][shadow] == pytest.approx(native.shadows[shadow], rel=1e-8)
        assert {shadow.layers for shadow in landscape.shadows[case]} == {(0,), (1,), (0, 1)}


def test_a_killed_recording_goes_on(
    recorder: Any, work: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.record(work, "fp8", None, tmp_path / "whole.json")
    measure, seen = recorder.Evaluator.measure, list[SkipPolicy]()

    def killed(evaluator: Any, policy: SkipPolicy) -> Any:
        seen.append(policy)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return measure(evaluator, policy)

    monkeypatch.setattr(recorder.Evaluator, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        recorder.record(work, "fp8", None, tmp_path / "x.json")
    journal = tmp_path / "x.json.journal"
    assert not (tmp_path / "x.json").exists()
    journal.write_bytes(journal.read_bytes()[:-7])  # the fourth policy's line is cut short
    with pytest.raises(ConflictError, match=r"is of \{.*give another --out"):
        recorder.record(replace(work, steps=3), "fp8", None, tmp_path / "x.json")
    recorder.record(work, "fp8", None, tmp_path / "x.json")
    assert seen[5:] == [*seen[3:5], *seen[7:]] and len(set(seen)) == 9
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "x.json"))
    assert one.pop("latency").keys() == other.pop("latency").keys()
    assert one == other


def test_a_dtype_without_a_published_ratio_needs_one(recorder: Any, work: Workload, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no figure for mxfp4"):
        recorder.record(work, "mxfp4", None, tmp_path / "x.json")
    landscape = recorder.record(work, "mxfp4", 0.6, tmp_path / "x.json")
    assert landscape.latency.attention_ratio == pytest.approx({"mxfp4": 0.6})
    assert "attention ratio 0.6 as given" in landscape.made_by
