"""How often the recommendation is right where clocks are noisy: `python benchmarks/bench_noise.py [--seeds 100]`.

Each seed is a clock, on one of ten landscapes of engine `replay`, whose times count as measured, with 5 % noise, drift
and outliers. The recommendation is right where it truly gains and no policy that meets the threshold, of all there are,
is truly faster by more than the noise of two such figures: the stated spread times the square root of 2.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.progress import track
from rich.table import Table

from fa_tuner.domain.errors import NothingQualifiesError
from fa_tuner.domain.measurement import Constraint, Requirement
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Recommendation
from fa_tuner.engines.base import Generation
from fa_tuner.engines.landscape import Landscape
from fa_tuner.engines.replay import ReplayEngine
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.recommend.question import recommend_from
from fa_tuner.search.space import Space
from fa_tuner.settings import load_run_settings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.repository import Store
from fa_tuner.tuning import Observer, tune

NOISE = "spread=0.05,drift=0.1,outliers=0.05"
STEPS, LAYERS, MIN_PSNR = 4, 6, 40.0


class Silent(Observer):
    def opened(self, *_: object) -> None: ...
    def baseline(self, *_: object, **__: object) -> None: ...
    def evaluated(self, *_: object) -> None: ...
    def holdout(self, *_: object) -> None: ...
    def note(self, text: str) -> None: ...
    def stop_requested(self) -> bool:
        return False


class Counting(ReplayEngine):
    """Counts its generations; a study has one engine."""

    generations = 0

    def generate(self, *asked: Any, **named: Any) -> Generation:
        Counting.generations += 1
        return super().generate(*asked, **named)


def meets(landscape: Landscape, policy: SkipPolicy, wanted: Requirement) -> bool:
    work = landscape.workload
    cases = [landscape.record.quality(policy, case) for case in work.cases]
    return wanted.met_by([case for case in cases if case is not None])


def study_of(seed: int, folder: Path, **more: Any) -> tuple[Landscape, Recommendation | None]:
    landscape = synthetic_landscape(
        STEPS, LAYERS, prompts=2, seed=seed % 10, disagreement=0.2, attention_share=0.7,
        attention_ratio={"fp8": 0.5, "mxfp8": 0.5, "mxfp4": 0.4},
    )  # fmt: skip
    landscape.write(folder / "landscape.json")
    url = f"sqlite:///{folder / 's.db'}"
    settings = load_run_settings({
        "engine": "replay", "model": str(folder / "landscape.json"), "study": "s", "min_psnr": MIN_PSNR,
        "engine_args": {"noise": f"{NOISE},seed={seed}", "latency": "measured"}, "sampler_seed": seed,
        **more,
    })  # fmt: skip
    Counting.generations = 0
    with patch("fa_tuner.engines.registry.engine_class", lambda _: Counting), Store.open(url) as store:
        finished = tune(settings.request(), store, Artifacts(str(folder / "a"), 2**20), Silent(), url)
        try:
            return landscape, recommend_from(finished, store.evaluations("s"), None)
        except NothingQualifiesError:
            return landscape, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--time-every-policy", action="store_true")
    given = parser.parse_args()
    seeds, more = given.seeds, {"time_every_policy": True} if given.time_every_policy else {}
    memory = Path("/dev/shm")
    wanted = Requirement((Constraint("psnr_db", ">=", MIN_PSNR),))
    right, none, lost, spreads, generations, began = 0, 0, [], [], [], time.monotonic()
    for seed in track(range(seeds), console=Console(stderr=True)):
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
            landscape, made = study_of(seed, Path(folder), **more)
        generations.append(Counting.generations)
        policies = Space(landscape.grid, ("fp8",)).policies()
        able = [landscape.relative_latency(p) for p in policies if meets(landscape, p, wanted)]
        best = min(able, default=1.0)
        if made is None:
            none += 1
            right += not able
            continue
        true, spread = landscape.relative_latency(made.policy), made.measurement.latency.spread
        lost.append(true - best)
        spreads.append(spread)
        right += true <= best + math.sqrt(2) * spread * true and true < 1
    table = Table(title=f"{STEPS} steps x {LAYERS} layers, at least {MIN_PSNR:g} dB, noise {NOISE}, {seeds} seeds")
    for name in (
        "right",
        "no recommendation",
        "lost against the best, median",
        "worst",
        "stated spread, median",
        "generations, mean",
        "s a study",
    ):
        table.add_column(name, justify="right")
    table.add_row(
        f"{right} of {seeds}", str(none), f"{median(lost):.3f}", f"{max(lost):.3f}", f"{median(spreads):.3f}",
        f"{mean(generations):.0f}", f"{(time.monotonic() - began) / seeds:.1f}",
    )  # fmt: skip
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
