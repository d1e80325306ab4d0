"""What is refused: with which exit code, with which words, and leaving what behind."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fa_tuner.domain.errors import EngineError
from fa_tuner.domain.measurement import METRICS, CaseQuality
from fa_tuner.domain.policy import NATIVE, SkipPolicy
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines import registry
from fa_tuner.engines.base import Generation
from fa_tuner.engines.landscape import Landscape, Table
from fa_tuner.engines.replay import ReplayEngine
from fa_tuner.engines.synthetic import synthetic_landscape
from tests.support.command import FaTune, Result, strict_json
from tests.support.tables import every_policy, noisy_landscape, tabulated

Run = Callable[..., Result]
PASSWORD = "hunter2secret"


def nothing_stored(fa_tune: FaTune) -> None:
    assert fa_tune("studies", "--json").succeeded().document == []


# --- 2: usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--try", "0,1x/2"), ("position 3",)),
        (("--try", "0,7/2"), ("7", "step")),
        (("--try", "0,1"), ('no "/"', "0,1")),
        (("--try", "0-999999999999/"), ("999999",)),
        (("--try", "0-5/"), ("--try", "native policy")),
        (("--try", "/0-3"), ("--try", "native policy")),
        (("--constraint", "psnr>=30"), ("psnr", "psnr_db")),
        (("--constraint", "psnr_db<=30"), ("wrong way",)),
        (("--constraint", "mae<=1e999"), ("finite",)),
        (("--constraint", "nonsense"), ("metric>=value",)),
        (("--engine", "warp"), ("'warp'", "diffusers", "replay")),
        (("--sampler", "guess"), ("'guess'", "brute-force")),
        (("--dtype", "int4"), ("int4", "fp8")),
        (("--min-psnr", "nan"), ("min_psnr",)),
        (("--min-psnr", "inf"), ("min_psnr",)),
        (("--min-psnr", "101"), ("min_psnr",)),
        (("--min-psnr", "high"), ("--min-psnr", "number")),
        (("--quality", "best"), ("best", "strict")),
        (("--aggregate", "median"), ("median", "p50")),
        (("--aggregate", "p51"), ("p51", "p50")),
        (("--budget", "soon"), ("soon", "1h30m")),
        (("--budget", "0s"), ("0s",)),
        (("--trials", "0"), ("trials",)),
        (("--repeats", "0"), ("repeats",)),
        (("--engine-arg", "noise"), ("key=value",)),
        (("--engine-arg", "speed=9"), ("speed",)),
        (("--engine-arg", "noise=spread=9"), ("spread",)),
        (("--seed", "-1"), ("seed",)),
        (("--study", ""), ("study",)),
        (("--nonsense",), ("--nonsense",)),
    ],
)
def test_bad_usage(fa_tune: FaTune, replay: Run, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused = replay(*arguments)
    if arguments == ("--study", ""):  # as if it had not been given
        refused.succeeded()
        return
    refused.refused(2, *words)
    nothing_stored(fa_tune)


def test_a_refusal_under_json_is_json(replay: Run) -> None:
    refused = replay("--json", "--try", "0,1x/2").refused(2)
    problem = strict_json(refused.err.splitlines()[-1])
    assert (problem["type"], problem["exit_code"]) == ("invalid-selector", 2)
    assert refused.out == ""


def test_run_needs_a_model(fa_tune: FaTune) -> None:
    fa_tune("run").refused(2, "--model")


def test_brute_force_past_its_limit(fa_tune: FaTune) -> None:
    synthetic_landscape(9, 6, prompts=1).write("wide.json")
    fa_tune("run", "--engine", "replay", "--model", "wide.json", "--sampler", "brute-force").refused(2, "2^15", "2^14")
    nothing_stored(fa_tune)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ("empty",)),
        (b"- model\n", ("top level",)),
        (b"model: [\n", ("line",)),
        (b"model: x\nmodel: y\n", ("twice", "line 2")),
        (b"modle: x\n", ("'modle'", "fa-tune config")),
        (b"study_file: other.yaml\n", ("study_file",)),
        (b"model: !!python/object/apply:os.system ['touch hacked']\n", ("tag", "not allowed")),
        (b"model: &a x\nstudy: *a\n", ("not allowed",)),
        (b"a: " + b"[" * 5000 + b"]" * 5000, ("levels",)),
        (b"model: \xff\xfe\n", ("UTF-8",)),
        (b"model: x\0y\n", ("NUL",)),
        (b"prompts: " + b"x" * (2 << 20), ("1 MiB",)),
        (b"trials: many\n", ("trials", "many")),
        (b"trials: .nan\n", ("finite",)),
        (b"min_psnr: 1e400\n", ("too large",)),
        (b"prompts: 7\n", ("prompts",)),
        (b"seeds: [0, 0]\nprompts: [x]\nmodel: y\n", ("seeds",)),
    ],
)
def test_a_bad_study_file(fa_tune: FaTune, text: bytes, words: tuple[str, ...]) -> None:
    Path("study.yaml").write_bytes(text)
    for command in ("run", "config") if b"seeds" not in text else ("run",):
        fa_tune(command, "--study-file", "study.yaml").refused(2, *words)
    assert fa_tune.files() <= {"study.yaml", "data"}


def test_a_study_file_that_is_no_file(fa_tune: FaTune) -> None:
    fa_tune("run", "--study-file", "missing.yaml").refused(3, "missing.yaml")
    fa_tune("run", "--study-file", ".").refused(2, "study file")


def test_an_environment_variable_that_cannot_be_read(fa_tune: FaTune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA_TUNE_PROMPTS", "not json")
    fa_tune("run", "--model", "x").refused(2, "JSON")


@pytest.mark.parametrize("format_", ["toml", "../deploy"])
def test_bad_export(fa_tune: FaTune, replay: Run, format_: str) -> None:
    replay(trials=2).succeeded()
    fa_tune("export", "s", "--format", format_).refused(2, "stage-args")
    fa_tune("export", "s", "--stage-id", "-1").refused(2, "stage id")
    fa_tune("export", "s", "--into", "missing.yaml").refused(3, "missing.yaml")
    Path("broken.yaml").write_text("stages: [")
    fa_tune("export", "s", "--into", "broken.yaml").refused(2, "broken.yaml")
    assert Path("broken.yaml").read_text() == "stages: ["
    refused = fa_tune("export", "s", "-o", "no/such/folder/deploy.yaml")
    assert refused.code in (2, 3), refused
    assert "no/such/folder" in refused.err


# --- 2: thresholds above the noise floor --------------------------------------------------------------------------


def test_a_threshold_above_the_noise_floor_is_refused_and_can_be_corrected(fa_tune: FaTune, tmp_path: Path) -> None:
    model = noisy_landscape(tmp_path / "noisy.json", 34.0)
    run = ("run", "--engine", "replay", "--model", model, "--study", "s", "--trials", "5")
    fa_tune(*run, "--min-psnr", "40").refused(2, "40 dB", "34.00 dB", "noise floor", "lower the threshold")
    (row,) = fa_tune("studies", "--json").document
    assert (row["state"], row["evaluated"]) == ("failed", 0)
    assert "noise floor" in row["reason"]
    corrected = fa_tune(*run, "--min-psnr", "20", "--json").succeeded().document
    assert (corrected["noise_floor_db"], corrected["evaluated"]) == (34.0, 5)
    fa_tune("recommend", "--model", model, "--min-psnr", "40").refused(2, "noise floor")
    fa_tune("export", "s", "--min-psnr", "40").refused(2, "noise floor")


def test_a_study_stopped_before_its_first_policy_can_be_corrected(
    fa_tune: FaTune, replay: Run, landscape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even to another grid; nothing that was queued for the first is asked for in the second."""
    from fa_tuner.cli.progress import LiveProgress

    with monkeypatch.context() as patch:
        patch.setattr(LiveProgress, "stop_requested", lambda _: True)
        replay("--try", "0,1/2").refused(130)
    synthetic_landscape(4, 3, prompts=1, seed=5).write("other.json")
    run = (
        "run", "--engine", "replay", "--model", "other.json", "--study", "s", "--trials", "8", "--min-psnr", "20",
        "--sampler", "tpe",
    )  # fmt: skip
    corrected = fa_tune(*run, "--json").succeeded().document
    assert corrected["evaluated"] == 8
    shown = fa_tune("show", "s", "--json").document["evaluations"]
    assert Counter(e["origin"] for e in shown) == Counter(baseline=1, anchor=1, preset=5, sampler=2)
    assert all(e["policy"]["skip_layers"] == "" for e in shown if e["origin"] == "preset")


# --- 3: not found, 4: conflict ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["show", "pareto", "export"])
@pytest.mark.parametrize("name", ["unknown", "../x", "x" * 10_000, "", "a\0b", "<script>"])
def test_an_unknown_study(fa_tune: FaTune, command: str, name: str) -> None:
    fa_tune(command, name).refused(3, "fa-tune studies")


def test_things_that_are_not_there(fa_tune: FaTune) -> None:
    size = ("--prompt", "x")
    fa_tune("run", "--model", "./missing", *size).refused(3, "./missing", "does not exist")
    fa_tune("run", "--model", "./missing", "--engine", "replay").refused(3, "missing")
    fa_tune("run", "--model", "./missing", "--prompts-file", "prompts.txt").refused(3, "prompts.txt")
    fa_tune("recommend", "--model", "./missing").refused(3, "no study")
    nothing_stored(fa_tune)


def test_a_device_profile_that_is_not_there(fa_tune: FaTune, replay: Run) -> None:
    replay("--device-profile", "a100").refused(3, "a100", "ascend-pr2640")
    nothing_stored(fa_tune)


def test_a_prompts_file_that_cannot_be_read(fa_tune: FaTune) -> None:
    Path("prompts.txt").write_bytes(b"\xff\xfe\x00")
    fa_tune("run", "--model", "x", "--prompts-file", "prompts.txt").refused(2, "UTF-8")
    Path("prompts.txt").write_text("# only a comment\n\n")
    fa_tune("run", "--model", "x", "--prompts-file", "prompts.txt").refused(2, "no prompt")


def test_another_workload_under_the_same_name(fa_tune: FaTune, replay: Run, landscape: Path) -> None:
    replay(trials=4).succeeded()
    before = fa_tune("show", "s", "--json").document
    replay("--sampler", "random", "--sampler-seed", "5").refused(4, "sampler", "rectangle", "random", "sampler seed")
    replay("--dtype", "mxfp8", "--device-profile", str(mxfp8_profile())).refused(4, "dtype", "mxfp8")
    synthetic_landscape(4, 3, prompts=1, seed=5).write("other.json")
    other = fa_tune("run", "--engine", "replay", "--model", "other.json", "--study", "s")
    other.refused(4, "steps (stored: 6, asked: 4)", "prompts", "environment layers")
    assert fa_tune("show", "s", "--json").document == before


def mxfp8_profile() -> Path:
    path = Path("profile.yaml")
    path.write_text(
        "name: mine\nsource: a test\ndit_seconds: 10\nattention_seconds: 5\nquantized_attention_seconds: {mxfp8: 3}\n"
    )
    return path


# --- 5: engine ----------------------------------------------------------------------------------------------------


def test_a_model_whose_weights_are_damaged(fa_tune: FaTune, tiny_wan: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_wan, tmp_path / "damaged")
    weights = next((model / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    size = ("--height", "32", "--width", "32", "--frames", "5", "--steps", "3")
    fa_tune("run", "--model", model, "--prompt", "x", *size).refused(5, str(model), "cannot be loaded")
    nothing_stored(fa_tune)


def test_an_engine_that_cannot_run_here(fa_tune: FaTune, replay: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReplayEngine, "unavailable_because", classmethod(lambda _: "its card is missing; buy one"))
    replay().refused(5, "'replay'", "its card is missing")
    checked = {row["what"]: row for row in fa_tune("doctor", "--json").succeeded().document}
    assert checked["engine replay"]["verdict"] == "cannot"
    assert "buy one" in checked["engine replay"]["detail"]
    nothing_stored(fa_tune)


def failing(monkeypatch: pytest.MonkeyPatch, *policies: int) -> None:
    """The replay engine fails under the quantized policies of these numbers, counted from 1."""
    seen: list[str] = []
    original = ReplayEngine.generate

    def generate(
        self: ReplayEngine, policy: SkipPolicy, case: Case, prefix: str = "none", shadows: Any = ()
    ) -> Generation:
        if not policy.is_native and policy.key not in seen:
            seen.append(policy.key)
        if not policy.is_native and seen.index(policy.key) + 1 in policies:
            raise EngineError("the card fell off the bus")
        return original(self, policy, case)

    monkeypatch.setattr(ReplayEngine, "generate", generate)


def test_one_failed_policy_does_not_stop_the_study(
    fa_tune: FaTune, replay: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 2, 3, 5)
    ran = replay(trials=8).succeeded()
    assert ran.err.count("failed: the card fell off the bus") == 3
    assert "3 failed" in ran.out
    assert "failed: fp8, skip steps" in fa_tune("show", "s").succeeded().out
    shown = fa_tune("show", "s", "--json").document
    failed = [e for e in shown["evaluations"] if e["failed"]]
    assert [e["number"] for e in failed] == [2, 3, 5]
    assert all(e["reason"] == "the card fell off the bus" for e in failed)


def test_three_failures_in_a_row_stop_it(fa_tune: FaTune, replay: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing(patch, 3, 4, 5)
        replay(trials=8).refused(5, "3 policies in a row failed", "the card fell off the bus")
    (row,) = fa_tune("studies", "--json").document
    assert (row["state"], row["evaluated"]) == ("failed", 5)
    assert "fell off the bus" in row["reason"]
    resumed = replay("--json", trials=8).succeeded().document
    assert (resumed["state"], resumed["evaluated"]) == ("finished", 8)


def test_an_engine_that_fails_in_an_unforeseen_way(
    fa_tune: FaTune, replay: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*_: Any) -> Generation:
        raise ZeroDivisionError(PASSWORD)

    with monkeypatch.context() as patch:
        patch.setattr(ReplayEngine, "generate", generate)
        refused = replay().refused(1, "internal error", "FA_TUNE_DEBUG")
        assert PASSWORD not in refused.err
    replay().succeeded()


# --- 6: nothing qualifies -----------------------------------------------------------------------------------------


def test_nothing_qualifies(fa_tune: FaTune, replay: Run, landscape: Path) -> None:
    ran = replay("--min-psnr", "90").refused(6, "none of the 8", "the nearest is fp8, skip", "Lower the threshold")
    assert "Pareto front" in ran.out
    assert "recommended" not in ran.out
    as_json = replay("--min-psnr", "90", "--json").refused(6)
    assert "recommended" not in as_json.document
    assert strict_json(as_json.err.splitlines()[-1])["type"] == "nothing-qualifies"
    fa_tune("recommend", "--model", landscape).refused(6, "the nearest is")
    fa_tune("export", "s", "-o", "deploy.yaml").refused(6, "the nearest is")
    assert not Path("deploy.yaml").exists()


# --- 7: quantization that did not take effect ---------------------------------------------------------------------


class LyingEngine(ReplayEngine):
    """Takes every policy and runs native, as vLLM-Omni does where the kernel is missing."""

    @classmethod
    def open(cls, workload: Workload, options: Mapping[str, Any]) -> LyingEngine:
        opened = super().open(workload, options)
        assert isinstance(opened, cls)
        return opened

    def generate(self, policy: SkipPolicy, case: Case, prefix: str = "none", shadows: Any = ()) -> Generation:
        honest = super().generate(policy, case)
        native = Counter({(step, layer, NATIVE): count for (step, layer, _), count in honest.calls.items()})
        return replace(honest, calls=native)


class DeafEngine(LyingEngine):
    """Quantizes, but not where it was told to: all of it."""

    def generate(self, policy: SkipPolicy, case: Case, prefix: str = "none", shadows: Any = ()) -> Generation:
        everywhere = SkipPolicy() if policy.is_native else SkipPolicy(policy.dtype)
        return ReplayEngine.generate(self, everywhere, case)


def test_quantization_without_effect_stops_at_the_first_policy(
    fa_tune: FaTune, replay: Run, landscape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(registry, "engine_class", lambda _: LyingEngine)
        replay().refused(7, "step 0 layer 0", "nothing ran quantized")
    (row,) = fa_tune("studies", "--json").document
    assert (row["state"], row["evaluated"]) == ("unproven", 0)
    assert "nothing ran quantized" in row["reason"]
    fa_tune("recommend", "--model", landscape).refused(7, "cannot be trusted")
    fa_tune("export", "s").refused(7, "cannot be trusted")


def test_selectors_without_effect_stop_at_the_second_policy(
    fa_tune: FaTune, replay: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first policy skips nothing, so there is nothing to see yet."""
    monkeypatch.setattr(registry, "engine_class", lambda _: DeafEngine)
    replay().refused(7, "does not follow the skip selectors")
    (row,) = fa_tune("studies", "--json").document
    assert (row["state"], row["evaluated"]) == ("unproven", 1)
    fa_tune("export", "s").refused(7, "cannot be trusted")


# --- 8: store -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///{folder}/file/fa-tune.db", ("file/fa-tune.db", "check that the folder exists")),
        ("sqlite:///{folder}/file", ("damaged or of another program",)),
        ("sqlite://", ("needs a file",)),
        ("mysql://root:hunter2secret@localhost/x", ("'mysql'",)),
        ("postgresql://root:hunter2secret@127.0.0.1:1/x?sslpassword=hunter2secret", ("root:***@127.0.0.1:1/x",)),
        ("nonsense hunter2secret", ("sqlite:///PATH",)),
    ],
)
def test_a_store_that_cannot_be_opened(fa_tune: FaTune, replay: Run, url: str, words: tuple[str, ...]) -> None:
    Path("file").write_text("no database\n" * 100)
    url = url.format(folder=fa_tune.folder)
    for arguments in (("studies",), ("show", "s"), ("recommend", "--model", "x"), ("studies", "--json")):
        refused = fa_tune(*arguments, "--storage", url).refused(8, *words)
        assert PASSWORD not in refused.out + refused.err
    refused = replay("--storage", url).refused(8, *words)
    assert PASSWORD not in refused.out + refused.err
    assert Path("file").read_text() == "no database\n" * 100


@pytest.mark.parametrize(
    "url", ["postgresql://root:hunter2secret@127.0.0.1:1/x?sslpassword=hunter2secret", "nonsense hunter2secret"]
)
def test_config_shows_no_password(fa_tune: FaTune, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("FA_TUNE_STORAGE", url)
    monkeypatch.setenv("FA_TUNE_ARTIFACTS", "s3://key:hunter2secret@bucket/frames")
    for arguments in (("config",), ("config", "--json")):
        shown = fa_tune(*arguments)
        assert PASSWORD not in shown.out + shown.err


def test_artifacts_that_cannot_be_opened(fa_tune: FaTune, replay: Run) -> None:
    refused = replay("--artifacts", "nothing://key:hunter2secret@bucket").refused(8, "'nothing'")
    assert PASSWORD not in refused.out + refused.err


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "%252e%252e", "<script>alert(1)</script>", "a b", "Größe", "[red]x"]
)
def test_odd_names_are_text_and_nothing_else(fa_tune: FaTune, replay: Run, name: str) -> None:
    replay(study=name, trials=2).succeeded()
    assert fa_tune("studies", "--json").document[0]["study"] == name
    assert name in fa_tune("studies").out
    fa_tune("export", name).succeeded()
    assert fa_tune.files() == {"landscape.json", "data"}
    assert {path.name for path in (fa_tune.folder / "data").iterdir()} <= {
        "fa-tune.db", "fa-tune.db-wal", "fa-tune.db-shm", "artifacts", "home",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["x" * 10_000, "a\0b", "a\nb", "\x1b[31mred", " "])
def test_names_that_no_study_can_have(fa_tune: FaTune, replay: Run, name: str) -> None:
    refused = replay(study=name, trials=2).refused(2, "study")
    assert len(refused.err) < 1000
    assert "\x1b" not in refused.err
    nothing_stored(fa_tune)


def test_the_default_name_is_safe_whatever_the_model_is_called(fa_tune: FaTune) -> None:
    model = Path("../") / fa_tune.folder.name / ("<a b> " + "ü" * 50 + ".json")
    synthetic_landscape(3, 2, prompts=1).write(model)
    fa_tune("run", "--engine", "replay", "--model", model, "--trials", "1", "--min-psnr", "10").succeeded()
    (row,) = fa_tune("studies", "--json").document
    assert row["study"].isascii()
    assert "/" not in row["study"]


# --- numbers ------------------------------------------------------------------------------------------------------


def test_a_landscape_with_numbers_that_are_none_is_refused(fa_tune: FaTune, landscape: Path) -> None:
    document = json.loads(landscape.read_text())
    document["noise_floor_db"] = float("nan")
    landscape.write_text(json.dumps(document))
    fa_tune("run", "--engine", "replay", "--model", landscape).refused(2, "NaN", "landscape")


def test_metrics_at_their_bounds_stay_finite(fa_tune: FaTune, tmp_path: Path) -> None:
    """Quantizing has no effect on the pictures at all: 100 dB, and a mark that says so."""
    formula = synthetic_landscape(3, 2, prompts=2, psnr_db={"fp8": 30.0})

    def perfect(case: Case) -> CaseQuality:
        found = formula.record.quality(SkipPolicy(), case)
        assert found is not None
        return found

    landscape = tabulated(formula, every_policy(formula.grid))
    table = landscape.record
    assert isinstance(table, Table)
    values = table.values.copy()
    for row, case in enumerate(table.cases):
        values[:, row, :] = [[perfect(case).metrics[name]] for name in METRICS]
    identical = table.identical.copy()
    identical[:] = True
    record = Table(table.policies, table.cases, values, identical, table.relative)
    still: Landscape = replace(landscape, record=record)
    still.write(tmp_path / "still.json")
    run = ("run", "--engine", "replay", "--model", "still.json", "--study", "s", "--trials", "4", "--min-psnr", "100")
    ran = fa_tune(*run, "--json").succeeded().document
    assert ran["recommended"]["psnr_db"] == 100
    assert all(case["identical"] for case in ran["recommended"]["prompts"])
    assert "identical" in fa_tune("pareto", "s").succeeded().out
