"""A worker of the service with the real engine: what it is killed at goes on with another one, and proves what ran."""

from __future__ import annotations

import json
import os
import signal

import pytest

from fa_tuner.domain.job import Job
from fa_tuner.domain.study import study_id
from fa_tuner.store.database import Database
from fa_tuner.store.jobs import Jobs
from fa_tuner.worker.requests import check
from tests.support.installed import Installed

from .conftest import DEMO, WORKLOAD

pytestmark = pytest.mark.timeout(400)
TRIALS = 5
ASKED = {
    "model": str(DEMO), "prompts": list(WORKLOAD.prompts[:1]), "height": 48, "width": 48, "frames": 13, "steps": 6,
    "guidance": 3.0, "flow_shift": 3.0, "seeds": [1], "trials": TRIALS, "min_psnr": 40.0,
}  # fmt: skip
OWN = {"FA_TUNE_ENGINE": "vllm-omni", "FA_TUNE_ENGINE_ARGS": json.dumps({"dtype": "float32"})}


def job_of(installed: Installed) -> Job:
    database = Database.open(installed.url)
    try:
        return Jobs(database).job(study_id("s"))
    finally:
        database.close()


def test_a_job_is_killed_and_completed(installed: Installed) -> None:
    check(ASKED)
    database = Database.open(installed.url)
    Jobs(database).submit("s", ASKED)
    database.close()
    victim = installed.start("worker", "--until-idle", **OWN)
    installed.wait_until(victim, lambda: len(installed.evaluations("s")) >= 3, 240)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    before = installed.evaluations("s")
    installed("worker", "--until-idle", **OWN).succeeded()
    evaluations = installed.evaluations("s")
    assert [e.policy for e in evaluations[: len(before)]] == [e.policy for e in before]
    assert len({e.policy.key for e in evaluations}) == len(evaluations) == TRIALS + 1
    assert all(e.measurement is not None and e.measurement.coverage.proven for e in evaluations)
    assert any(e.measurement.coverage.quantized_calls for e in evaluations if e.measurement)
    assert (job_of(installed).state, job_of(installed).reason) == ("finished", "budget")
    assert installed.engines() == []
