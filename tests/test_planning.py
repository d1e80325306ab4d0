"""What a dry run says, against what it would be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fa_tuner.domain.errors import UsageError
from fa_tuner.engines.base import Description
from fa_tuner.engines.replay import ReplayEngine
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.planning import HELD_OUT, MOST_TIMED_AGAIN, TIMED_AGAIN, Plan, plan
from fa_tuner.search import rehearsal
from fa_tuner.settings import load_run_settings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.repository import Store
from fa_tuner.tuning import tune
from tests.support.observers import Silent

Planned = Callable[..., Plan]
SECONDS, END_TO_END = 60.0, 66.0  # of a native generation, as the landscape has it
MEASURED = {"engine_args": {"latency": "measured"}}


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MOST_SECONDS", 1e9)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """6 steps by 4 layers, two prompts and a held-out one."""
    synthetic_landscape(6, 4, prompts=2, holdout=1, seed=3, psnr_db={"fp8": 33.0}).write(tmp_path / "landscape.json")
    return str(tmp_path / "landscape.json")


@pytest.fixture
def planned(model: str) -> Planned:
    def run(**settings: Any) -> Plan:
        return plan(load_run_settings({"engine": "replay", "model": model, "study": "s", **settings}).request())

    return run


def test_where_latency_is_projected_policies_go_on_from_what_they_share(planned: Planned) -> None:
    made = planned(trials=10)
    assert made.generations_by_phase == {
        "baseline, twice": 4, "anchors, own and preset policies": 2, "sampler rectangle": 18, HELD_OUT: 2,
    }  # fmt: skip
    assert made.equivalents == {"baseline": 2.0, "policies, at most": 10.0}
    assert made.reuse is not None and made.reuse.policies == made.policies == 10
    assert 1 < made.reuse.least <= made.reuse.equivalents <= made.reuse.most < 10
    assert made.saved == 10 - made.reuse.equivalents
    assert made.seconds == pytest.approx(26 * END_TO_END)
    assert made.seconds_about == pytest.approx(made.seconds - made.saved * 2 * SECONDS), "the VAE runs for each"


def test_what_is_timed_runs_in_full_and_finalists_again(planned: Planned) -> None:
    made = planned(trials=20, repeats=4, **MEASURED)
    assert made.generations_by_phase == {
        "baseline, twice": 2 * 2 * 4 + 1, "anchors, own and preset policies": 16, "sampler rectangle": 19 * 16,
        TIMED_AGAIN: MOST_TIMED_AGAIN * (20 + 4) * 2 * 2, HELD_OUT: 2,
    }  # fmt: skip
    assert made.reuse is None and made.saved == 0
    assert made.seconds_about == made.seconds
    assert planned(trials=3, **MEASURED).generations_by_phase[TIMED_AGAIN] == 3 * (15 + 3) * 2 * 2


def test_what_is_projected_though_it_could_be_timed_is_resumed(planned: Planned) -> None:
    made = planned(trials=5, device_profile="ascend-pr2640", **MEASURED)
    assert TIMED_AGAIN not in made.generations_by_phase and made.saved > 0


def test_an_engine_that_does_not_resume_runs_all_in_full(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ReplayEngine.describe

    def describe(self: ReplayEngine) -> Description:
        return replace(original(self), resumes=False)

    monkeypatch.setattr(ReplayEngine, "describe", describe)
    made = planned(trials=5)
    assert made.reuse is None and made.seconds_about == made.seconds


def test_a_budget_pays_for_more_policies_where_they_share_steps(planned: Planned) -> None:
    made = planned(budget="20m")
    assert made.policies == int(1200 / (2 * END_TO_END)) + 1
    assert made.reuse is not None and made.reuse.policies > made.policies
    assert made.saved == 0, "the time is used up either way"
    both = planned(budget="20m", trials=9)
    assert both.policies == 9 and both.saved > 0


def test_what_a_run_would_refuse_is_refused_before_anything_is_generated(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReplayEngine, "generate", lambda *_: pytest.fail("generated"))
    with pytest.raises(UsageError, match="cannot run mxfp8; it has fp8"):
        planned(dtype="mxfp8")
    with pytest.raises(UsageError, match="sampler 'guess' is unknown"):
        planned(sampler="guess")


def test_a_run_then_costs_about_what_was_said(model: str, planned: Planned, tmp_path: Path) -> None:
    made, url = planned(trials=20), f"sqlite:///{tmp_path / 'fa-tune.db'}"
    request = load_run_settings({"engine": "replay", "model": model, "study": "s", "trials": 20}).request()
    with Store.open(url) as store:
        tune(request, store, Artifacts(str(tmp_path / "a"), 2**20), Silent(), url)
        measured = [e.measurement for e in store.evaluations("s") if e.measurement is not None]
    assert len(measured) == 1 + 20
    spent = sum(measurement.generations(6) for measurement in measured)
    assert spent == pytest.approx(sum(made.equivalents.values()) - made.saved, rel=0.25)
