"""Exports and deploy files as vLLM-Omni 0.30 itself reads them."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fa_tuner.domain.errors import DocumentError, EngineError, NotQuantizedError, UsageError
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.study import Recommendation
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.engines.vllm_omni import configuration, loader
from fa_tuner.engines.vllm_omni.loader import read_flags, read_stage
from fa_tuner.export import Target, exporter, merge_into, target_of
from fa_tuner.export.validate import validate
from fa_tuner.recommend import question
from fa_tuner.recommend.question import recommend_from
from tests.export.conftest import build
from tests.export.test_merge import TI2V
from tests.support.command import FaTune

from .conftest import DEMO

Read = Callable[..., dict[str, Any]]
Loaded = Callable[..., Any]
STEPS, LAYERS = 40, 30
POLICIES = [
    ("", ""), ("0", ""), ("", "0"), ("0", "0"), ("39", "29"), ("0-38", ""), ("", "1-29"), ("0,1,38,39", "0-2"),
    ("0-9,20,25-30", "0,1,4-8"), ("0,2,4,6", "1,3,5"), ("10-29", "12"), ("1", "28,29"),
]  # fmt: skip
KEYS = {
    "diffusion_kv_cache_dtype": "fp8", "diffusion_kv_cache_skip_steps": "0-2", "diffusion_kv_cache_skip_layers": "1",
}  # fmt: skip
POLICY = {"dtype": "fp8", "skip_steps": [0, 1, 2], "skip_layers": [1]}
CLASS = "model_class_name: WanImageToVideoPipeline"
NOTHING = {"dtype": None, "skip_steps": [], "skip_layers": []}
# torch deprecates what vllm uses while it is imported; vLLM-Omni warns where an old name is used
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def imported() -> None:
    """vLLM-Omni in this process. Its command line imports its HTTP server, which needs audio libraries that are not
    installed for these tests; the server is not started, so a module of two names does."""
    if find_spec("torchaudio") is None:
        server: Any = types.ModuleType("vllm_omni.entrypoints.openai.api_server")
        server.omni_run_server = server.run_omni_api_server_worker_proc = None
        sys.modules[server.__name__] = server
    import vllm_omni.entrypoints.cli.serve  # noqa: F401


@pytest.fixture
def read(imported: None, tmp_path: Path) -> Read:
    """`read(text, flags=..., model=..., legacy=True)` is the child's answer, without a child."""

    def do(
        text: str | None = None, flags: Sequence[str] = (), model: Path = DEMO, stage_id: int = 0, legacy: bool = False
    ) -> dict[str, Any]:
        arguments = {}
        if text is not None:
            file = tmp_path / "deploy.yaml"
            file.write_text(text)
            arguments["stage_configs_path" if legacy else "deploy_config"] = str(file)
        return configuration.answer(str(model), stage_id, arguments, flags)

    return do


@pytest.fixture
def loaded(imported: None, tmp_path: Path) -> Loaded:
    """`loaded(text, model=...)` is the whole diffusion configuration that vLLM-Omni makes of a deploy file."""

    def do(text: str, model: Path = DEMO) -> Any:
        file = tmp_path / "deploy.yaml"
        file.write_text(text)
        return resolved(model, {"deploy_config": str(file)}).diffusion_config

    return do


@pytest.fixture
def in_process(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """`validate` without a child."""

    def run(request: str, log: Path, timeout: float) -> int:
        asked = json.loads(request)
        answer = Path(asked.pop("answer"))
        answer.write_text(json.dumps(configuration.answer(**asked)))
        return 0

    monkeypatch.setattr(loader, "_run", run)


def of_the_demo(recommendation: Recommendation) -> Recommendation:
    spec = recommendation.study.spec
    spec = replace(spec, workload=replace(spec.workload, model=str(DEMO)))
    return replace(recommendation, study=replace(recommendation.study, spec=spec))


def model_of(folder: Path, name: str) -> Path:
    """The demo model under another class name."""
    model = folder / "model"
    shutil.copytree(DEMO, model, ignore=shutil.ignore_patterns("*.safetensors"))
    index = json.loads((DEMO / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    return model


def entry(keys: Mapping[str, Any] = KEYS, stage_id: int = 0) -> str:
    """A stage of a YAML in flow style, as in `[{stage_id: 0, ...}]`."""
    return json.dumps([{"stage_id": stage_id, **keys}])


def said(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: answer[key] for key in POLICY}


@pytest.mark.parametrize(("steps", "layers"), POLICIES)
@pytest.mark.parametrize("name", ["deploy", "flags"])
def test_every_policy_arrives(in_process: None, name: str, steps: str, layers: str) -> None:
    for dtype in ("fp8", "mxfp8", "mxfp4"):
        recommendation = of_the_demo(build(steps, layers, dtype))
        found = validate(exporter(name).export(recommendation), Target(name), recommendation, 0)
        assert (found.version, found.dtype) == ("0.30.0", dtype)
        assert found.skip_steps == set(SkipSelector.parse(steps, STEPS))
        assert found.skip_layers == set(SkipSelector.parse(layers, LAYERS))


READ = {
    "below platforms.npu.stages, with a stage to match": "stages: [{stage_id: 0}]\n"
    f"platforms: {{npu: {{stages: {entry()}}}}}",
    "flat on the stage": f"stages: {entry()}",
    "in engine_args": f'stages: [{{stage_id: 0, engine_args: {json.dumps(KEYS)}}}]',
    "in engine_extras": f'stages: [{{stage_id: 0, engine_extras: {json.dumps(KEYS)}}}]',
    "in engine_args of the NPU entry": "stages: [{stage_id: 0}]\n"
    f"platforms: {{npu: {{stages: [{{stage_id: 0, engine_args: {json.dumps(KEYS)}}}]}}}}",
    "the NPU entry beats the stage": f"stages: {entry(KEYS | {'diffusion_kv_cache_skip_steps': '7'})}\n"
    f"platforms: {{npu: {{stages: {entry()}}}}}",
    "selectors under their old names": "stages: [{stage_id: 0, diffusion_kv_cache_dtype: fp8, "
    'kv_cache_skip_steps: "0-2", kv_cache_skip_layers: "1"}]',
    "lists of whole numbers": "stages: "
    + entry({"diffusion_kv_cache_dtype": "fp8", "diffusion_kv_cache_skip_steps": [0, 1, 2],
             "diffusion_kv_cache_skip_layers": [1]}),
}  # fmt: skip


@pytest.mark.parametrize("text", READ.values(), ids=READ.keys())
def test_what_is_read(read: Read, text: str) -> None:
    assert said(read(text)) == POLICY


IGNORED = {
    "at the top level": f"stages: [{{stage_id: 0}}]\n{json.dumps(KEYS)[1:-1].replace(', ', chr(10))}",
    "an NPU entry without a stage to match": f"platforms: {{npu: {{stages: {entry()}}}}}",
    "another platform's entry": f"stages: [{{stage_id: 0}}]\nplatforms: {{cuda: {{stages: {entry()}}}}}",
    "flat keys beside engine_args in the NPU entry": "stages: [{stage_id: 0}]\n"
    f"platforms: {{npu: {{stages: {entry(KEYS | {'engine_args': {}})}}}}}",
    "another stage's": f"stages: {entry(stage_id=1)}",
    "no stages at all": "async_chunk: false",
}


@pytest.mark.parametrize("text", IGNORED.values(), ids=IGNORED.keys())
def test_what_is_ignored_is_caught(read: Read, in_process: None, text: str) -> None:
    assert said(read(text)) == NOTHING
    with pytest.raises(NotQuantizedError, match=r"vllm-omni 0\.30\.0 reads diffusion_kv_cache_dtype as None, which"):
        validate(text, Target("deploy"), of_the_demo(build()), 0)


REFUSED = {
    "a misspelt key": (f"stages: {entry()}".replace("skip_steps", "skip_stpes"), "'diffusion_kv_cache_skip_stpes'"),
    "an unquoted index": (f"stages: {entry(KEYS | {'diffusion_kv_cache_skip_steps': 0})}", "valid string"),
    "a range that runs backwards": (f"stages: {entry(KEYS | {'diffusion_kv_cache_skip_steps': '5-2'})}", "'5-2'"),
    "the dtype under its old name": (f"stages: {entry({'kv_cache_dtype': 'fp8'})}", "kv_cache_dtype"),
    "both names": (f"stages: {entry(KEYS | {'kv_cache_skip_steps': '7'})}", "kv_cache_skip_steps"),
    "the legacy schema": ("stage_args: [{stage_id: 0}]", "removed `stage_args` schema"),
    "no YAML": ("stages: [", "while parsing"),
    "stages that are no list": ("stages: 3", "not iterable"),
    "an unknown pipeline": ("pipeline: nobodys\nstages: []", "'nobodys'"),
    "a base that is not there": ("base_config: missing.yaml", "missing.yaml"),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(read: Read, in_process: None, text: str, reason: str) -> None:
    assert reason in read(text)["refused"]
    with pytest.raises(DocumentError, match=re.escape(reason)):
        validate(text, Target("deploy"), of_the_demo(build()), 0)


def test_no_bound_is_checked_on_loading(read: Read) -> None:
    keys = KEYS | {"diffusion_kv_cache_skip_layers": "999", "diffusion_kv_cache_dtype": "nvfp4"}
    assert said(read(f"stages: {entry(keys)}")) == POLICY | {"dtype": "nvfp4", "skip_layers": [999]}


def test_the_command_line_beats_the_file(read: Read) -> None:
    flags = ["--diffusion-kv-cache-skip-steps", "5"]
    assert said(read(f"stages: {entry()}", flags)) == POLICY | {"skip_steps": [5]}
    assert read(None, ["--no-such-flag"])["refused"] == "unrecognized arguments: --no-such-flag"
    assert "'5-2'" in read(None, ["--diffusion-kv-cache-skip-steps", "5-2"])["refused"]


def test_a_base_is_merged_by_stage(read: Read, loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        f"stages: {entry(KEYS | {'diffusion_kv_cache_skip_steps': '7', 'flow_shift': 8})}"
    )
    text = exporter("deploy").export(build("0-2", "1"))
    text += "base_config: base.yaml\n"
    assert said(read(text)) == POLICY
    assert loaded(text).flow_shift == 8


def test_other_settings_count_beside_the_policy(read: Read, loaded: Loaded) -> None:
    text = (
        "dtype: float32\nenforce_eager: true\n"
        "stages: [{stage_id: 0, devices: '0,1', ulysses_degree: 2, flow_shift: 7.0, cache_backend: tea_cache, "
        "cache_config: {rel_l1_thresh: 0.3}, engine_args: {vae_use_tiling: true}, worker_extension_cls: a.b}]\n"
        f"platforms: {{npu: {{stages: {entry(KEYS | {'boundary_ratio': 0.9, 'flow_shift': 5.0})}}}}}"
    )
    assert said(read(text)) == POLICY
    expected = {"flow_shift": 5.0, "cache_backend": "tea_cache", "vae_use_tiling": True, "boundary_ratio": 0.9}
    config = loaded(text)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("name", ["WanImageToVideoPipeline", "WanVACEPipeline"])
def test_a_deploy_file_is_ignored_for_other_pipelines(read: Read, loaded: Loaded, tmp_path: Path, name: str) -> None:
    model = model_of(tmp_path, name)
    recommendation = build("0-2", "1", environment={"pipeline": name})
    text = exporter("deploy").export(build("0-2", "1"))  # that of WanPipeline
    assert said(read(text, model=model)) == NOTHING
    assert differing(loaded(text, model), resolved(model, {}).diffusion_config) == set()
    flags = exporter("flags").read_back(exporter("flags").export(recommendation), 0)
    assert said(read(None, [x for k, v in flags.items() for x in (f"--{k.replace('_', '-')}", v)], model)) == POLICY
    mine = f"pipeline: wan2_2_ti2v\nstages: [{{stage_id: 0, model_class_name: {name}}}]\n"
    merged = merge_into(mine, recommendation, 0, "mine.yaml")
    assert said(read(merged, model=model)) == POLICY
    assert loaded(merged, model).model_class_name == name


def test_image_to_video_reads_its_export(read: Read, loaded: Loaded, tmp_path: Path) -> None:
    model = model_of(tmp_path, "WanImageToVideoPipeline")
    recommendation = build("0-2", "1", environment={"pipeline": "Wan22I2VPipeline"})
    exported = exporter("deploy").export(recommendation)
    plain = build("0-2", "1")
    base = tmp_path / "base.yaml"
    base.write_text("async_chunk: false\nstages: [{stage_id: 0, vae_use_tiling: true}]\n")
    for text, more in (
        (exported, {}),
        (merge_into("stages: [{stage_id: 0, flow_shift: 7.0}]\n", recommendation, 0, "f"), {"flow_shift": 7.0}),
        (merge_into(exporter("deploy").export(plain), recommendation, 0, "f"), {}),
        (f"{exported}base_config: base.yaml\n", {"vae_use_tiling": True}),
    ):
        assert said(read(text, model=model)) == POLICY
        expected = {"model_class_name": "WanImageToVideoPipeline", **more}
        config = loaded(text, model)
        assert {name: getattr(config, name) for name in expected} == expected
    with_base = "base_config: base.yaml\nstages: [{stage_id: 0}]\n"
    text = merge_into(with_base, recommendation, 0, "f")
    assert "unless its base_config names a pipeline" in text.replace("\n#   ", " ")
    assert said(read(text, model=model)) == NOTHING
    base.write_text(f"pipeline: wan2_2_ti2v\n{base.read_text().replace('stage_id: 0', 'stage_id: 0, ' + CLASS)}")
    assert said(read(text, model=model)) == POLICY


RESOLVED = (  # what the named pipeline changes, and nothing else of the configuration
    ({}, {"model_arch", "extras"}, {"model_stage", "runtime_cfg"}),
    ({"default_sampling_params": '{"0": {"num_inference_steps": 7}}'}, {"model_arch", "extras"},
     {"model_stage", "runtime_cfg", "default_sampling_params"}),
    ({"ulysses_degree": 2, "vae_use_tiling": True, "flow_shift": 3.0, "dtype": "float32"}, {"model_arch", "extras"},
     {"model_stage", "runtime_cfg"}),
)  # fmt: skip


@pytest.mark.parametrize(("given", "config", "metadata"), RESOLVED, ids=("nothing", "sampling", "more"))
def test_what_naming_a_pipeline_changes(
    imported: None, tmp_path: Path, given: dict[str, Any], config: set[str], metadata: set[str]
) -> None:
    """Placement, a name, and whether defaults of the command line count."""
    model = model_of(tmp_path, "WanImageToVideoPipeline")
    file = tmp_path / "deploy.yaml"
    file.write_text(f"pipeline: wan2_2_ti2v\nstages: [{{stage_id: 0, {CLASS}}}]\n")
    without, named = resolved(model, given), resolved(model, {**given, "deploy_config": str(file)})
    assert differing(without.diffusion_config, named.diffusion_config) == config
    assert differing(*map(extract_metadata, (without, named))) == metadata
    assert named.diffusion_config.model_class_name == "WanImageToVideoPipeline"


def resolved(model: Path, given: dict[str, Any]) -> Any:
    from vllm_omni.config.resolver import resolve_omni_config
    from vllm_omni.entrypoints.utils import prepare_stage_config_inputs

    inputs = prepare_stage_config_inputs(str(model), given, trust_remote_code=None)
    (stage,) = resolve_omni_config(
        inputs.model, trust_remote_code=None, deploy_config_path=inputs.deploy_config_path,
        cli_overrides=inputs.kwargs, stage_overrides=None, strategy_config_path=None,
    ).stage_configs  # fmt: skip
    return stage


def extract_metadata(stage: Any) -> Any:
    from vllm_omni.engine.stage_init_utils import extract_stage_metadata_from_omni_stage_config

    return extract_stage_metadata_from_omni_stage_config(stage)


def differing(one: Any, other: Any) -> set[str]:
    """Fields of two dataclasses; ports are drawn anew."""
    names = {field.name for field in fields(one)} - {"master_port"}
    return {name for name in names if repr(getattr(one, name)) != repr(getattr(other, name))}


def test_merged_into_the_file_that_vllm_omni_ships(read: Read, loaded: Loaded) -> None:
    import vllm_omni

    shipped = (Path(vllm_omni.__file__).parent / "deploy" / "wan2_2_ti2v.yaml").read_text()
    merged = merge_into(shipped, build("0-2", "1"), 0, "wan2_2_ti2v.yaml")
    assert said(read(merged)) == POLICY
    assert loaded(merged).vae_use_tiling is True
    assert said(read(shipped)) == NOTHING


def test_an_invalid_merge_is_caught(in_process: None) -> None:
    recommendation = of_the_demo(build())
    text = merge_into(TI2V, recommendation, 0, "deploy.yaml")
    with pytest.raises(DocumentError, match=r"Unknown diffusion config field\(s\) for stage 0: 'window'"):
        validate(text, target_of(text, "deploy.yaml"), recommendation, 0)


def test_stage_args_are_refused(read: Read, in_process: None) -> None:
    recommendation = of_the_demo(build())
    text = exporter("stage-args").export(recommendation)
    with pytest.raises(UsageError, match=r"0\.30\.0.* does not read the format stage-args; use --format deploy"):
        validate(text, Target("stage-args"), recommendation, 0)
    assert "no longer supported" in read(text, legacy=True)["refused"]


def test_stages_and_models_that_there_are_not(in_process: None) -> None:
    recommendation = of_the_demo(build())
    with pytest.raises(DocumentError, match="there is no stage 2, but 0"):
        validate(exporter("flags").export(recommendation), Target("flags"), recommendation, 2)
    with pytest.raises(EngineError, match="would start for nobody/nothing: Model 'nobody/nothing' did"):
        read_flags("nobody/nothing", ["--diffusion-kv-cache-dtype", "fp8"])


@pytest.mark.parametrize("name", ["cpu", "cuda", None])
def test_the_npu_entry_counts_wherever_it_is_read(
    read: Read, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_omni import platforms

    other = configuration._NamedNpu(platforms.current_omni_platform)
    monkeypatch.setattr(other, "device_name", name, raising=False)
    monkeypatch.setattr(platforms, "current_omni_platform", other, raising=False)
    text = exporter("deploy").export(build("0-2", "1"))
    assert said(read(text)) == POLICY
    assert platforms.current_omni_platform is other
    monkeypatch.setattr(configuration, "_named_npu", nullcontext)
    assert said(read(text)) == NOTHING


def test_on_an_npu_the_platform_is_left_alone(imported: None) -> None:
    from vllm_omni import platforms

    real = platforms.current_omni_platform
    assert real.device_name == "npu"
    with configuration._named_npu():
        assert platforms.current_omni_platform is real


@pytest.mark.timeout(600)
@pytest.mark.parametrize("plugins", [None, ""], ids=["emulated NPU", "no platform"])
def test_the_command(
    plugins: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, as users have it; without the platform plugin, its stand-in answers for the NPU."""
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    fa_tune = FaTune(tmp_path, capsys, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FA_TUNE_STORAGE", fa_tune.url)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    synthetic_landscape(6, 4, prompts=2, holdout=1, seed=3).write(tmp_path / "landscape.json")
    fa_tune("run", "--engine", "replay", "--model", "landscape.json", "--study", "s", "--trials", "4").succeeded()
    refused = fa_tune("export", "s", "--validate").refused(5, "cannot say what it would start for", "landscape.json")
    assert refused.out == ""
    monkeypatch.setattr(question, "recommend_from", lambda *asked: of_the_demo(recommend_from(*asked)))
    done = fa_tune("export", "s", "--validate", "-o", "deploy.yaml").succeeded()
    assert done.err.startswith("validated by vllm-omni 0.30.0: steps {") and done.err.endswith("written: deploy.yaml\n")
    found = read_stage(str(DEMO), tmp_path / "deploy.yaml")
    policy = fa_tune("export", "s", "--json").succeeded().document["policy"]
    assert str(SkipSelector.of(found.skip_steps)) == policy["skip_steps"]
    if find_spec("torchaudio") is None:
        fa_tune("export", "s", "--validate", "--format", "flags").refused(5, "cannot say", "'torchaudio'")
