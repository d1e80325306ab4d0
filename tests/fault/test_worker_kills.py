"""kill -9 of a worker at seeded points: nothing is lost, nothing is there twice, another worker completes the study."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fa_tuner.domain.study import Evaluation
from tests.contract import test_store_contract as contract
from tests.contract.test_store_contract import ROOT
from tests.support.measured import unchecked
from tests.support.worked import Yard

postgres, url = contract.postgres, contract.url  # the store's own fixtures

KILLS = 50
JOBS = 10
STATEMENTS = 330  # about what one job of `TRIALS` trials sends to the database, Optuna's among them

# One interpreter that has loaded everything; each worker is a fork of it, which kills itself at its statement.
WORKERS = """
import json, os, signal, sys
import sqlalchemy as sa
from fa_tuner.settings import WorkerSettings
from fa_tuner.worker.loop import WorkerLoop
import fa_tuner.search.study, fa_tuner.engines.replay, fa_tuner.store.migrations
from tests.support.worked import Observer

def work(statement):
    count = 0

    @sa.event.listens_for(sa.engine.Engine, "before_cursor_execute")
    def dying(*_):
        nonlocal count
        count += 1
        if count == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    nobody = lambda _study, _done: None
    WorkerLoop(
        WorkerSettings(max_attempts=1000), lambda request, stop: Observer(stop, nobody), lambda text: None
    ).run(until_idle=True)
    return count

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            print("statements", work(int(line)), file=sys.stderr, flush=True)
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Workers, one after the other."""

    def __init__(self, yard: Yard) -> None:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("FA_TUNE_")}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WORKERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={
                **plain, "FA_TUNE_STORAGE": yard.url, "FA_TUNE_ARTIFACTS": str(yard.folder / "artifacts"),
                "FA_TUNE_ENGINE": "replay", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": ROOT,
            },
        )  # fmt: skip

    def work(self, statement: int) -> int:
        """Until nothing is left to do, or killed at that statement; the exit code."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{statement}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self.end()
        return int(line)

    def end(self) -> str:
        """What they said."""
        return self._process.communicate()[1]


def all_evaluations(yard: Yard) -> dict[str, list[Evaluation]]:
    with yard.opened() as (_, store):
        return {study.spec.name: unchecked(store.evaluations(study.spec.name)) for study in store.studies()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [pytest.param(5, id="few"), pytest.param(KILLS, marks=pytest.mark.slow, id="all")])
def test_killed_at_seeded_points(url: str, tmp_path: Path, kills: int) -> None:
    yard, jobs = Yard(url, tmp_path), -(-kills * JOBS // KILLS)
    names = [f"s{i}" for i in range(jobs)]
    for i, name in enumerate(names):
        yard.ask(name, model=yard.landscape(i), sampler_seed=i)
    forks, draw = Forks(yard), random.Random(kills)
    killed, known = 0, all_evaluations(yard)
    for _ in range(kills):
        killed += forks.work(draw.randrange(1, STATEMENTS)) == -9
        now = all_evaluations(yard)
        for name, before in known.items():
            assert now[name][: len(before)] == before, name  # nothing lost, nothing changed
        for name, evaluations in now.items():
            assert len({e.policy.key for e in evaluations}) == len(evaluations), name  # nothing twice
        known = now
    assert killed >= 0.9 * kills, f"only {killed} of {kills} were killed before they were done"
    assert forks.work(0) == 0  # another one, which nobody kills
    assert "Traceback" not in forks.end()
    for name in names:
        yard.assert_whole(name)
