"""What a user can set, where it may come from, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fa_tuner import settings as settings_module
from fa_tuner.domain.errors import ConflictError, DocumentError, FaTuneError, NotFoundError, UsageError
from fa_tuner.domain.measurement import PRESETS
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.settings import (
    RunSettings,
    StoreSettings,
    asked_for,
    load,
    load_run_settings,
    model_identity,
    parse_duration,
    sources,
)

StudyFile = Callable[..., str]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of whoever runs the tests, and an empty folder to run in."""
    for name in [name for name in os.environ if name.upper().startswith("FA_TUNE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def study_file(tmp_path: Path) -> StudyFile:
    """Write `elsewhere/study.yaml` and give its path."""

    def write(text: str) -> str:
        path = tmp_path / "elsewhere" / "study.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def refusal(kind: type[FaTuneError] = UsageError, **flags: Any) -> str:
    with pytest.raises(kind) as caught:
        load_run_settings(flags)
    return str(caught.value)


def run(**flags: Any) -> RunSettings:
    return load_run_settings({"model": "a/b", "prompts": ["a cat"], **flags})


# --- where a value comes from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "default", "in_file", "in_env", "env_text", "flag"),
    [
        ("steps", 40, 10, 20, "20", 30),
        ("min_psnr", None, 31.5, 32.5, "32.5", 33.5),
        ("sampler", "rectangle", "random", "nsga2", "nsga2", "brute-force"),
        ("prompts", [], ["file"], ["env", "too"], '["env", "too"]', ["flag"]),
        ("seeds", [0], [1, 2], [3], "[3]", [4, 5]),
        ("engine_args", {}, {"a": "file"}, {"a": "env"}, '{"a": "env"}', {"a": "flag"}),
    ],
)
def test_flag_before_environment_before_study_file_before_default(
    name: str, default: Any, in_file: Any, in_env: Any, env_text: str, flag: Any,
    study_file: StudyFile, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def value_and_source(flags: dict[str, Any]) -> tuple[Any, str]:
        found = load_run_settings(flags)
        return getattr(found, name), sources(flags, found)[name]

    assert value_and_source({}) == (default, "default")
    named = {"study_file": study_file(f"{name}: {json.dumps(in_file)}\n")}
    assert value_and_source(named) == (in_file, "study file")
    monkeypatch.setenv(f"FA_TUNE_{name.upper()}", env_text)
    assert value_and_source(named) == (in_env, "environment")
    assert value_and_source({}) == (in_env, "environment")
    assert value_and_source({**named, name: flag}) == (flag, "flag")
    monkeypatch.delenv(f"FA_TUNE_{name.upper()}")
    assert value_and_source({**named, name: flag}) == (flag, "flag")


def test_mappings_are_not_replaced_but_laid_over_each_other(
    study_file: StudyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"study_file": study_file("engine_args: {noise: spread=0.1, latency: measured}\n")}
    monkeypatch.setenv("FA_TUNE_ENGINE_ARGS", '{"latency": "projected"}')
    assert load_run_settings(named).engine_args == {"noise": "spread=0.1", "latency": "projected"}


def test_the_study_file_may_be_named_by_the_environment(study_file: StudyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA_TUNE_STUDY_FILE", study_file("steps: 7\n"))
    found = load_run_settings({})
    assert found.steps == 7
    assert (sources({}, found)["steps"], sources({}, found)["study_file"]) == ("study file", "environment")
    monkeypatch.setenv("FA_TUNE_STUDY_FILE", "")
    assert load_run_settings({}).steps == 40


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA_TUNE_STEPS", "")
    monkeypatch.setenv("FA_TUNE_PROMPTS", "")
    assert (load_run_settings({}).steps, load_run_settings({}).prompts) == (40, [])


def test_variables_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "99")
    monkeypatch.setenv("FA_TUNE_API_KEYS", "x")
    assert load_run_settings({}).steps == 40


@pytest.mark.parametrize("text", ["not json", "[1,", "{", "['single']"])
@pytest.mark.parametrize("name", ["PROMPTS", "SEEDS", "ENGINE_ARGS"])
def test_a_list_that_is_no_json(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"FA_TUNE_{name}", text)
    said = refusal()
    assert name.lower() in said and "lists and maps are written as JSON" in said


def test_json_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA_TUNE_PROMPTS", '{"a": 1}')
    assert "setting 'prompts' (flag, FA_TUNE_PROMPTS or study file)" in refusal()


@pytest.mark.parametrize(
    ("flags", "name"),
    [({"steps": "many"}, "steps"), ({"trials": 0}, "trials"), ({"repeats": 101}, "repeats"),
     ({"seeds": ["x"]}, "seeds.0"), ({"sampler_seed": -1}, "sampler_seed"), ({"quality": "best"}, "quality"),
     ({"aggregate": "max"}, "aggregate"), ({"aggregate": "p0"}, "aggregate"), ({"aggregate": "p51"}, "aggregate"),
     ({"aggregate": "p5.5"}, "aggregate"), ({"boundary_ratio": float("nan")}, "boundary_ratio"),
     ({"no_such": 1}, "no_such"), ({"study": "x" * 201}, "study")],
    ids=str,
)  # fmt: skip
def test_a_value_that_cannot_be_taken_is_named(flags: dict[str, Any], name: str) -> None:
    said = refusal(**flags)
    assert f"setting {name!r}" in said and "given was" in said and len(said) < 400


# --- study files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["stepps", "study_file", "7"])
def test_an_unknown_key(study_file: StudyFile, key: str) -> None:
    said = refusal(DocumentError, study_file=study_file(f"steps: 4\n{key}: 1\n"))
    assert "unknown key" in said and key in said and "fa-tune config" in said


def test_unknown_keys_of_two_kinds(study_file: StudyFile) -> None:
    assert "unknown key 7" in refusal(DocumentError, study_file=study_file("zebra: 1\n7: 2\n"))


def test_a_study_file_that_is_not_there() -> None:
    assert "does not exist" in refusal(NotFoundError, study_file="no/such.yaml")
    assert "is not a file" in refusal(DocumentError, study_file="/")


@pytest.mark.parametrize("text", ["- 1\n", "", "{", "steps: 1\nsteps: 2\n", "steps: .nan\n", "prompts: &a [*a]\n"])
def test_a_study_file_that_is_none(study_file: StudyFile, text: str) -> None:
    assert "study.yaml" in refusal(DocumentError, study_file=study_file(text))


def test_a_value_of_the_wrong_kind_in_a_study_file(study_file: StudyFile) -> None:
    assert "setting 'steps'" in refusal(study_file=study_file("steps: [1]\n"))


def test_paths_are_taken_from_beside_the_study_file(study_file: StudyFile, tmp_path: Path) -> None:
    named = study_file("model: model\nprompts_file: prompts.txt\nimage: p.png\ndevice_profile: mine.yaml\n")
    folder = tmp_path / "elsewhere"
    (folder / "model").mkdir()
    (folder / "prompts.txt").write_text("a cat\n")
    Image.new("RGB", (4, 4)).save(folder / "p.png")
    (folder / "mine.yaml").write_text("")
    found = load_run_settings({"study_file": named})
    assert found.model == str(folder / "model") and found.device_profile == str(folder / "mine.yaml")
    assert found.prompts_file == folder / "prompts.txt" and found.image == folder / "p.png"
    assert found.workload().prompts == ("a cat",) and found.workload().task == "i2v"


def test_names_stay_names_and_flags_are_taken_from_here(study_file: StudyFile, tmp_path: Path) -> None:
    named = study_file("model: Wan-AI/Wan2.2\ndevice_profile: ascend-pr2640\nprompts_file: only-here.txt\n")
    found = load_run_settings({"study_file": named})
    assert (found.model, found.device_profile) == ("Wan-AI/Wan2.2", "ascend-pr2640")
    assert found.prompts_file == Path("only-here.txt")
    (tmp_path / "elsewhere" / "flag").mkdir()
    assert load_run_settings({"study_file": named, "model": "flag"}).model == "flag"


@pytest.mark.parametrize("value", ["x" * 10_000, "~nobody-of-that-name/x", '"nul\\0"'], ids=lambda v: v[:8])
def test_paths_that_no_file_system_takes(study_file: StudyFile, value: str) -> None:
    found = load_run_settings({"study_file": study_file(f"model: {value}\nprompts: [a cat]\nprompts_file: {value}\n")})
    assert model_identity(found.model) == found.model
    with pytest.raises((NotFoundError, DocumentError), match="prompts file"):
        found.workload()


# --- durations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2h", 7200), ("1h1m1s", 3661), (" 5m ", 300), ("0h1s", 1)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "0s", "0h0m", "90", "-5m", "1.5h", "5 m", "m", "30m1h", "1h 30m", "1d", "٣m", "9" * 5000 + "s", "1e3s",
     "5M", "inf"],
    ids=lambda text: ascii(text[:8]),
)  # fmt: skip
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is no time; write 90s, 30m or 1h30m") as caught:
        parse_duration(text)
    assert len(str(caught.value)) < 200


def test_a_budget_reaches_the_request() -> None:
    timed = run(budget="10m").request()
    assert (timed.budget_seconds, timed.trials) == (600.0, None)
    both = run(budget="10m", trials=5).request()
    assert (both.budget_seconds, both.trials) == (600.0, 5)
    assert (run().request().budget_seconds, run().request().trials) == (None, None)
    with pytest.raises(UsageError, match="budget"):
        run(budget="soon").request()


# --- prompts --------------------------------------------------------------------------------------------------------


def prompts_from(content: bytes, tmp_path: Path, **flags: Any) -> RunSettings:
    (tmp_path / "prompts.txt").write_bytes(content)
    return load_run_settings({"model": "a/b", "prompts_file": tmp_path / "prompts.txt", **flags})


def test_one_prompt_a_line_without_comments_and_blanks(tmp_path: Path) -> None:
    content = "# about cats\n\n  a cat  \r\n\t\na dog # not a comment\nä bird\n".encode()
    assert prompts_from(content, tmp_path, holdout_prompts=["a fish"]).workload().prompts == (
        "a cat", "a dog # not a comment", "ä bird"
    )  # fmt: skip


def test_prompts_of_flag_and_file_are_joined(tmp_path: Path) -> None:
    assert prompts_from(b"a cat\n", tmp_path, prompts=["a dog"]).workload().prompts == ("a dog", "a cat")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# nothing\n#\n", b"   "])
def test_a_prompts_file_without_a_prompt(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DocumentError, match=r"prompts\.txt holds no prompt"):
        prompts_from(content, tmp_path).workload()


def test_a_prompts_file_that_is_not_utf_8(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"prompts\.txt cannot be read as UTF-8 text"):
        prompts_from("ein Bär".encode("latin-1"), tmp_path).workload()


def test_a_prompts_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.txt does not exist"):
        run(prompts_file=tmp_path / "none.txt").workload()
    with pytest.raises(DocumentError, match="cannot be read"):
        run(prompts_file=tmp_path).workload()


def test_a_prompts_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "MAX_PROMPTS_BYTES", 10)
    with pytest.raises(DocumentError, match="larger than 10 bytes"):
        prompts_from(b"a cat walks\n", tmp_path).workload()


@pytest.mark.parametrize(
    ("prompts", "held_out", "expected"),
    [
        ("ab", "", ("ab", "")), ("abc", "", ("ab", "c")), ("abcdef", "", ("abcd", "ef")),
        ("abcdefg", "", ("abcde", "fg")),
        ("abc", "x", ("abc", "x")), ("a", "xy", ("a", "xy")),
    ],
)  # fmt: skip
def test_a_third_is_held_out_unless_others_are_given(prompts: str, held_out: str, expected: tuple[str, str]) -> None:
    work = run(prompts=list(prompts), holdout_prompts=list(held_out)).workload()
    assert ("".join(work.prompts), "".join(work.holdout)) == expected


def test_no_model_and_no_prompt() -> None:
    with pytest.raises(UsageError, match="give --model PATH_OR_ID"):
        load_run_settings({"prompts": ["a cat"]}).workload()
    with pytest.raises(UsageError, match="give --prompt or --prompts-file"):
        load_run_settings({"model": "a/b"}).workload()


def test_everything_of_a_workload(tmp_path: Path) -> None:
    work = run(
        revision="v1", seeds=[3, 4], height=64, width=48, frames=5, steps=3, guidance=2.0, guidance_2=3.0,
        negative_prompt="blurred", flow_shift=5.0, boundary_ratio=0.9,
    ).workload()  # fmt: skip
    assert (work.model, work.revision, work.task, work.seeds) == ("a/b", "v1", "t2v", (3, 4))
    assert (work.height, work.width, work.frames, work.steps) == (64, 48, 5, 3)
    assert (work.guidance, work.guidance_2, work.flow_shift, work.boundary_ratio) == (2.0, 3.0, 5.0, 0.9)
    assert work.negative_prompt == "blurred" and work.image is None


def test_a_picture_makes_it_image_to_video(tmp_path: Path) -> None:
    from fa_tuner.engines.pictures import picture_digest

    path = tmp_path / "p.png"
    Image.new("RGB", (4, 4)).save(path)
    found = run(image=path)
    assert found.workload().task == "i2v" and found.workload().image == picture_digest(path)
    assert found.request().engine_options == {"image": str(path)}
    with pytest.raises(NotFoundError, match="does not exist"):
        run(image=tmp_path / "none.png").workload()


def test_a_local_model_goes_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here" / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("model", "./model", "../here/model", "~/here/model", str(tmp_path / "link")):
        assert model_identity(name) == str(tmp_path / "here" / "model")
    assert run(model="model").workload().model == str(tmp_path / "here" / "model")
    for name in ("Wan-AI/Wan2.2", "no-such", "x" * 10_000, "~nobody-of-that-name/m"):
        assert model_identity(name) == name


# --- what is asked for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 101, -1, 100.001])
def test_a_psnr_that_none_can_have(value: float) -> None:
    assert "between 0 and 100 dB" in refusal(min_psnr=value)


@pytest.mark.parametrize("text", ["nan", "inf", "101", "-1"])
def test_nor_from_the_environment(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FA_TUNE_MIN_PSNR", text)
    assert "between 0 and 100 dB" in refusal()


@pytest.mark.parametrize("value", [0, 100, 30.5])
def test_the_bounds_themselves_are_taken(value: float) -> None:
    assert run(min_psnr=value).requirement().min_psnr == value


def test_requirements() -> None:
    assert str(run().requirement()) == "psnr_db>=30 (worst prompt)"
    assert str(run(aggregate="mean").requirement()) == "psnr_db>=30 (mean prompt)"
    assert str(run(aggregate="p10").requirement()) == "psnr_db>=30 (p10 of prompts)"
    assert run(quality="strict").requirement().constraints == PRESETS["strict"]
    mixed = run(quality="strict", min_psnr=35, constraints=["mae<=2", "ssim>=0.9"]).requirement()
    assert {str(c) for c in mixed.constraints} == {
        "psnr_db>=35", "mae<=2", "cosine_similarity>=0.995", "relative_l2<=0.08", "ssim>=0.9"
    }  # fmt: skip
    assert str(run(constraints=["ssim>=0.9"]).requirement()) == "psnr_db>=30, ssim>=0.9 (worst prompt)"
    assert asked_for(None, None, [], None) is None
    assert str(asked_for(None, None, [], "mean")) == " (mean prompt)"
    assert str(asked_for(None, None, [], "p25")) == " (p25 of prompts)"
    for unknown in ("", "p51", "median"):
        with pytest.raises(UsageError, match="choose worst, mean, or p1 to p50"):
            asked_for(31.0, None, [], unknown)
    with pytest.raises(UsageError, match="points the wrong way"):
        run(constraints=["mae>=2"]).requirement()


# --- the request ----------------------------------------------------------------------------------------------------


def test_the_name_of_a_study_is_stable() -> None:
    name = run().request().study
    assert name == run().request().study == run(min_psnr=30).request().study
    assert name.startswith("b-fp8-")


@pytest.mark.parametrize(
    "changes",
    [{"min_psnr": 31}, {"constraints": ["mae<=2"]}, {"aggregate": "mean"}, {"aggregate": "p10"}, {"steps": 39},
     {"prompts": ["a dog"]},
     {"sampler": "random"}, {"sampler_seed": 1}, {"dtype": "mxfp8"}, {"device_profile": "ascend-pr2640"},
     {"seeds": [1]}],
    ids=str,
)  # fmt: skip
def test_another_question_is_another_study(changes: dict[str, Any]) -> None:
    assert run(**changes).request().study != run().request().study


@pytest.mark.parametrize("changes", [{"trials": 99}, {"budget": "5m"}, {"tries": ["0/"]}, {"device": "cpu"}], ids=str)
def test_going_on_for_longer_is_the_same_study(changes: dict[str, Any]) -> None:
    assert run(**changes).request().study == run().request().study


def test_a_name_that_is_given_is_taken() -> None:
    assert run(study="mine").request().study == "mine"


def test_odd_model_names_give_plain_study_names(tmp_path: Path) -> None:
    (tmp_path / "here" / "my model (ü)").mkdir()
    name = run(model="my model (ü)").request().study
    assert name.isascii() and " " not in name and name.startswith("my-model-")
    assert len(run(model="o/" + "x" * 90).request().study) < 100


def test_options_of_the_engine() -> None:
    request = run(engine_args={"torch_dtype": "bfloat16"}, device="cpu", repeats=5, tries=["0/1"]).request()
    assert request.engine_options == {"torch_dtype": "bfloat16", "device": "cpu"}
    assert (request.repeats, request.tries, request.engine, request.dtypes) == (5, ("0/1",), "diffusers", ("fp8",))


# --- replay ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def landscape(tmp_path: Path) -> Path:
    path = tmp_path / "here" / "wan.json.gz"
    synthetic_landscape(3, 2, prompts=2, holdout=1).write(path)
    return path


def test_replay_takes_the_recorded_workload(landscape: Path) -> None:
    recorded = replace(synthetic_landscape(3, 2, prompts=2, holdout=1).workload, model=str(landscape))
    found = load_run_settings({"engine": "replay", "model": str(landscape)})
    assert found.workload() == recorded
    assert found.request().study.startswith("wan-fp8-")


def test_a_landscape_goes_by_its_absolute_path_too(landscape: Path) -> None:
    """Else `fa-tune recommend --model` could not find it."""
    found = load_run_settings({"engine": "replay", "model": "wan.json.gz"})
    assert found.workload().model == str(landscape) == model_identity("wan.json.gz")


def test_noise_makes_another_workload(landscape: Path) -> None:
    quiet, noisy = (
        load_run_settings({"engine": "replay", "model": str(landscape), "engine_args": args}).request()
        for args in ({}, {"noise": "spread=0.1"})
    )
    assert quiet.study != noisy.study and noisy.workload.options == {"noise": "spread=0.1"}


def test_replay_with_prompts_takes_these(landscape: Path) -> None:
    found = load_run_settings({"engine": "replay", "model": str(landscape), "prompts": ["a cat"], "steps": 3})
    assert found.workload().prompts == ("a cat",)


def test_what_is_given_beside_a_landscape_is_not_dropped(landscape: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine refuses what was not recorded; to take the recorded value silently would hide a mistake."""
    from fa_tuner.engines.replay import ReplayEngine

    replay = {"engine": "replay", "model": str(landscape)}
    for given, said in (
        ({"steps": 9}, "steps 3, not 9"),
        ({"seeds": [5]}, "seed 5"),
        ({"holdout_prompts": ["x"]}, "'x'"),
    ):
        with pytest.raises(ConflictError, match=said):
            ReplayEngine.open(load_run_settings({**replay, **given}).workload(), {})
    monkeypatch.setenv("FA_TUNE_HEIGHT", "64")
    assert load_run_settings(replay).workload().height == 64


def test_an_engine_that_is_not_installed() -> None:
    with pytest.raises(UsageError, match="engine 'other' is unknown; installed are diffusers, replay"):
        run(engine="other").workload()


def test_replay_of_nothing() -> None:
    with pytest.raises(NotFoundError):
        load_run_settings({"engine": "replay", "model": "none.json"}).workload()
    with pytest.raises(UsageError, match="which model"):
        load_run_settings({"engine": "replay"}).workload()


# --- the store ------------------------------------------------------------------------------------------------------


def test_where_results_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load(StoreSettings, {"storage": "sqlite:///x.db"}).url == "sqlite:///x.db"
    monkeypatch.setenv("FA_TUNE_STORAGE", "sqlite:///y.db")
    monkeypatch.setenv("FA_TUNE_ARTIFACTS", "/frames")
    found = load(StoreSettings, {})
    assert (found.url, found.artifact_root) == ("sqlite:///y.db", "/frames")
    assert load_run_settings({}).url == "sqlite:///y.db"
    monkeypatch.setenv("FA_TUNE_ARTIFACT_QUOTA_MB", "-1")
    with pytest.raises(UsageError, match="artifact_quota_mb"):
        load(StoreSettings, {})


def test_a_study_file_may_name_the_store(study_file: StudyFile) -> None:
    assert load_run_settings({"study_file": study_file("storage: sqlite:///z.db\n")}).url == "sqlite:///z.db"
