"""New terms on a finished study: what is stored is judged anew, and nothing of it is generated again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from fa_tuner.engines.replay import ReplayEngine
from fa_tuner.search.study import open_storage
from fa_tuner.store.claims import Worker
from tests.support.command import FaTune, Result
from tests.support.tables import noisy_landscape

Run = Callable[..., Result]

PROFILE = """\
name: mine
source: a test
dit_seconds: 10
attention_seconds: 8
quantized_attention_seconds: {fp8: 4}
"""


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The policies that were generated, in order."""
    seen: list[str] = []
    original = ReplayEngine.generate

    def generate(self: ReplayEngine, policy: Any, *arguments: Any) -> Any:
        seen.append(policy.key)
        return original(self, policy, *arguments)

    monkeypatch.setattr(ReplayEngine, "generate", generate)
    return seen


def test_a_new_threshold_costs_the_new_finalist_alone(fa_tune: FaTune, replay: Run, generated: list[str]) -> None:
    first = replay("--min-psnr", "30", "--json", trials=15).succeeded().document
    rows = fa_tune("show", "s", "--json").document["evaluations"]
    generated.clear()
    second = replay("--min-psnr", "36", "--json", trials=15).succeeded()
    assert "asked anew: requirement (stored: psnr_db>=30" in second.err
    chosen = second.document["recommended"]["policy"]
    assert chosen != first["recommended"]["policy"] and second.document["recommended"]["psnr_db"] >= 36
    # the held-out prompts of native and of the policy that answers now, or of those that failed on them before it
    assert len(set(generated) - {"native"}) <= 3 and "native" in generated
    again = fa_tune("show", "s", "--json").document["evaluations"]
    assert [row["number"] for row in again] == [row["number"] for row in rows]
    generated.clear()
    back = replay("--min-psnr", "30", "--json", trials=15).succeeded().document
    assert back["recommended"]["policy"] == first["recommended"]["policy"] and not generated


def test_another_aggregate_and_constraint(replay: Run, generated: list[str]) -> None:
    replay("--min-psnr", "30", trials=12).succeeded()
    generated.clear()
    mean = replay("--min-psnr", "30", "--aggregate", "mean", "--json", trials=12).succeeded().document
    assert mean["aggregate"] == "mean"
    replay("--constraint", "ssim>=0.9", trials=12).succeeded()
    assert len(set(generated)) <= 4


def test_a_quantile_where_one_prompt_may_fall_short(fa_tune: FaTune, replay: Run, generated: list[str]) -> None:
    """Of two prompts half may: p50 is the better one, and what the worst forbade is the answer now."""
    before = replay("--min-psnr", "36", "--json", trials=15).succeeded().document
    worst = {row["number"]: row for row in fa_tune("show", "s", "--json").document["evaluations"]}
    generated.clear()
    ran = replay("--min-psnr", "36", "--aggregate", "p50", "--json", trials=15).succeeded()
    assert "asked anew" in ran.err and "(p50 of prompts)" in ran.err
    assert len(set(generated) - {"native"}) <= 3
    after = ran.document
    assert after["aggregate"] == "p50"
    assert after["recommended"]["latency"]["gain"] > before["recommended"]["latency"]["gain"]
    for row in fa_tune("show", "s", "--json").document["evaluations"]:
        seen = [prompt["metrics"]["psnr_db"] for prompt in row["prompts"]]
        assert (row["psnr_db"], worst[row["number"]]["psnr_db"]) == (max(seen), min(seen))
    assert "PSNR dB worst" in (shown := fa_tune("pareto", "s").succeeded().out) and " p50 " in shown
    assert "(p50 of prompts)" in shown
    exported = fa_tune("export", "s").succeeded().out
    assert f"p50 {after['recommended']['psnr_db']:.2f} dB, mean" in " ".join(exported.replace("#", " ").split())
    asked = fa_tune("recommend", "--model", "landscape.json", "--min-psnr", "36", "--aggregate", "p50", "--json")
    assert asked.succeeded().document["policy"] == after["recommended"]["policy"]
    fewer = fa_tune("recommend", "--model", "landscape.json", "--min-psnr", "36", "--aggregate", "p49", "--json")
    assert fewer.succeeded().document["policy"] == before["recommended"]["policy"], "of two prompts, the worst"


def test_another_device_profile(fa_tune: FaTune, replay: Run, tmp_path: Path, generated: list[str]) -> None:
    before = replay("--json", trials=8).succeeded().document
    profile = tmp_path / "mine.yaml"
    profile.write_text(PROFILE)
    generated.clear()
    after = replay("--device-profile", profile, "--json", trials=8).succeeded().document
    assert after["latency_profile"].startswith("mine@") and set(generated) <= {"native"} | {
        f"fp8:{row['policy']['skip_steps']}/{row['policy']['skip_layers']}" for row in after["front"]
    }
    fastest = {d["front"][0]["latency"]["relative"] for d in (before, after)}
    assert fastest == {before["front"][0]["latency"]["relative"], 1 - 4 / 10}
    details = {row["latency"]["detail"] for row in fa_tune("show", "s", "--json").document["evaluations"]}
    assert all("mine@" in detail for detail in details)


def test_terms_do_not_change_under_another_worker(fa_tune: FaTune, replay: Run) -> None:
    replay("--min-psnr", "30", trials=4).succeeded()
    with fa_tune.store() as store:
        other = Worker.of_this_process()
        store.claim("s", "worker:other", other)
        before = store.study("s")
        replay("--min-psnr", "33", trials=4).refused(4, "another worker runs study s", "requirement", "wait until")
        replay("--sampler", "tpe", trials=4).refused(4, "another worker runs study s", "sampler")
        assert store.study("s") == before
        assert list(store.claimed("s").values()) == [other], "whoever was refused leaves no claim"
        store.release("s", other)
    replay("--min-psnr", "33", trials=4).succeeded()


def test_optuna_is_told_the_new_terms(fa_tune: FaTune, replay: Run) -> None:
    replay("--min-psnr", "30", trials=5).succeeded()
    replay("--min-psnr", "33", trials=5).succeeded()
    trials = optuna.load_study(study_name="s", storage=open_storage(fa_tune.url)).get_trials()
    assert trials and all(set(trial.constraints) == {"psnr_db>=33"} for trial in trials)


def test_a_threshold_above_the_floor_changes_nothing(fa_tune: FaTune, tmp_path: Path) -> None:
    model = noisy_landscape(tmp_path / "noisy.json", 34.0)
    run = ("run", "--engine", "replay", "--model", model, "--study", "s", "--trials", "5")
    fa_tune(*run, "--min-psnr", "20").succeeded()
    before = fa_tune("show", "s", "--json").document
    fa_tune(*run, "--min-psnr", "40").refused(2, "noise floor", "34.00 dB")
    assert fa_tune("show", "s", "--json").document == before
