"""The same command again: after its end, after Ctrl-C, after kill -9."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Evaluation
from fa_tuner.domain.workload import Case
from fa_tuner.engines.base import Generation
from fa_tuner.engines.replay import ReplayEngine
from tests.support.command import FaTune, Result
from tests.support.measured import unchecked

Run = Callable[..., Result]
TINY = ("--height", "32", "--width", "32", "--frames", "5", "--guidance", "4", "--min-psnr", "5", "--study", "s")


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SkipPolicy, Case]]:
    """What the replay engine is asked for in this process."""
    seen: list[tuple[SkipPolicy, Case]] = []
    original = ReplayEngine.generate

    def generate(
        self: ReplayEngine, policy: SkipPolicy, case: Case, prefix: str = "none", shadows: Any = ()
    ) -> Generation:
        seen.append((policy, case))
        return original(self, policy, case)

    monkeypatch.setattr(ReplayEngine, "generate", generate)
    return seen


def policies_of(fa_tune: FaTune, study: str = "s") -> list[dict[str, Any]]:
    """The evaluations without the native one, as `show` tells them."""
    shown = fa_tune("show", study, "--json").succeeded().document
    return [e for e in shown["evaluations"] if not e["policy"]["native"]]


def committed(fa_tune: FaTune) -> list[Evaluation]:
    with fa_tune.store() as store:
        return store.evaluations("s") if store.studies() else []


def optuna_states(fa_tune: FaTune) -> Counter[str]:
    study = optuna.load_study(study_name="s", storage=fa_tune.url)
    return Counter(trial.state.name for trial in study.get_trials(deepcopy=False))


def assert_whole(fa_tune: FaTune, target: int) -> None:
    """Exactly the target's number of different policies, or fewer where our sampler found nothing left to gain;
    numbered without a gap, and Optuna agrees."""
    evaluations = committed(fa_tune)
    with fa_tune.store() as store:
        study = store.study("s")
    assert (study.state, study.target) == ("finished", target)
    settled = study.reason in ("front verified", "nothing left to gain")
    wanted = len(evaluations) - 1 if settled else target
    assert 6 <= wanted <= target or not settled
    assert [e.number for e in evaluations] == list(range(wanted + 1))
    assert len({e.policy.key for e in evaluations}) == wanted + 1
    assert not any(e.failed for e in evaluations)
    states = optuna_states(fa_tune)
    assert states["RUNNING"] == 0
    assert states["COMPLETE"] >= wanted


def test_a_higher_target_goes_on_where_the_study_ended(fa_tune: FaTune, replay: Run) -> None:
    replay(trials=6).succeeded()
    first = policies_of(fa_tune)
    replay(trials=12).succeeded()
    assert policies_of(fa_tune)[:6] == first
    assert_whole(fa_tune, 12)


def test_a_study_at_its_target_generates_nothing(
    fa_tune: FaTune, replay: Run, generated: list[tuple[SkipPolicy, Case]]
) -> None:
    once = replay("--json", trials=6).succeeded().document
    before, asked = committed(fa_tune), len(generated)
    again = replay("--json", trials=6).succeeded().document
    assert committed(fa_tune) == before
    assert len(generated) == asked
    assert again["front"] == once["front"]
    assert_whole(fa_tune, 6)


def test_a_finished_study_of_a_real_pipeline_loads_frames_and_generates_nothing(
    fa_tune: FaTune, tiny_wan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fa_tuner.engines.diffusers import DiffusersEngine

    run = ("run", "--model", tiny_wan, "--prompt", "red digit", "--steps", "2", *TINY, "--trials", "2")
    fa_tune(*run).succeeded()
    before = committed(fa_tune)

    def generate(*_: Any) -> Generation:
        raise AssertionError("nothing is left to generate")

    monkeypatch.setattr(DiffusersEngine, "generate", generate)
    assert "baseline taken over" in fa_tune(*run).succeeded().err
    assert committed(fa_tune) == before


def test_every_policy_of_a_small_space_is_measured_once(fa_tune: FaTune, tmp_path: Path) -> None:
    from fa_tuner.engines.synthetic import synthetic_landscape

    synthetic_landscape(3, 2, prompts=1).write(tmp_path / "small.json")
    run = ("run", "--engine", "replay", "--model", "small.json", "--study", "s", "--trials", "1000", "--min-psnr", "20")
    ran = fa_tune(*run, "--sampler", "brute-force", "--json").succeeded().document
    assert (ran["evaluated"], ran["reason"]) == (7 * 3, "front verified")
    assert_whole(fa_tune, 21)


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, times: int) -> None:
    """Ctrl-C while generation number `at` runs."""
    count, original = 0, ReplayEngine.generate

    def generate(
        self: ReplayEngine, policy: SkipPolicy, case: Case, prefix: str = "none", shadows: Any = ()
    ) -> Generation:
        nonlocal count
        count += 1
        for _ in range(times if count == at else 0):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the handler runs before this returns
        return original(self, policy, case)

    monkeypatch.setattr(ReplayEngine, "generate", generate)


def test_ctrl_c_once_finishes_the_running_policy(fa_tune: FaTune, replay: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, at=4 + 2 * 3 + 1, times=1)  # the first of the fourth policy's two generations
        replay(trials=8).refused(130, "finishing the running policy", "stopped after 4 of 8 policies")
    assert len(policies_of(fa_tune)) == 4
    assert optuna_states(fa_tune)["RUNNING"] == 0
    (row,) = fa_tune("studies", "--json").document
    assert row["state"] == "interrupted"
    replay(trials=8).succeeded()
    assert_whole(fa_tune, 8)


def test_ctrl_c_twice_stops_at_once(fa_tune: FaTune, replay: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, at=4 + 2 * 3 + 1, times=2)
        replay(trials=8).refused(130, "stopped at once")
    assert len(policies_of(fa_tune)) == 3
    (row,) = fa_tune("studies", "--json").document
    assert row["state"] == "interrupted"
    replay(trials=8).succeeded()
    assert_whole(fa_tune, 8)


def test_ctrl_c_twice_during_the_baseline(fa_tune: FaTune, replay: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, at=2, times=2)
        replay(trials=3).refused(130)
    replay(trials=3).succeeded()
    assert_whole(fa_tune, 3)


def wait_for(fa_tune: FaTune, policies: int, seconds: float = 60, may_end: bool = False) -> list[Evaluation]:
    """Until that many policies are committed by another process, or until it has ended well where it `may_end`."""
    deadline = time.monotonic() + seconds
    while len(found := committed(fa_tune)) <= policies:
        process = fa_tune.started[-1]
        if may_end and process.poll() == 0:
            return committed(fa_tune)
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing more is committed"
        time.sleep(0.02)
    return found


def test_ctrl_c_in_a_process_of_its_own(fa_tune: FaTune, landscape: Path) -> None:
    run = ("run", "--engine", "replay", "--model", landscape, "--study", "s", "--trials", "300")
    process = fa_tune.start(*run)
    wait_for(fa_tune, 2)
    process.send_signal(signal.SIGINT)
    fa_tune.finish(process).refused(130, "the same command goes on")
    assert optuna_states(fa_tune)["RUNNING"] == 0


def killed_and_resumed(fa_tune: FaTune, run: tuple[str | Path, ...], target: int, kills: int, seed: int) -> None:
    """Kill the command at random moments, then let it go to its end."""
    draw = random.Random(seed)
    seen: list[Evaluation] = []
    for number in range(kills):
        process = fa_tune.start(*run)
        # one more than there was, so that every process gets somewhere, then anywhere in the next policies
        known = wait_for(fa_tune, min(len(seen), target - 1), may_end=number >= 2)
        if process.poll() == 0:
            break  # our sampler found nothing left to gain before the last kill
        time.sleep(draw.uniform(0, 0.4))
        seen = committed(fa_tune)  # all of these were committed before the kill
        assert seen[: len(known)] == known
        process.kill()
        process.communicate()
    fa_tune.elsewhere(*run).succeeded()
    assert unchecked(committed(fa_tune)[: len(seen)]) == unchecked(seen)
    assert_whole(fa_tune, target)


@pytest.mark.parametrize("sampler", ["rectangle", "random"])
def test_kill_9_loses_nothing(fa_tune: FaTune, landscape: Path, sampler: str) -> None:
    run = (
        "run", "--engine", "replay", "--model", landscape, "--study", "s", "--trials", "40", "--sampler", sampler
    )  # fmt: skip
    killed_and_resumed(fa_tune, run, target=40, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [2, 3])
def test_kill_9_of_a_real_pipeline_loses_nothing(fa_tune: FaTune, tiny_wan: Path, seed: int) -> None:
    run = (
        "run", "--model", tiny_wan, "--prompt", "red digit moving left", "--prompt", "blue digit moving right",
        "--steps", "4", *TINY, "--trials", "30",
    )  # fmt: skip
    killed_and_resumed(fa_tune, run, target=30, kills=5, seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_twice_during_a_long_generation(fa_tune: FaTune, tiny_wan: Path) -> None:
    """One policy of 400 steps takes seconds; it is not waited for."""
    run = ("run", "--model", tiny_wan, "--prompt", "red digit moving left", "--steps", "400", *TINY, "--trials", "2")
    process = fa_tune.start(*run)
    wait_for(fa_tune, 0, seconds=120)  # the baseline
    time.sleep(0.3)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    fa_tune.finish(process).refused(130, "stopped at once")
    assert time.monotonic() - asked < 5
