"""What driving the real engine costs beside what it generates: `make bench-omni`.

vLLM-Omni on the emulated NPU of tests/omni: the quantized operator is plain torch on a CPU, so generation times say
nothing of a device. What is shown is fa-tune's own part: starting the engine, switching policies, and the share of a
study that is not generation, with and without the reuse of prefixes, side by side in one run.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["HF_HUB_OFFLINE"] = "1"

from rich.console import Console
from rich.table import Table

from fa_tuner import tuning
from fa_tuner.domain.measurement import Measurement
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Baseline, Evaluation
from fa_tuner.engines.base import Description
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.planning import TuneRequest
from fa_tuner.settings import RunSettings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.repository import Store

ROOT = Path(__file__).parents[1]
TARGET = 0.03
SMALL = (48, 48, 13, 6)  # height, width, frames, steps
SIZES = (SMALL, (96, 96, 33, 6), (96, 96, 33, 24))
Size = tuple[int, int, int, int]


class Clock:
    """A `tuning.Observer` that takes the wall time of each policy, from one evaluation's end to the next one's."""

    def __init__(self) -> None:
        self.walls: list[float] = []
        self.engine: list[float] = []
        self.reused = 0
        self._since = 0.0

    def opened(self, description: Description, policies: int) -> None: ...
    def holdout(self, policy: SkipPolicy, met: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def stop_requested(self) -> bool:
        return False

    def baseline(self, baseline: Baseline, reused: bool) -> None:
        self._since = time.perf_counter()

    def evaluated(self, evaluation: Evaluation, done: int, best: Measurement | None) -> None:
        assert evaluation.measurement is not None, evaluation.reason
        now = time.perf_counter()
        detail = evaluation.measurement.detail
        self.walls.append(now - self._since)
        self.engine.append(float(detail["engine_end_to_end_seconds"]))
        self.reused += int(detail["steps_reused"])
        self._since = now

    @property
    def share(self) -> float:
        """Of the time that was not generation. The run that checks whether resuming is exact is generation as well,
        and not in the engine's figure, so the policy that it falls on is left out: that with the longest wall time
        beyond its generation."""
        spent = sorted(zip(self.walls, self.engine, strict=True), key=lambda p: p[0] - p[1])[:-1]
        return 1 - sum(engine for _, engine in spent) / sum(wall for wall, _ in spent)


def request(size: Size, trials: int, study: str, cache_mb: int) -> TuneRequest:
    height, width, frames, steps = size
    return RunSettings(
        model=str(ROOT / "studies" / "demo" / "model"), engine="vllm-omni", prompts=["digit seven moving left"],
        height=height, width=width, frames=frames, steps=steps, guidance=3.0, flow_shift=3.0, min_psnr=20.0,
        study=study, trials=trials, engine_args={"dtype": "float32", "prefix_cache_mb": str(cache_mb)},
    ).request()  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    trials = parser.parse_args().trials
    console = Console(width=120)
    console.print(starting_and_switching())
    table = Table(title=f"a study of {trials} policies, one prompt; target: at most {TARGET:.0%} not generation")
    columns = ("size", "steps", "prefixes", "s a generation", "s beside it", "not generation", "steps run", "study s")
    for column in columns:
        table.add_column(column, justify="right")
    for size in SIZES:
        height, width, frames, steps = size
        for cache_mb, label in ((0, "none kept"), (4096, "reused")):
            clock, seconds = studied(size, trials, cache_mb)
            beside = median(wall - engine for wall, engine in zip(clock.walls, clock.engine, strict=True))
            table.add_row(
                f"{height}x{width}x{frames}", str(steps), label, f"{median(clock.engine):.2f}", f"{beside:.2f}",
                f"{clock.share:.1%}", f"{1 - clock.reused / (steps * trials):.0%}", f"{seconds:.0f}",
            )  # fmt: skip
    console.print(table)
    console.print(
        f"{platform.machine()} CPU, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}; no NPU was used"
    )


def starting_and_switching() -> Table:
    work = request(SMALL, 1, "none", 0)
    starts = []
    for _ in range(2):
        began = time.perf_counter()
        engine = VllmOmniEngine.open(work.workload, work.engine_options)
        starts.append(time.perf_counter() - began)
        if len(starts) < 2:
            engine.close()
    case, grid = work.workload.cases[0], engine.describe().grid
    policies = [SkipPolicy.parse(text, ("fp8",), grid) for text in ("0/", "/0")]
    around: dict[str, list[float]] = {"the same policy again": [], "another policy": []}
    generations = []
    for turn in range(24):
        for what, policy in (("another policy", policies[turn % 2]), ("the same policy again", policies[turn % 2])):
            began = time.perf_counter()
            generation = engine.generate(policy, case)
            around[what].append(time.perf_counter() - began - generation.end_to_end_seconds)
            generations.append(generation.end_to_end_seconds)
    engine.close()
    table = Table(title="engine start and policy switch, 48x48x13")
    for column in ("what", "median", "least", "most"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = (
        ("engine start: process, imports, model (a restart for each policy would cost that)", starts, 1.0, "s"),
        ("one generation, end to end", generations, 1.0, "s"),
        ("around a generation, the same policy again", around["the same policy again"], 1e3, "ms"),
        ("around a generation, another policy: switched and read back", around["another policy"], 1e3, "ms"),
    )
    for what, seconds, scale, unit in rows:
        table.add_row(what, *(f"{x * scale:.2f} {unit}" for x in (median(seconds), min(seconds), max(seconds))))
    return table


def studied(size: Size, trials: int, cache_mb: int) -> tuple[Clock, float]:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/fa-tune.db"
        with Store.open(storage) as store:
            tuning.tune(
                request(size, trials, "bench", cache_mb), store, Artifacts(f"{folder}/artifacts", 2**30), clock, storage
            )
    return clock, sum(clock.walls)


if __name__ == "__main__":
    main()
