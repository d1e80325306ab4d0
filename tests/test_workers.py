"""Several `fa-tune run` of one study at the same time, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest

from fa_tuner.domain.errors import NotFoundError
from fa_tuner.domain.study import Evaluation
from fa_tuner.store.repository import Store
from tests.contract import test_store_contract as contract
from tests.contract.test_store_contract import ROOT
from tests.support.searched import Oracle

postgres, url = contract.postgres, contract.url  # the store's own fixtures

TRIALS = 24  # three for each step and layer of the landscapes
MEASURED = re.compile(r"^ *\d+ .*% {2}(fp8, skip steps .*?) {2}\[(\w+)\]", re.MULTILINE)

NOT_SLOW: Mapping[str, float] = {}
OWN, KEY = ("--try", "2/1,4"), "fp8:2/1,4"
POSTGRES = pytest.param("postgresql", marks=pytest.mark.slow)

CHILD = """
import json, sys, time
from fa_tuner.cli import main
from fa_tuner.engines.replay import ReplayEngine

slow, commands = map(json.loads, sys.argv[1:])
original = ReplayEngine.generate

def generate(self, policy, *arguments, **named):
    time.sleep(slow.get(policy.key, 0.01))
    return original(self, policy, *arguments, **named)

ReplayEngine.generate = generate
print("ready", flush=True)
sys.stdin.readline()
for command in commands:
    sys.argv = ["fa-tune", *command]
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    print(f"exit {code}", file=sys.stderr, flush=True)
"""


@dataclass(frozen=True)
class Said:
    """What one worker said of one study."""

    code: int
    text: str

    @property
    def measured(self) -> list[str]:
        return [policy for policy, _ in MEASURED.findall(self.text)]

    @property
    def ran_the_baseline(self) -> bool:
        return "baseline run twice" in self.text


@dataclass
class Workers:
    """They share a database and wait for a word to begin."""

    url: str
    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, *studies: str, slow: Mapping[str, float] = NOT_SLOW, more: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """One that is ready to run the studies, each on the landscape of its name. Some policies are `slow` for it:
        by their keys, the seconds that one generation takes."""
        commands = [
            ["run", "--engine", "replay", "--model", f"{name}.json", "--study", name, "--trials", str(TRIALS),
             "--min-psnr", "5", *more]
            for name in studies
        ]  # fmt: skip
        plain = {name: value for name, value in os.environ.items() if not name.startswith("FA_TUNE_")}
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(slow), json.dumps(commands)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
            env={
                **plain, "FA_TUNE_STORAGE": self.url, "FA_TUNE_ARTIFACTS": str(self.folder / "artifacts"),
                "XDG_DATA_HOME": str(self.folder / "home"), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1",
                "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": ROOT,
            },
        )  # fmt: skip
        self.started.append(process)
        return process

    def go(self, *processes: subprocess.Popen[str]) -> None:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def finish(self, process: subprocess.Popen[str]) -> list[Said]:
        """What it said, by study."""
        _, said = process.communicate(timeout=100)
        assert "Traceback" not in said, said
        parts = re.split(r"^exit (\d+)\n", said, flags=re.MULTILINE)
        return [Said(int(code), text) for text, code in zip(parts[::2], parts[1::2], strict=False)]

    def evaluations(self, study: str) -> list[Evaluation]:
        """Without the native one."""
        with Store.open(self.url) as store:
            stored = store.evaluations(study) if any(row.spec.name == study for row in store.studies()) else []
        return [e for e in stored if not e.policy.is_native]

    def holds(self, process: subprocess.Popen[str], study: str, key: str) -> bool:
        with Store.open(self.url) as store, suppress(NotFoundError):
            worker = store.claimed(study).get(key)
            return worker is not None and worker.pid == process.pid
        return False

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not what():
            assert time.monotonic() < deadline, [p.communicate() for p in self.started if p.poll() is not None]
            time.sleep(0.05)


@pytest.fixture
def workers(url: str, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(url, tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def landscapes(workers: Workers, *seeds: int) -> dict[str, Oracle]:
    made = {f"s{seed}": Oracle(3, 5, seed) for seed in seeds}
    for name, known in made.items():
        known.landscape.write(workers.folder / f"{name}.json")
    return made


def assert_each_measured_once(said: Sequence[Said], evaluations: Sequence[Evaluation]) -> None:
    assert Counter(p for worker in said for p in worker.measured) == Counter(str(e.policy) for e in evaluations)
    assert len({e.policy.key for e in evaluations}) == len(evaluations)
    assert [e.number for e in evaluations] == list(range(1, len(evaluations) + 1))
    assert not any(e.failed for e in evaluations)


def test_three_share_a_study_and_find_what_one_finds(workers: Workers) -> None:
    """Study after study, so that the processes are started once."""
    known = landscapes(workers, 1, 2)
    three = [workers.start(*known) for _ in range(3)]
    workers.go(*three)
    by_study = list(zip(*map(workers.finish, three), strict=True))
    ratios = []
    for (name, oracle), said in zip(known.items(), by_study, strict=True):
        evaluations = workers.evaluations(name)
        assert_each_measured_once(said, evaluations)
        assert len(evaluations) <= TRIALS + 2
        assert [worker.code for worker in said] == [0, 0, 0], [worker.text[-300:] for worker in said]
        assert sum(worker.ran_the_baseline for worker in said) == 1
        one, _ = oracle.walk(oracle.search(), TRIALS)
        ratios.append(oracle.volume(e.policy for e in evaluations) / oracle.volume(one))
    assert median(ratios) > 0.99, ratios
    assert sum(bool(worker.measured) for said in by_study for worker in said) > len(known)  # side by side


@pytest.mark.parametrize("url", ["sqlite", POSTGRES], indirect=True)
def test_what_a_killed_worker_was_at_is_measured_by_another(workers: Workers) -> None:
    """It was at the user's own policy, which is measured whatever becomes of it."""
    landscapes(workers, 1)
    victim = workers.start("s1", slow={KEY: 3600}, more=OWN)
    workers.go(victim)
    workers.wait_for(lambda: workers.holds(victim, "s1", KEY))
    others = [workers.start("s1", more=OWN) for _ in range(2)]
    workers.go(*others)
    workers.wait_for(lambda: len(workers.evaluations("s1")) > 5)
    assert workers.holds(victim, "s1", KEY)
    victim.send_signal(signal.SIGKILL)
    _, last_words = victim.communicate()
    said = [workers.finish(process)[0] for process in others]
    evaluations = workers.evaluations("s1")
    assert_each_measured_once([*said, Said(-9, last_words)], evaluations)
    assert [worker.code for worker in said] == [0, 0], [worker.text[-300:] for worker in said]
    assert [e.policy.key for e in evaluations if e.origin == "try"] == [KEY]
    assert len(evaluations) <= TRIALS + 1


@pytest.mark.parametrize("url", ["sqlite", POSTGRES], indirect=True)
def test_the_others_wait_for_what_one_is_at(workers: Workers) -> None:
    """They measure no more than was asked for meanwhile."""
    landscapes(workers, 1)
    random = (*OWN, "--sampler", "random")
    slow = workers.start("s1", slow={KEY: 2}, more=random)
    quick = workers.start("s1", more=random)
    workers.go(slow)
    workers.wait_for(lambda: workers.holds(slow, "s1", KEY))
    workers.go(quick)
    said = [workers.finish(process)[0] for process in (slow, quick)]
    evaluations = workers.evaluations("s1")
    assert_each_measured_once(said, evaluations)
    assert [worker.code for worker in said] == [0, 0], [worker.text[-300:] for worker in said]
    assert KEY in {e.policy.key for e in evaluations} and len(evaluations) <= TRIALS + 1
