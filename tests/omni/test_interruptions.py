"""Studies on the real engine that are interrupted: by a crash of the engine, kill -9 of the tuner, Ctrl-C, failures in
a row, and a quantization that does not happen."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from fa_tuner.domain.study import Evaluation, Study
from fa_tuner.store.repository import Store
from tests.support.installed import Installed

from .conftest import DEMO, DEMO_RUN

pytestmark = pytest.mark.timeout(600)
TRIALS = 10
RUN = (*DEMO_RUN, "--trials", str(TRIALS), "--min-psnr", "40")
FAULTS, STRIKES = "FA_TUNE_EMULATE_NPU_FAULTS", "FA_TUNE_EMULATE_NPU_STRIKES"


@pytest.fixture(autouse=True)
def nothing_is_left_over(installed: Installed) -> Iterator[None]:
    yield
    for process in installed.started:
        process.kill()
    assert installed.engines() == []


def stored(installed: Installed, name: str) -> Study:
    with Store.open(installed.url) as store:
        return store.study(name)


def measured(installed: Installed, name: str) -> int:
    """Policies committed so far, the native one not counted."""
    return max(0, len(installed.evaluations(name)) - 1)


def figures(evaluations: list[Evaluation]) -> list[Any]:
    """What is never computed again; held-out prompts are added to a finalist at the end."""
    return [(e.number, e.policy.key, e.reason, e.measurement and e.measurement.cases) for e in evaluations]


def assert_whole(installed: Installed, name: str, failed: int = 0) -> None:
    """The target's number of different policies, numbered without a gap; Optuna agrees."""
    evaluations = installed.evaluations(name)
    assert [e.number for e in evaluations] == list(range(TRIALS + 1))
    assert len({e.policy.key for e in evaluations}) == TRIALS + 1
    assert sum(e.failed for e in evaluations) == failed
    assert all(e.failed or (e.measurement is not None and e.measurement.coverage.proven) for e in evaluations)
    study = stored(installed, name)
    assert (study.state, study.target) == ("finished", TRIALS)
    trials = optuna.load_study(study_name=name, storage=installed.url).get_trials(deepcopy=False)
    states = Counter(trial.state.name for trial in trials)
    assert states["RUNNING"] == 0 and states["COMPLETE"] >= TRIALS - failed


def gone_within(seconds: float, processes: list[psutil.Process]) -> bool:
    deadline = time.monotonic() + seconds
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_an_engine_that_is_killed_costs_at_most_a_policy(installed: Installed) -> None:
    process = installed.start(*RUN, "--study", "engine")
    installed.wait_until(process, lambda: measured(installed, "engine") >= 2)
    killed = installed.engines()
    assert killed and all(p.pid != process.pid for p in killed)
    killed[0].kill()
    assert gone_within(10, killed), "what the engine had started goes with it"
    installed.wait_until(process, lambda: bool(set(installed.engines()) - set(killed)))
    done = installed.finish(process)
    failures = [e for e in installed.evaluations("engine") if e.failed]
    assert len(failures) <= 1, "between two policies nothing is lost"
    for failure in failures:
        assert "engine vllm-omni was killed by SIGKILL" in failure.reason and "failed: engine vllm-omni" in done.err
    done.succeeded()
    assert_whole(installed, "engine", failed=len(failures))


def test_kill_9_of_the_tuner_takes_the_engine_along_and_loses_nothing(installed: Installed) -> None:
    process = installed.start(*RUN, "--study", "killed")
    installed.wait_until(process, lambda: measured(installed, "killed") >= 3)
    engines = installed.engines()
    assert engines
    process.kill()
    process.wait()
    assert gone_within(8, engines)
    before = installed.evaluations("killed")  # whatever was committed up to the kill
    done = installed(*RUN, "--study", "killed").succeeded()
    assert "baseline taken over" in done.err
    assert figures(installed.evaluations("killed")[: len(before)]) == figures(before)
    assert_whole(installed, "killed")


def test_ctrl_c_finishes_the_running_policy_and_a_second_one_stops_at_once(installed: Installed) -> None:
    process = installed.start(*RUN, "--study", "asked")
    installed.wait_until(process, lambda: measured(installed, "asked") >= 2)
    installed.ctrl_c(process)
    done = installed.finish(process, timeout=60)
    kept = installed.evaluations("asked")
    done.refused(130, "finishing the running policy", f"stopped after {len(kept) - 1} of {TRIALS} policies")
    assert 2 <= len(kept) - 1 < TRIALS and not any(e.failed for e in kept)
    assert stored(installed, "asked").state == "interrupted" and installed.engines() == []

    process = installed.start(*RUN, "--study", "asked")
    installed.wait_until(process, lambda: measured(installed, "asked") >= len(kept))
    engines, asked = installed.engines(), time.monotonic()
    installed.ctrl_c(process)
    installed.wait_until(process, lambda: "finishing the running policy" in installed.said(process)[1], seconds=10)
    if process.poll() is None:
        installed.ctrl_c(process)
    done = installed.finish(process, timeout=60)
    assert done.code == 130 and time.monotonic() - asked < 15 and gone_within(5, engines)
    assert stored(installed, "asked").state == "interrupted"

    installed(*RUN, "--study", "asked").succeeded()
    assert figures(installed.evaluations("asked")[: len(kept)]) == figures(kept)
    assert_whole(installed, "asked")


def test_three_failures_in_a_row_stop_the_study_and_it_goes_on(installed: Installed, tmp_path: Path) -> None:
    strikes = tmp_path / "strikes"
    strikes.write_text("100")
    broken = {FAULTS: "raises", STRIKES: str(strikes)}
    run = (*RUN, "--study", "failing", "--sampler", "random")  # which asks for no shadow probes: they would strike, too
    done = installed(*run, **broken)
    done.refused(5, "3 policies in a row failed; the last, fp8, skip steps", "EZ9999: inner error of the operator")
    assert int(strikes.read_text()) == 97, "each failure ends the engine, and the next policy gets a new one"
    assert stored(installed, "failing").state == "failed"
    rows = installed.evaluations("failing")
    assert [e.failed for e in rows] == [False, True, True, True]
    assert all("EZ9999" in e.reason for e in rows[1:])
    strikes.write_text("0")
    installed(*run, **broken).succeeded()
    assert figures(installed.evaluations("failing")[:4]) == figures(rows)
    assert_whole(installed, "failing", failed=3)


def test_a_quantization_that_does_not_happen_ends_the_study(installed: Installed) -> None:
    clips = ("--frames", "9")  # so that no other study here answers for it
    done = installed(*RUN, *clips, "--study", "silent", **{FAULTS: "ignores-dtype"})
    done.refused(7, "nothing ran quantized", "was asked for a quantized dtype in 96 calls and ran another kernel")
    assert [e.policy.is_native for e in installed.evaluations("silent")] == [True], "no figure of a policy is kept"
    study = stored(installed, "silent")
    assert study.state == "unproven" and "ran another kernel" in study.reason
    installed("export", "silent", "-o", "deploy.yaml").refused(7, "study silent cannot be trusted: under policy fp8")
    assert not (installed.folder / "deploy.yaml").exists()
    installed("recommend", "--model", DEMO, *clips).refused(7, "study silent cannot be trusted")
    shown = installed("show", "silent").succeeded()
    assert "silent: unproven (under policy fp8" in shown.out
