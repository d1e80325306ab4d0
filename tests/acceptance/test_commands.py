"""From `run` to an exported file, on a recorded landscape and on a real pipeline."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command import FaTune, Result

Run = Callable[..., Result]
KEYS = {"diffusion_kv_cache_dtype", "diffusion_kv_cache_skip_steps", "diffusion_kv_cache_skip_layers"}
DEPLOY_FILE = """\
# my deployment
stages:
  - stage_id: 0   # the diffusion stage
    devices: "0,1"
"""


def selectors(document: Any) -> dict[str, str]:
    """The policy of an answer under the names that vLLM-Omni gives its parts."""
    policy = document["policy"]
    return {f"diffusion_kv_cache_{name}": policy[name] for name in ("dtype", "skip_steps", "skip_layers")}


def test_data_goes_to_stdout_and_progress_to_stderr(replay: Run) -> None:
    ran = replay(trials=5).succeeded()
    assert "Pareto front" in ran.out
    assert "recommended: fp8" in ran.out
    assert "opening" not in ran.out
    assert "baseline run twice" in ran.err
    assert "Pareto front" not in ran.err
    assert sum(f"\n{done:4d}  " in ran.err for done in range(1, 6)) == 5


def test_stdout_of_run_json_is_one_document(replay: Run) -> None:
    ran = replay("--json", trials=5).succeeded()
    assert ran.document["state"] == "finished"
    assert ran.document["evaluated"] == 5
    assert "baseline run twice" in ran.err


def test_every_question_has_a_table_and_a_json_answer(fa_tune: FaTune, replay: Run, landscape: Path) -> None:
    ran = replay("--try", "0,1/2", "--json").succeeded().document
    assert "yes" in fa_tune("pareto", "s").succeeded().out
    assert fa_tune("pareto", "s", "--json").document == ran

    shown = fa_tune("show", "s", "--json").succeeded().document
    assert [e["number"] for e in shown["evaluations"]] == list(range(9))
    assert {e["origin"] for e in shown["evaluations"]} >= {"baseline", "anchor", "try"}
    listed = fa_tune("show", "s").succeeded().out
    assert '"0,1"' in listed

    (row,) = fa_tune("studies", "--json").succeeded().document
    assert (row["study"], row["evaluated"], row["target"]) == ("s", 8, 8)
    assert "8/8" in fa_tune("studies").succeeded().out
    assert fa_tune("studies", "--model", "other", "--json").document == []

    answer = fa_tune("recommend", "--model", landscape, "--json").succeeded().document
    assert answer["policy"] == ran["recommended"]["policy"]
    assert answer["latency"]["source"] == "projected"
    assert answer["coverage"]["proven"]
    told = fa_tune("recommend", "--model", landscape).succeeded().out
    assert f'skip_steps   "{answer["policy"]["skip_steps"]}"' in told

    settings = fa_tune("config", "--json").succeeded().document
    assert settings["storage"]["from"] == "environment"
    assert "FA_TUNE" not in fa_tune("config").succeeded().err
    checked = {row["what"]: row["verdict"] for row in fa_tune("doctor", "--json").succeeded().document}
    assert (checked["engine replay"], checked["engine diffusers"]) == ("works", "works")
    assert "engine replay" in fa_tune("doctor").succeeded().out


def test_your_own_policy_is_shown_beside_the_front(replay: Run) -> None:
    assert "your own policies (--try)" in replay("--try", "0,1/2", trials=8).succeeded().out


def test_a_model_is_found_again_from_another_folder(
    fa_tune: FaTune, landscape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fa_tune("run", "--engine", "replay", "--model", landscape.name, "--trials", "2").succeeded()
    (fa_tune.folder / "below").mkdir()
    monkeypatch.chdir(fa_tune.folder / "below")
    fa_tune("recommend", "--model", f"../{landscape.name}").succeeded()
    fa_tune("recommend", "--model", landscape).succeeded()


def test_export_in_every_format(fa_tune: FaTune, replay: Run, landscape: Path) -> None:
    replay().succeeded()
    wanted = selectors(fa_tune("recommend", "--model", landscape, "--json").document)

    deploy = fa_tune("export", "s").succeeded().out
    (stage,) = yaml.safe_load(deploy)["platforms"]["npu"]["stages"]
    assert {key: stage[key] for key in KEYS} == wanted

    legacy = yaml.safe_load(fa_tune("export", "s", "--format", "stage-args", "--stage-id", "2").succeeded().out)
    assert legacy["stage_args"][0]["stage_id"] == 2
    assert {key: legacy["stage_args"][0]["engine_args"][key] for key in KEYS} == wanted

    words = shlex.split(fa_tune("export", "s", "--format", "flags").succeeded().out, comments=True)
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        f"--{key.replace('_', '-')}": value for key, value in wanted.items()
    }

    written = fa_tune("export", "s", "-o", "deploy.yaml").succeeded()
    assert written.out == ""
    assert written.err == "written: deploy.yaml\n"
    assert Path("deploy.yaml").read_text() == deploy
    document = fa_tune("export", "s", "--json").succeeded().document
    assert (document["text"], document["format"], document["file"]) == (deploy, "deploy", "")


def test_export_into_a_file_of_the_user(fa_tune: FaTune, replay: Run, landscape: Path) -> None:
    replay().succeeded()
    wanted = selectors(fa_tune("recommend", "--model", landscape, "--json").document)
    Path("mine.yaml").write_text(DEPLOY_FILE)
    assert fa_tune("export", "s", "--into", "mine.yaml").succeeded().out == ""
    merged = Path("mine.yaml").read_text()
    assert DEPLOY_FILE in merged
    (stage,) = yaml.safe_load(merged)["platforms"]["npu"]["stages"]
    assert {key: stage[key] for key in KEYS} == wanted
    fa_tune("export", "s", "--into", "mine.yaml").succeeded()
    assert Path("mine.yaml").read_text() == merged
    fa_tune("export", "s", "--into", "mine.yaml", "-o", "other.yaml").refused(2, "--into")
    assert not Path("other.yaml").exists()


def test_a_stricter_question_gets_another_answer_from_the_same_measurements(
    fa_tune: FaTune, replay: Run, landscape: Path
) -> None:
    replay(trials=30).succeeded()
    loose = fa_tune("recommend", "--model", landscape, "--min-psnr", "30", "--json").succeeded().document
    strict = fa_tune("recommend", "--model", landscape, "--min-psnr", "38", "--json").succeeded().document
    assert strict["psnr_db"] >= 38 > loose["psnr_db"]
    assert strict["latency"]["gain"] < loose["latency"]["gain"]
    exported = fa_tune("export", "s", "--min-psnr", "38", "--json").succeeded().document
    assert exported["policy"] == strict["policy"]


def test_settings_come_from_flag_then_environment_then_study_file(
    fa_tune: FaTune, landscape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("study.yaml").write_text("model: landscape.json\nengine: replay\ntrials: 3\nmin_psnr: 25\nstudy: filed\n")
    monkeypatch.setenv("FA_TUNE_MIN_PSNR", "26")
    monkeypatch.setenv("FA_TUNE_TRIALS", "4")
    settings = fa_tune("config", "--study-file", "study.yaml", "--json").succeeded().document
    assert settings["study"] == {"value": "filed", "from": "study file"}
    assert settings["trials"] == {"value": 4, "from": "environment"}
    ran = fa_tune("run", "--study-file", "study.yaml", "--trials", "2", "--json").succeeded().document
    assert (ran["evaluated"], ran["requirement"]) == (2, ["psnr_db>=26"])


def test_a_dry_run_counts_generations_and_stores_nothing(
    fa_tune: FaTune, replay: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fa_tuner.search.rehearsal.MOST_SECONDS", 1e9)  # so that both come to the same
    planned = replay("--dry-run", "--json").succeeded().document
    assert (planned["policies"], planned["policies_possible"]) == (8, 63 * 15)
    assert planned["generations"]["total"] > 8
    about = planned["generation_equivalents_about"]
    assert about["total"] == pytest.approx(2 + about["policies"])
    assert about["total_least"] <= about["total"] <= about["total_most"]
    assert about["total"] < planned["generation_equivalents"]["total"] == 10
    assert planned["policies_about"] == 8 and planned["seconds_about"] < planned["seconds_at_most"]
    said = replay("--dry-run").succeeded().out
    assert "generations  in all" in said and "started anew: up to 8 of 945 policies" in said
    assert (
        f"about {about['total']:.1f}".removesuffix(".0") + ", at most 10 generations of every searched prompt" in said
    )
    assert "device time for all prompts: about " in said
    assert fa_tune("studies", "--json").document == []


def test_a_dry_run_where_latency_is_timed_counts_the_finalists(fa_tune: FaTune, replay: Run) -> None:
    timed = ("--engine-arg", "latency=measured", "--dry-run")
    planned = replay(*timed, "--json", trials=3).succeeded().document
    assert planned["generations"]["finalists timed again, at most"] == 3 * (15 + 3) * 2 * 2
    assert "seconds_about" not in planned and "generation_equivalents_about" not in planned
    said = replay(*timed, trials=3).succeeded().out
    assert "what is timed is never resumed" in said and "about" not in said
    assert "   216 generations  finalists timed again, at most" in said


def test_a_reader_that_goes_away_is_no_error(fa_tune: FaTune, replay: Run) -> None:
    replay(trials=2).succeeded()
    process = fa_tune.start("show", "s")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert "Traceback" not in fa_tune.finish(process).err


def test_version_and_help_of_every_command(fa_tune: FaTune) -> None:
    assert fa_tune("--version").succeeded().out.strip() == "0.1.0"
    overview = fa_tune("--help").succeeded().out
    for command in ("run", "studies", "show", "pareto", "recommend", "export", "serve", "keys", "config", "doctor"):
        assert command in overview
        assert "Usage" in fa_tune(command, "--help").succeeded().out


def test_a_real_pipeline_from_run_to_an_exported_file(fa_tune: FaTune, tiny_wan: Path) -> None:
    """Frames are generated by diffusers with the emulated operator, and kept for the baseline and the front."""
    size = ("--height", "32", "--width", "32", "--frames", "5", "--steps", "3", "--guidance", "4")
    run = (
        "run", "--engine", "diffusers", "--model", tiny_wan, "--study", "tiny", "--prompt", "red digit moving left",
        "--prompt", "blue digit moving right", "--holdout-prompt", "green digit", *size, "--min-psnr", "5",
    )  # fmt: skip
    ran = fa_tune(*run, "--trials", "4", "--json").succeeded().document
    assert ran["environment"]["operator"] == "emulated"
    assert ran["environment"]["layers"] == [0, 1]
    assert ran["evaluated"] == 4
    assert all(e["coverage"]["proven"] for e in ran["front"])
    everything = next(e for e in ran["front"] if e["origin"] == "anchor")
    assert everything["coverage"]["quantized_calls"] == 2 * 3 * 2 * 2  # cases, steps, layers, calls a cell
    assert everything["psnr_db"] < 100
    assert ran["recommended"]["holdout_prompts"]

    front = fa_tune("pareto", "tiny", "--json").succeeded().document["front"]
    assert front == ran["front"]
    text = fa_tune("export", "tiny", "-o", "deploy.yaml").succeeded()
    assert text.out == ""
    (stage,) = yaml.safe_load(Path("deploy.yaml").read_text())["platforms"]["npu"]["stages"]
    assert stage["diffusion_kv_cache_skip_steps"] == ran["recommended"]["policy"]["skip_steps"]
    kept = list((fa_tune.folder / "data" / "artifacts").rglob("*.npz"))
    assert len(kept) == 2 * len(ran["front"])  # the native policy is on the front
