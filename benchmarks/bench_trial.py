"""Where the seconds of a trial go, and how long `fa-tune --help` takes: `python benchmarks/bench_trial.py`.

A study of two cases of 13 frames of 48x48 is run for 20 trials, filled up to 290 with evaluations from a formula, and
resumed for 20 more. Each part is timed where it is called; what no part claims is "rest" (fronts, ranking). Our own
code is all but generation and Optuna. The model is studies/demo/model where it is, else random weights of that size.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Threads that spin at OpenMP's barriers take the cores from each other as soon as anything else runs; to be set first.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["HF_HUB_OFFLINE"] = "1"

from rich.console import Console
from rich.table import Table

from fa_tuner import tuning
from fa_tuner.domain.measurement import Coverage, Latency, Measurement
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.study import Baseline, Evaluation
from fa_tuner.engines.base import Description
from fa_tuner.engines.diffusers import DiffusersEngine
from fa_tuner.engines.synthetic import Synthetic
from fa_tuner.evaluate import coverage, quality
from fa_tuner.search.space import Space
from fa_tuner.search.study import PolicySearch
from fa_tuner.settings import RunSettings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.repository import Store

ROOT = Path(__file__).parents[1]
EARLY, FILLED, LATE = 20, 290, 310
TARGET_MS, HELP_TARGET_S = 50.0, 0.4
PARTS = ("generation", "Optuna", "metrics", "coverage", "store", "artifacts")
OWN = ("metrics", "coverage", "store", "artifacts", "rest")


class Stopwatch:
    """A `tuning.Observer`: seconds by part, one row a trial: from one evaluation's end to the next one's."""

    def __init__(self) -> None:
        self.trials: dict[int, dict[str, float]] = {}
        self._now: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()
        self._running = False

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its time added to `part` unless another part is running, which then has it."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if self._running:
                return call(*arguments, **named)
            self._running, start = True, time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self._running = False
                self._now[part] += time.perf_counter() - start

        return wrapped

    def opened(self, description: Description, policies: int) -> None: ...
    def baseline(self, baseline: Baseline, reused: bool) -> None: ...
    def holdout(self, policy: SkipPolicy, met: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def stop_requested(self) -> bool:
        return False

    def evaluated(self, evaluation: Evaluation, done: int, best: Measurement | None) -> None:
        now = time.perf_counter()
        self._now["rest"] = now - self._since - sum(self._now.values())
        self.trials[done] = dict(self._now)
        self._now.clear()
        self._since = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "studies" / "demo" / "model")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model if arguments.model.is_dir() else random_model(Path(folder) / "model")
        trials = measured(Path(folder), model, arguments.sampler, arguments.steps)
        help_seconds = help_times(Path(folder))
    console.print(table(trials, f"milliseconds a trial, sampler {arguments.sampler}, {arguments.steps} steps"))
    middle = statistics.median(help_seconds)
    low, high = min(help_seconds), max(help_seconds)
    console.print(f"fa-tune --help: {middle:.2f} s ({low:.2f} to {high:.2f}, 7 runs), target <= {HELP_TARGET_S} s")
    console.print(
        f"{platform.machine()} CPU, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, model {'studies/demo' if model == arguments.model else 'of random weights'}"
    )


def random_model(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT))
    from tests.support.tiny_wan import make_tiny_wan

    return make_tiny_wan(folder, layers=8)


def measured(folder: Path, model: Path, sampler: str, steps: int) -> dict[int, dict[str, float]]:
    """Seconds by part for the trials that were really run, by number."""
    watch = Stopwatch()
    for part, owner, names in (
        ("generation", DiffusersEngine, ("generate",)),
        ("Optuna", PolicySearch, ("ask", "tell", "tell_failed", "enqueue")),
        ("metrics", quality, ("compare",)),
        ("coverage", coverage, ("prove", "total")),
        ("store", Store, ("add_evaluation", "evaluations", "evaluation", "study", "add_front", "set_state")),
        ("artifacts", Artifacts, tuple(name for name in vars(Artifacts) if name.startswith(("put", "keep", "used")))),
        ("artifacts", clips(), ("encode_clip",)),
    ):  # fmt: skip
        for name in names:
            setattr(owner, name, watch.timed(part, getattr(owner, name)))

    storage = f"sqlite:///{folder / 'fa-tune.db'}"
    settings = RunSettings(
        model=str(model), prompts=["digit seven moving left", "red digit three moving right"], height=48, width=48,
        frames=13, steps=steps, guidance=4.0, device="cpu", min_psnr=20.0, sampler=sampler, study="bench",
        storage=storage, artifacts=str(folder / "artifacts"), trials=EARLY,
    )  # fmt: skip
    artifacts = Artifacts(settings.artifact_root, 2**30)
    with Store.open(storage) as store:
        tuning.tune(settings.request(), store, artifacts, watch, storage)
        fill(store, settings)
        later = settings.model_copy(update={"trials": LATE})
        tuning.tune(later.request(), store, artifacts, watch, storage)
    return watch.trials


def clips() -> Any:
    from fa_tuner.report import clips

    return clips


def fill(store: Store, settings: RunSettings) -> None:
    """Evaluations of random policies, as if they had been run."""
    study, known = store.study("bench"), {e.policy.key for e in store.evaluations("bench")}
    grid, workload = study.spec.grid, study.spec.workload
    space = Space(grid, study.spec.dtypes)
    formula = formula_for(grid, workload)
    seed = 0
    while len(known) <= FILLED:
        seed += 1
        policy = space.draw(seed)
        if policy.key in known:
            continue
        cases = tuple(q for case in workload.cases if (q := formula.quality(policy, case)) is not None)
        proof = Coverage(100, 100, 100, True)
        latency = Latency(1 - 0.1 * policy.share(grid), "projected", detail="filled")
        evaluation = Evaluation(policy, "sampler", len(known), Measurement(policy, latency, cases, proof, seconds=1.0))
        store.add_evaluation("bench", evaluation)
        known.add(policy.key)


def formula_for(grid: Grid, workload: Any) -> Synthetic:
    samples = workload.frames * workload.height * workload.width * 3
    return Synthetic(grid, workload.cases, samples, seed=1, psnr_db={"fp8": 33.0})


def table(trials: dict[int, dict[str, float]], title: str) -> Table:
    result = Table(title=title)
    result.add_column("trial")
    for name in (*PARTS, "rest", "our own code", "target"):
        result.add_column(name, justify="right")

    def row(label: str, chosen: list[dict[str, float]], target: str = "") -> None:
        cells = [statistics.median(1e3 * trial.get(part, 0.0) for trial in chosen) for part in (*PARTS, "rest")]
        own = statistics.median(1e3 * sum(trial.get(part, 0.0) for part in OWN) for trial in chosen)
        result.add_row(label, *(f"{cell:.1f}" for cell in cells), f"{own:.1f}", target)

    # the first trial of a run holds opening the model and the baseline
    early = {number: trial for number, trial in trials.items() if 1 < number <= EARLY}
    late = {number: trial for number, trial in trials.items() if number > FILLED + 1}
    for number in (2, 5, 10, 15, 20):
        row(str(number), [early[number]])
    row("2 to 20, median", list(early.values()))
    result.add_section()
    for number in (FILLED + 2, 300, LATE):
        row(str(number), [late[number]])
    row(f"{FILLED + 2} to {LATE}, median", list(late.values()), f"<= {TARGET_MS:.0f}")
    return result


def help_times(folder: Path) -> list[float]:
    """Seconds of seven runs of `fa-tune --help`, with bytecode that an eighth compiled before."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    command = [str(Path(sys.executable).with_name("fa-tune")), "--help"]
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


if __name__ == "__main__":
    main()
