"""A policy merged into files that people keep: nothing else changes, twice is once, and doubt is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fa_tuner.domain.errors import DocumentError, NothingQualifiesError
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.study import Recommendation
from fa_tuner.export import exporter, merge_into

Make = Callable[..., Recommendation]
VALUES = {
    "diffusion_kv_cache_dtype": "fp8",
    "diffusion_kv_cache_skip_steps": "0,1,38,39",
    "diffusion_kv_cache_skip_layers": "0-2",
}

TI2V = """\
# Wan deploy.
#
# One card by default.
async_chunk: false
trust_remote_code: true

stages:
  - stage_id: 0
    devices: "0"
    max_num_seqs: 4  # batch width
    # Keep tiling on.
    vae_use_tiling: yes
    window: 012
    default_sampling_params:
      seed: 42
"""

TWO_STAGES = """\
# AR (stage 0) + DiT (stage 1)
pipeline: two
connectors:
  shared: &shared {name: 'SharedMemoryConnector', extra: {}}
  other: *shared

stages:
- stage_id: 0
  devices: "0,1"
  env: &env
    A: "1"
- stage_id: 1   # the DiT
  env:
    <<: *env
    B: 1:30
  note: |
    text
      # no comment

platforms:
  npu:
    model_runner: v1
    stages:
      # Both stay resident.
      - stage_id: 0
        devices: '0,1'
      - stage_id: 1
        gpu_memory_utilization: .65
        parallel_config:
          ulysses_degree: 1
        # more cards need more of it
  # not tried
  xpu:
    stages:
      - stage_id: 1
        quantization: fp8
edges:
  - {from: 0, to: 1, window_size: -1}
"""

OVERLAY = "base_config: hunyuan.yaml\r\nplatforms:\r\n    npu:\r\n        stages:\r\n          - stage_id: 1"

FLOW = '{stages: [{stage_id: 0, devices: "0"}], platforms: {xpu: {}, npu: {stages: []}}} # one line'

LEGACY = """\
stage_args:
  - stage_id: 0
    stage_type: llm
    engine_args: {model_stage: ar}
  - stage_id: 1
    stage_type: diffusion
    runtime:
      devices: "1"
    engine_args:
      model_stage: dit
      # trailing
    final_output: true
"""

FILES = {"ti2v": TI2V, "two": TWO_STAGES, "overlay": OVERLAY, "flow": FLOW}


def merged(text: str, recommendation: Recommendation, stage_id: int = 0) -> str:
    return merge_into(text, recommendation, stage_id, "deploy.yaml")


def entry_of(stages: list[dict[str, Any]], stage_id: int) -> dict[str, Any]:
    (entry,) = [stage for stage in stages if stage["stage_id"] == stage_id]
    return entry


def without_ours(document: dict[str, Any], stage_id: int) -> dict[str, Any]:
    """The document less the three keys of the NPU entry."""
    entry = entry_of(document["platforms"]["npu"]["stages"], stage_id)
    assert {key: entry.pop(key) for key in VALUES} == VALUES
    return document


def is_subsequence(lines: list[str], among: list[str]) -> bool:
    rest = iter(among)
    return all(line in rest for line in lines)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("stage_id", [0, 1])
def test_keeps_every_line_and_is_idempotent(make: Make, name: str, stage_id: int) -> None:
    text = FILES[name]
    once = merged(text, make(), stage_id)
    assert merged(once, make(), stage_id) == once
    if name != "flow":
        assert is_subsequence(re.split(r"\r?\n", text), re.split(r"\r?\n", once))
    document = without_ours(yaml.safe_load(once), stage_id)
    entry_of(document["stages"], stage_id)
    before = yaml.safe_load(text)
    for key in set(before) - {"stages", "platforms"}:
        assert document[key] == before[key]
    assert [s for s in document["stages"] if s != {"stage_id": stage_id}] == [
        s for s in before.get("stages", []) if s != {"stage_id": stage_id}
    ]
    assert document["platforms"].get("xpu") == before.get("platforms", {}).get("xpu")


def test_a_file_without_platforms_gains_them_at_its_end(make: Make) -> None:
    block, rest = merged(TI2V, make()).split("# <<< fa-tune, stage 0 <<<\n\n")
    assert block.startswith("# >>> fa-tune, stage 0 >>>\n")
    keys = "".join(f'        {key}: "{value}"\n' for key, value in VALUES.items())
    assert rest == f"{TI2V}platforms:\n  npu:\n    stages:\n      - stage_id: 0\n{keys}"


def test_an_existing_entry_gains_the_keys_before_foreign_comments(make: Make) -> None:
    text = merged(TWO_STAGES, make(), 1)
    keys = "".join(f'        {key}: "{value}"\n' for key, value in VALUES.items())
    assert f"        # more cards need more of it\n{keys}  # not tried\n" in text
    assert without_ours(yaml.safe_load(text), 1) == yaml.safe_load(TWO_STAGES)


def test_line_ends_and_indentation_are_those_of_the_file(make: Make) -> None:
    text = merged(OVERLAY, make(), 1)
    assert not re.search(r"(?<!\r)\n", text)
    assert '\r\n          - stage_id: 1\r\n            diffusion_kv_cache_dtype: "fp8"\r\n' in text
    document = yaml.safe_load(text)
    assert document["stages"] == [{"stage_id": 1}]
    assert document["base_config"] == "hunyuan.yaml"


def test_a_second_policy_replaces_the_first(make: Make) -> None:
    first = merged(TWO_STAGES, make(), 1)
    second = merged(first, make(steps="5", layers="", dtype="mxfp4"), 1)
    assert second.count(">>> fa-tune, stage 1 >>>") == second.count("diffusion_kv_cache_dtype") == 1
    entry = entry_of(yaml.safe_load(second)["platforms"]["npu"]["stages"], 1)
    assert [entry[key] for key in VALUES] == ["mxfp4", "5", ""]
    assert second == merged(TWO_STAGES, make(steps="5", layers="", dtype="mxfp4"), 1)
    assert merged(second, make(), 1) == first


def test_two_stages_have_a_block_each(make: Make) -> None:
    both = merged(merged(TWO_STAGES, make(), 1), make(steps="3"), 0)
    assert both.count(">>> fa-tune, stage 0 >>>") == both.count(">>> fa-tune, stage 1 >>>") == 1
    stages = yaml.safe_load(both)["platforms"]["npu"]["stages"]
    assert entry_of(stages, 0)["diffusion_kv_cache_skip_steps"] == "3"
    assert entry_of(stages, 1)["diffusion_kv_cache_skip_steps"] == "0,1,38,39"


@settings(max_examples=25)
@given(st.sets(st.integers(0, 29), max_size=29), st.sets(st.integers(0, 28)), st.sampled_from(sorted(FILES)))
def test_any_policy_goes_in_exactly(make: Make, steps: set[int], layers: set[int], name: str) -> None:
    recommendation = make(str(SkipSelector.of(steps)), str(SkipSelector.of(layers)))
    entry = entry_of(yaml.safe_load(merged(FILES[name], recommendation))["platforms"]["npu"]["stages"], 0)
    assert entry["diffusion_kv_cache_skip_steps"] == str(SkipSelector.of(steps))
    assert entry["diffusion_kv_cache_skip_layers"] == str(SkipSelector.of(layers))


_leaves = st.none() | st.booleans() | st.integers() | st.text("a1:#-é\n '\"", max_size=9)
_extras = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    _leaves | st.lists(_leaves) | st.dictionaries(st.text("xyz"), _leaves),
    max_size=3,
)
_stages = st.lists(st.integers(0, 3), unique=True, max_size=3).flatmap(
    lambda ids: st.tuples(*(_extras.map(lambda extra, n=n: {"stage_id": n, **extra}) for n in ids)).map(list)
)


@settings(max_examples=100, deadline=None)
@given(_extras, _stages, st.none() | _stages, st.none() | st.booleans(), st.integers(2, 6))
def test_any_dumped_file_keeps_its_meaning(
    make: Make, extra: Any, stages: Any, npu: Any, flow: bool | None, indent: int
) -> None:
    data = {"stages": stages, **extra, "platforms": {"npu": {"stages": npu}}, "zz": 1}
    text = yaml.safe_dump(data, default_flow_style=flow, indent=indent, allow_unicode=True, sort_keys=False)
    once = merged(text, make(), 1)
    assert merged(once, make(), 1) == once
    found = yaml.safe_load(once)
    entries = {stage["stage_id"]: stage for stage in npu or []} | {1: {"stage_id": 1}}
    own = next((stage for stage in npu or [] if stage["stage_id"] == 1), {"stage_id": 1})
    entries[1] = {**own, **VALUES}
    assert {stage["stage_id"]: stage for stage in found["platforms"]["npu"]["stages"]} == entries
    if not any(stage["stage_id"] == 1 for stage in stages):
        stages = [*stages, {"stage_id": 1}]
    assert found == {**data, "stages": stages, "platforms": found["platforms"]}


def test_exports_merge_too(make: Make) -> None:
    for name in ("deploy", "stage-args"):
        text = exporter(name).export(make(steps="7"))
        again = merged(text, make())
        assert again.count(">>> fa-tune") == 1
        assert 'skip_steps: "0,1,38,39"' in again


I2V = {"pipeline": "WanImageToVideoPipeline"}
CLASS = {"model_class_name": "WanImageToVideoPipeline"}


@pytest.mark.parametrize("name", ["ti2v", "flow"])
@pytest.mark.parametrize("stage_id", [0, 1])
def test_a_file_that_would_not_be_read_is_made_to_name_its_pipeline(make: Make, name: str, stage_id: int) -> None:
    text, i2v = FILES[name], make(environment=I2V)
    once = merged(text, i2v, stage_id)
    assert merged(once, i2v, stage_id) == once
    document = without_ours(yaml.safe_load(once), stage_id)
    assert document.pop("pipeline") == "wan2_2_ti2v"
    entry = entry_of(document["stages"], stage_id)
    assert entry.pop("model_class_name") == "WanImageToVideoPipeline"
    expected = without_ours(yaml.safe_load(merged(text, make(), stage_id)), stage_id)
    assert document == expected
    if name == "ti2v":
        assert is_subsequence(text.splitlines(), once.splitlines())
    assert "because vLLM-Omni reads no deploy file for" in re.sub("\n# *", " ", once)


@pytest.mark.parametrize(
    ("text", "pipeline", "own"),
    [
        ("stages:\n  - stage_id: 0\n", "wan2_2_ti2v", CLASS),
        ("pipeline:\nstages:\n  - stage_id: 0\n    model_class_name:\n", "wan2_2_ti2v", CLASS),
        ("pipeline: wan2_2_ti2v\nstages: []\n", "wan2_2_ti2v", CLASS),
        ("pipeline: wan2_2_ti2v # mine\nstages: [{stage_id: 0, devices: '0'}]", "wan2_2_ti2v",
         CLASS | {"devices": "0"}),
        ("stages: [{stage_id: 0, model_class_name: Mine}]\n", "wan2_2_ti2v", {"model_class_name": "Mine"}),
        ("stages: [{stage_id: 0, engine_args: {model_class_name: Mine}}]\n", "wan2_2_ti2v",
         {"engine_args": {"model_class_name": "Mine"}}),
        ("pipeline: mine\nstages:\n  - stage_id: 0\n", "mine", {}),
        ("pipeline: mine\n", "mine", {}),
        ("base_config: wan2_2_ti2v.yaml\n", None, {}),
        ("base_config: b.yaml\npipeline: wan2_2_ti2v\n", "wan2_2_ti2v", CLASS),
    ],
)  # fmt: skip
def test_what_the_file_names_itself_is_kept(make: Make, text: str, pipeline: str | None, own: dict[str, Any]) -> None:
    i2v = make(environment=I2V)
    once = merged(text, i2v)
    assert merged(once, i2v) == once
    document = yaml.safe_load(once)
    assert document.get("pipeline") == pipeline
    assert document["stages"] == [{"stage_id": 0, **own}]
    assert all(comment in once for comment in re.findall("#.*", text))
    said = re.sub("\n# *", " ", once)
    assert ("reads no deploy file for" in said) is (pipeline == "wan2_2_ti2v")
    assert ("unless its base_config names a pipeline" in said) is (pipeline is None)


def test_an_export_of_another_pipeline_is_completed(make: Make) -> None:
    t2v, i2v = make(), make(environment=I2V)
    text = merged(exporter("deploy").export(t2v), i2v)
    assert yaml.safe_load(text) == yaml.safe_load(exporter("deploy").export(i2v))
    assert merged(exporter("deploy").export(i2v), i2v) == exporter("deploy").export(i2v).replace(
        "# For --deploy-config. To build on a deploy file of your own, add base_config: FILE, or merge with fa-tune\n"
        "#   export --into FILE.\n", ""
    )  # fmt: skip
    legacy = LEGACY.replace("stage_id: 0", "stage_id: 2")
    assert "wan2_2_ti2v" not in merged(legacy, i2v, 1)


def test_legacy_files_take_the_keys_as_engine_arguments(make: Make) -> None:
    text = merged(LEGACY, make(), 1)
    assert merged(text, make(), 1) == text
    document = yaml.safe_load(text)
    arguments = document["stage_args"][1]["engine_args"]
    assert {key: arguments.pop(key) for key in VALUES} == VALUES
    assert document == yaml.safe_load(LEGACY)
    assert "ValueError" in text
    with pytest.raises(DocumentError, match="stage 0 has the type llm"):
        merged(LEGACY, make(), 0)
    with pytest.raises(DocumentError, match="no stage 2"):
        merged(LEGACY, make(), 2)
    with pytest.raises(DocumentError, match="both"):
        merged(LEGACY + "stages: []\n", make(), 1)
    bare = merged("stage_args:\n  - stage_id: 0\n    engine_args:\n", make())
    assert yaml.safe_load(bare)["stage_args"][0]["engine_args"] == VALUES


def test_keys_elsewhere_on_the_stage_get_the_same_value(make: Make) -> None:
    text = """\
stages:
  - stage_id: 0
    diffusion_kv_cache_dtype: fp8
    diffusion_kv_cache_skip_steps: [0, 1]  # ours
    diffusion_kv_cache_skip_layers:
    engine_extras:
      diffusion_kv_cache_skip_steps: 7
  - stage_id: 1
    diffusion_kv_cache_skip_steps: "9"
platforms:
  npu:
    stages:
      - stage_id: 0
        engine_args:
          enforce_eager: true
"""
    found = yaml.safe_load(merged(text, make()))
    own, other = found["stages"]
    assert {key: own[key] for key in VALUES} == VALUES
    assert own["engine_extras"] == {"diffusion_kv_cache_skip_steps": "0,1,38,39"}
    assert other == {"stage_id": 1, "diffusion_kv_cache_skip_steps": "9"}
    (entry,) = found["platforms"]["npu"]["stages"]
    assert entry == {"stage_id": 0, "engine_args": {"enforce_eager": True, **VALUES}}  # flat keys do not count there
    assert "  # ours\n" in merged(text, make())


@pytest.mark.parametrize(
    "text",
    [
        "stages:\nplatforms:\n",
        "stages: ~\nplatforms: null  # none yet\n",
        "platforms:\n  npu:\n  xpu: {}\n",
        "pipeline: p",
        "stages: []\nplatforms: {npu: }",
        "\ufeffpipeline: p\nplatforms: {npu: {}}\n",
        "--- # start\npipeline: p\n...\n",
        "pipeline: p\nplatforms:\n  npu:\n    stages:\n    - {stage_id: 0}\n",
        "stages:\n  -\n    stage_id: 0\n",
        "base_config: b\ntext: |+\n  kept\n\n",
        "stages:\n- stage_id: 0\n  list:\n  - a\n  - b\n# the end\n",
        "platforms:\n  npu:\n    stages: &s\n      - stage_id: 3\n",
        "stages:\n  - stage_id: 0\n    text: 'a\n\n      b'\n\n\n",
    ],
)
@pytest.mark.parametrize("libyaml", [True, False])
def test_odd_shapes(make: Make, text: str, libyaml: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not libyaml:
        monkeypatch.delattr(yaml, "CSafeLoader")
    once = merged(text, make())
    assert merged(once, make()) == once
    document = yaml.safe_load(once)
    assert entry_of(document["stages"], 0)
    without_ours(document, 0)
    assert all(comment in once for comment in re.findall("#.*", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [{stage_id: 0}]\nstages: []", "given twice"),
        ("stages:\n\t- stage_id: 0", "line 2: not YAML"),
        ("a: &a [x]\n" + "b: [" + "*a, " * 60_000 + "]", "beyond measure"),
        ("stages: " + "[" * 5000, "nested more"),
        ("stages: []\n# " + "x" * (1 << 20), "1 MiB"),
        ("stages: !!python/object/apply:os.system ['true']", "tag"),
        ("services: {web: {}}", "is it a vLLM-Omni deploy file"),
        ("- a", "must be a mapping"),
        ("", "is empty"),
        ("stages: {stage_id: 0}", "must be a list of stages"),
        ("stages: [0]", "must be a list of stages"),
        ("stages: [{stage_id: 0}, {stage_id: 0}]", "stages has stage 0 twice"),
        ("stages: []\nplatforms: [npu]", "cannot be reached"),
        ("stages:\n- stage_id: 0\n  kv_cache_skip_steps: '0'", "kv_cache_skip_steps, the old name"),
        ("x: &x {stage_id: 0}\nstages: [*x]\nplatforms: {npu: {stages: [*x]}}", "comes from an alias"),
        ("stages: &s\n- &e\n  stage_id: 0\nplatforms:\n  npu:\n    stages: *s", "comes from an alias"),
        ("platforms:\n  npu:\n    stages:\n    - &e\n      stage_id: 0\n  xpu: {stages: [*e]}", "something else"),
        ("stages:\n- stage_id: 0\n  diffusion_kv_cache_skip_steps:\n  - 0", "spans several lines"),
        ("stages: []\nwhen: 2026-13-45", "cannot be read as vLLM-Omni reads it"),
    ],
    ids=range(19),
)  # fmt: skip
def test_refuses_what_it_cannot_merge(make: Make, text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=re.escape(message)) as caught:
        merged(text, make())
    assert "deploy file deploy.yaml" in str(caught.value)


def test_marks_inside_a_text_value_are_left_alone(make: Make) -> None:
    text = "stages: []\nnote: |\n  # >>> fa-tune, stage 0 >>>\n  # <<< fa-tune, stage 0 <<<\n"
    assert yaml.safe_load(merged(text, make()))["note"] == yaml.safe_load(text)["note"]
    with pytest.raises(DocumentError, match="something else"):
        merged("pipeline: 'p\n\n# >>> fa-tune, stage 0 >>>\n# <<< fa-tune, stage 0 <<<\n\n  '", make())


def test_the_native_policy_is_not_merged(make: Make) -> None:
    with pytest.raises(NothingQualifiesError):
        merged(TI2V, make(steps="0-39"))


def test_without_libyaml_it_is_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {name: merged(text, make(), 1) for name, text in FILES.items()}
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert {name: merged(text, make(), 1) for name, text in FILES.items()} == expected
