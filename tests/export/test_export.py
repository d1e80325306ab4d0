"""Each exporter's text: golden files, exact values in every reader, comments that nothing breaks out of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from fa_tuner.domain.errors import FaTuneError, UsageError
from fa_tuner.domain.measurement import Latency
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.study import Recommendation
from fa_tuner.export import exporter
from fa_tuner.export.deploy import DeployExporter

Make = Callable[..., Recommendation]
GOLDEN = Path(__file__).parent / "golden"
HOSTILE = (
    "stop\n}\nstages: [evil]", "a # b: \"c\" 'd' {x}", "bidi \u202e\u2066txet\u2069", "line\u2028sep\x85\r\nend",
    "tab\there \x1b[31mred", "x" * 500, "# <<< fa-tune, stage 0 <<<", "\ufeff: - & * ! | > % @ `", "emoji 🎬 城市",
)  # fmt: skip


def upstream(selector: str) -> set[int] | None:
    """vLLM-Omni's grammar for text (diffusion/data.py, parse_kv_cache_skip_selector), in short."""
    if not selector.strip():
        return None
    values: set[int] = set()
    for token in filter(None, map(str.strip, selector.split(","))):
        first, dash, last = token.partition("-")
        values |= set(range(int(first), int(last) + 1)) if dash else {int(first)}
    return values


def keys_of(name: str, text: str, load: Callable[[str], Any]) -> dict[str, str]:
    document = load(text)
    if name == "deploy":
        assert [dict(stage) for stage in document["stages"]] == [{"stage_id": 0}]
        (entry,) = document["platforms"]["npu"]["stages"]
        assert entry["stage_id"] == 0
    else:
        (stage,) = document["stage_args"]
        assert (stage["stage_id"], stage["stage_type"], stage["engine_args"]["model_stage"]) == (0, "diffusion", "dit")
        entry = stage["engine_args"]
    return {str(key): value for key, value in entry.items() if str(key).startswith("diffusion_kv_cache_")}


def ruamel(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(StringIO(text))


@pytest.mark.parametrize("name", ["deploy", "stage-args", "flags"])
def test_golden(make: Make, name: str) -> None:
    assert exporter(name).export(make(), 0) == (GOLDEN / f"{name}.yaml").read_text()


def test_golden_with_empty_selector_and_real_device(make: Make) -> None:
    recommendation = make(
        steps="", dtype="mxfp8", holdout=False, notes=("two policies are\nequal within noise",),
        latency=Latency(0.7, "measured", 80.0, 0.01, 5),
        environment={"device": "npu Ascend950", "operator": "real", "engine": "vllm-omni"},
    )  # fmt: skip
    assert exporter("deploy").export(recommendation, 1) == (GOLDEN / "deploy-measured.yaml").read_text()


def test_golden_where_the_file_must_name_its_pipeline(make: Make) -> None:
    i2v = make(environment={"pipeline": "WanImageToVideoPipeline"})
    assert exporter("deploy").export(i2v, 0) == (GOLDEN / "deploy-i2v.yaml").read_text()
    for name in ("flags", "stage-args"):
        assert "wan2_2_ti2v" not in exporter(name).export(i2v, 0)
    left_out = exporter("deploy").export(i2v).replace("pipeline: wan2_2_ti2v\n", "")
    assert exporter("deploy").read_back(left_out, 0) == {}


_indices = st.sets(st.integers(0, 29), max_size=29)


@settings(max_examples=50, deadline=None)
@given(_indices, _indices, st.sampled_from(["fp8", "mxfp8", "mxfp4"]))
def test_values_come_back_from_every_reader(make: Make, steps: set[int], layers: set[int], dtype: str) -> None:
    recommendation = make(str(SkipSelector.of(steps)), str(SkipSelector.of(layers)), dtype)
    expected = {
        "diffusion_kv_cache_dtype": dtype,
        "diffusion_kv_cache_skip_steps": str(SkipSelector.of(steps)),
        "diffusion_kv_cache_skip_layers": str(SkipSelector.of(layers)),
    }
    for name in ("deploy", "stage-args"):
        text = exporter(name).export(recommendation)
        for load in (yaml.safe_load, ruamel):
            found = keys_of(name, text, load)
            assert found == expected
            assert {type(value) for value in found.values()} == {str}
            assert (upstream(found["diffusion_kv_cache_skip_steps"]) or set()) == steps
            assert (upstream(found["diffusion_kv_cache_skip_layers"]) or set()) == layers
    words = shlex.split(exporter("flags").export(recommendation), comments=True)
    assert words == [
        "--diffusion-kv-cache-dtype", dtype, "--diffusion-kv-cache-skip-steps", str(SkipSelector.of(steps)),
        "--diffusion-kv-cache-skip-layers", str(SkipSelector.of(layers)),
    ]  # fmt: skip


@pytest.mark.parametrize("selector", ["0", "12", "10-29"])
def test_selectors_are_always_quoted(make: Make, selector: str) -> None:
    for name in ("deploy", "stage-args"):
        text = exporter(name).export(make(selector, selector))
        assert text.count(f'"{selector}"\n') == 2


@pytest.mark.parametrize("name", ["deploy", "stage-args", "flags"])
def test_nothing_breaks_out_of_the_comments(make: Make, name: str) -> None:
    plain = exporter(name).export(make())
    hostile = exporter(name).export(
        make(prompts=HOSTILE, notes=HOSTILE, environment={"device": HOSTILE[0], "versions": {HOSTILE[0]: HOSTILE[2]}})
    )
    strip = re.compile(r"^#[^\n]*\n", re.MULTILINE)
    assert strip.sub("", hostile) == strip.sub("", plain)
    comments = [line for line in hostile.splitlines() if line.startswith("#")]
    assert comments == hostile.split("\n")[: len(comments)]
    assert all(len(line) <= 110 for line in comments)
    assert comments.count("# <<< fa-tune, stage 0 <<<") == 1
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b\ufeff]", hostile)


def test_the_block_says_what_is_true(make: Make) -> None:
    text = exporter("deploy").export(make())
    for said in (
        "holds for 40 steps only", "projected from device profile ascend-950", "did not run on an NPU", "emulated",
        "1280x720", "61 frames", "guidance 5 and 3", "flow shift 5", "seeds         0, 7", "48.25 dB", "2026-11-05",
        "torch 2.13.0", "revision 5be7df96", "worst prompt 31.00 dB", "worst frame 29.50 dB", "requirement met",
    ):  # fmt: skip
        assert said in text
    assert "none: checked on no prompt" in exporter("deploy").export(make(holdout=False))
    cpu = exporter("deploy").export(make(latency=Latency(0.9, "measured", 1.0)))
    assert "measured on cpu, not on an NPU" in cpu


@pytest.mark.parametrize("stage_id", [-1, 1000, True, "0"])
def test_stage_id_is_bounded(make: Make, stage_id: Any) -> None:
    with pytest.raises(UsageError, match="from 0 to 999"):
        exporter("deploy").export(make(), stage_id)


def test_a_value_that_reads_back_differently_is_never_handed_out(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    render = DeployExporter.render
    monkeypatch.setattr(DeployExporter, "render", lambda *args: render(*args).replace('"', ""))
    with pytest.raises(FaTuneError, match="reads back as"):
        exporter("deploy").export(make(steps="0"))


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="deploy, stage-args, flags"):
        exporter("toml")
