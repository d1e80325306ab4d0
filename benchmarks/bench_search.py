"""How fast searches find the front: `python benchmarks/bench_search.py [--quick] [--only NAME] [--plot FILE]`.

Every method measures policies through engine `replay`, so that all pay alike: a generation equivalent (GE) is one
generation of every prompt, a resumed run costs the steps that it ran, a shadow probe one transformer forward; the two
native runs, alike for all, are left out. All begin with everything quantized and search the front, without a threshold
but where the table says so. Hypervolume is over the share of cells quantized and worst-prompt PSNR clipped to
[P, P + 25 dB], P that of everything quantized, as a share of the exhaustive front's; where there is none, of the best
known: all policies that any method or the annealing here ever measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices: a second thread only waits

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table
from search_methods import HEIGHTS, METHODS, ONE_DTYPE, OPTUNAS, SHADOWED, Method, Oracle, Spent, rectangle

from fa_tuner.domain import pareto
from fa_tuner.domain.pareto import Objectives
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.engines.landscape import Landscape
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.search.acquisition import SPAN_DB, Goal
from fa_tuner.search.study import PolicySearch, Score

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "studies" / "landscapes"
STOP_GE = 300.0  # where Optuna's samplers give up
ENOUGH = 0.95  # of the hypervolume, for "GE to 0.95"
ANNEALED = 5000  # evaluations, for the best known policy at a threshold

Point = tuple[float, float]  # share of cells quantized, worst-prompt PSNR in dB


@dataclass
class Scene:
    """A landscape and the dtypes that are searched; `best` are the points of its best known front."""

    name: str
    landscape: Landscape
    dtypes: tuple[str, ...]
    recorded: bool
    best: list[Point] = field(default_factory=list)
    base: float = 0.0

    @property
    def size(self) -> int:
        return len(self.dtypes) * self.landscape.grid.steps + len(self.landscape.grid.layers)

    def run(self, method: Method, budget: float, seed: int) -> Oracle:
        oracle = Oracle(self.landscape, self.dtypes, budget)
        with contextlib.suppress(Spent):
            method(oracle, seed)
        return oracle


def hypervolume(points: Sequence[Point], base: float) -> float:
    """Of share and PSNR clipped to the box, over (0, base), as a share of the box."""
    clipped = (Objectives(1 - share, min(quality, base + SPAN_DB)) for share, quality in points)
    return pareto.hypervolume(clipped, Objectives(1.0, base)) / SPAN_DB


def exhaustive(scene: Scene) -> list[Point]:
    oracle = Oracle(scene.landscape, scene.dtypes, float("inf"))
    for policy in scene.landscape.record.policies or ():
        oracle.mse(policy)
    return [(share, quality) for _, share, quality in oracle.log]


def annealed(scene: Scene, threshold: float, seed: int = 0, evaluations: int = ANNEALED) -> list[Point]:
    """Simulated annealing of the largest share at the threshold: the points it came through."""
    oracle, draw = Oracle(scene.landscape, scene.dtypes, float("inf")), random.Random(seed)
    count, size = oracle.grid.steps, scene.size
    state = [draw.random() < 0.5 for _ in range(size)]

    def value(flags: list[bool]) -> float:
        policy = oracle.policy(flags[:count], flags[count:])
        if policy.is_native:
            return 0.0
        return oracle.share(policy) - 0.05 * max(0.0, threshold - oracle.psnr(policy))

    now = value(state)
    for step in range(evaluations):
        changed = state.copy()
        for index in draw.sample(range(size), 1 if draw.random() < 0.5 else 2):
            changed[index] = not changed[index]
        new, heat = value(changed), 0.05 * (1 - step / evaluations) ** 2 + 1e-6
        if new >= now or draw.random() < np.exp((new - now) / heat):
            state, now = changed, new
    return [(share, quality) for _, share, quality in oracle.log]


def thresholds(scene: Scene) -> list[float]:
    """Those of the five that some policy meets."""
    best = max(quality for _, quality in scene.best)
    return [t for t in (scene.base + SPAN_DB * height for height in HEIGHTS) if t <= best]


def largest(points: Sequence[Point], threshold: float) -> float:
    return max((share for share, quality in points if quality >= threshold), default=0.0)


def scenes(quick: bool) -> Iterator[Scene]:
    recorded: dict[str, list[Landscape]] = {}
    for path in sorted(RECORDED.glob("*.json.gz")):
        landscape = Landscape.read(path)
        recorded.setdefault(landscape.workload.fingerprint, []).append(landscape)
        yield Scene(path.name.removesuffix(".json.gz"), landscape, landscape.dtypes, True)
    for parts in recorded.values():
        if len(parts) > 1:  # one workload recorded in several dtypes: one front over them
            joined = Landscape.joined(parts)
            yield Scene(f"demo-{'+'.join(joined.dtypes)}-{joined.grid.steps}", joined, joined.dtypes, True)
    sizes = [(4, 30), (8, 30)] if quick else [(4, 30), (8, 30), (20, 40), (50, 60)]
    for index, (steps, layers) in enumerate(sizes):
        traits = {"interactions": (0.3, 0.5, 0.8)[index % 3], "cliffs": index % 3, "disagreement": 0.5}
        made = synthetic_landscape(
            steps, layers, 3, seed=index, psnr_db={"fp8": 33.0}, shadow_noise=0.2, growth=0.3, **traits
        )  # type: ignore[arg-type]
        yield Scene(f"synthetic {steps}x{layers}", made, ("fp8",), False)


def cpu_table(trials: int = 500, timed: int = 20) -> Table:
    """CPU milliseconds of one proposal at that many trials of the largest grid, and what Optuna's SQLite storage takes
    for the trial beside it: asked, told, with all its parameters and attributes."""
    steps, layers = 50, 60
    landscape = synthetic_landscape(steps, layers, 3, seed=1, psnr_db={"fp8": 33.0}, interactions=0.5)
    oracle, draw = Oracle(landscape, ("fp8",), float("inf")), np.random.default_rng(0)
    grid = oracle.grid
    search_ms, storage_ms = [], []
    memory = Path("/dev/shm")  # CPU time counts; waiting for a disk would make this take minutes
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        url = f"sqlite:///{folder}/optuna.db"
        search = PolicySearch(url, "s", oracle.space, "rectangle", 0, Goal(), True)
        sampler = search._study.sampler
        propose = sampler.propose

        def clocked(*arguments: Any) -> Any:
            began = time.process_time()
            found = propose(*arguments)
            search_ms.append(1e3 * (time.process_time() - began))
            return found

        def score(policy: SkipPolicy) -> Score:
            return Score(1 - policy.share(grid) / 10, oracle.psnr(policy), {}, oracle.mse(policy))

        everything = SkipPolicy("fp8")
        policies = {everything.key: everything}
        while len(policies) < trials:
            flags = [(draw.random(size) < draw.random()).tolist() for size in (steps, layers)]
            policy = oracle.policy(*flags)
            if not policy.is_native:
                policies[policy.key] = policy
        search.reconcile({key: (policy, "sampler", score(policy)) for key, policy in policies.items()})
        sampler.propose = clocked  # type: ignore[method-assign]
        for _ in range(timed):
            began, before = time.process_time(), sum(search_ms)
            proposal = search.ask()
            assert not isinstance(proposal, str)
            asked = time.process_time() - began
            told = score(proposal.policy)
            began = time.process_time()
            search.tell(proposal, told)
            whole = asked + time.process_time() - began
            storage_ms.append(1e3 * whole - (sum(search_ms) - before))
    table = Table(title=f"CPU ms a trial after {trials} trials, {grid}, 3 prompts; median (most) of {timed}")
    for name in ("our sampler", "target", "Optuna's storage beside it"):
        table.add_column(name, justify="right")
    shown = [f"{median(values):.0f} ({max(values):.0f})" for values in (search_ms, storage_ms)]
    table.add_row(shown[0], "50", shown[1])
    return table


def at(oracle: Oracle, cost: float) -> list[Point]:
    return [(share, quality) for spent, share, quality in oracle.log if spent <= cost + 1e-9]


def reached(oracle: Oracle, scene: Scene, whole: float) -> float | None:
    """GE to `ENOUGH` of the hypervolume; None where it never was."""
    points: list[Point] = []
    for spent, share, quality in oracle.log:
        points.append((share, quality))
        if hypervolume(points, scene.base) >= ENOUGH * whole:
            return spent
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three seeds, small landscapes, no thresholds")
    parser.add_argument("--only", help="landscapes with one of these, by commas, in their name")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="only the CPU time of a trial on a large grid")
    parser.add_argument("--plot", type=Path, help="write hypervolume against GE as a picture")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    out = Console(width=170)
    out.print(f"{platform.platform()}, Python {platform.python_version()}, Optuna {optuna.__version__}")
    if options.cpu:
        out.print(cpu_table())
        return
    seeds = range(3 if options.quick else options.seeds)
    curves: dict[str, dict[str, list[Oracle]]] = {}
    wholes: dict[str, float] = {}
    shown: dict[str, Scene] = {}
    for scene in scenes(options.quick):
        if options.only and not any(part in scene.name for part in options.only.split(",")):
            continue
        began = time.monotonic()
        runs = searched(scene, seeds)
        scene.base = max(next(iter(runs.values()))[0].log, key=lambda point: point[1])[2]  # of everything quantized
        if scene.recorded:
            scene.best = exhaustive(scene)
        else:
            scene.best = [p for made in runs.values() for oracle in made for p in at(oracle, float("inf"))]
            for height in HEIGHTS:
                scene.best += annealed(scene, scene.base + SPAN_DB * height)
        curves[scene.name], wholes[scene.name] = runs, hypervolume(scene.best, scene.base)
        shown[scene.name] = scene
        out.print(front_table(scene, runs, wholes[scene.name]))
        if not options.quick:
            out.print(threshold_table(scene, seeds))
        out.print(f"[{time.monotonic() - began:.0f} s]", highlight=False, markup=False)
        sys.stdout.flush()
    if options.plot:
        plot(options.plot, shown, curves, wholes)


def searched(scene: Scene, seeds: Sequence[int]) -> dict[str, list[Oracle]]:
    methods = {**METHODS, **({SHADOWED: rectangle(shadowed=True)} if scene.landscape.has_shadows else {})}
    runs: dict[str, list[Oracle]] = {}
    for name, method in methods.items():
        ours = name in ("rectangle", SHADOWED)  # which ends by itself
        budget = STOP_GE if name in OPTUNAS or ours else 2.0 * scene.size
        once = name in ONE_DTYPE  # nothing random in them
        if once and len(scene.dtypes) > 1:
            continue
        runs[name] = [scene.run(method, budget, seed) for seed in (seeds[:1] if once else seeds)]
    return runs


def front_table(scene: Scene, runs: dict[str, list[Oracle]], whole: float) -> Table:
    budget = 2.0 * scene.size
    grid = scene.landscape.grid
    early = 10 + 2 * len(grid.layers) / grid.steps
    table = Table(
        title=f"{scene.name} {'+'.join(scene.dtypes)}: {grid}; share of the "
        f"{'exhaustive' if scene.recorded else 'best known'} hypervolume ({whole:.3f} of the box), "
        f"median (worst) of {len(runs['rectangle'])} seeds",
        title_justify="left",
    )  # fmt: skip
    table.add_column("method")
    marks = {f"{budget / 4:.1f} GE": budget / 4, f"{early:.1f}": early, f"{budget:.0f}": budget, "300": STOP_GE}
    for name in (*marks, "GE to 0.95", "over ours"):
        table.add_column(name, justify="right")
    ours = median(reached(o, scene, whole) or float("inf") for o in runs["rectangle"])
    for name, made in runs.items():
        cells = []
        for cost in marks.values():
            values = [hypervolume(at(oracle, cost), scene.base) / whole for oracle in made]
            cells.append(f"{median(values):.3f} ({min(values):.3f})" if cost <= made[0].budget else "")
        took = [reached(oracle, scene, whole) for oracle in made]
        typical = median(t if t is not None else float("inf") for t in took)
        ratio = (STOP_GE if typical == float("inf") else typical) / ours
        never = typical == float("inf")
        table.add_row(
            name, *cells, "never" if never else f"{typical:.1f}",
            "" if ours == float("inf") or (never and name not in OPTUNAS) else f"{'> ' if never else ''}{ratio:.1f}",
        )  # fmt: skip
    return table


def threshold_table(scene: Scene, seeds: Sequence[int]) -> Table:
    budget = 2.0 * scene.size
    table = Table(
        title=f"{scene.name}: gain at a threshold over the best known, after {budget:.0f} GE", title_justify="left"
    )
    for name in ("threshold dB", "best share", "ours, median", "worst"):
        table.add_column(name, justify="right")
    for threshold in thresholds(scene):
        values = []
        for seed in seeds:
            oracle = scene.run(rectangle(False, threshold), budget, seed)
            values.append(largest(at(oracle, budget), threshold))
        best = max(largest(scene.best, threshold), *values)
        ratios = [value / best for value in values]
        table.add_row(f"{threshold:.1f}", f"{best:.3f}", f"{median(ratios):.3f}", f"{min(ratios):.3f}")
    return table


def plot(
    path: Path, shown: dict[str, Scene], curves: dict[str, dict[str, list[Oracle]]], wholes: dict[str, float]
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (name, runs) in zip(axes.flat, curves.items(), strict=False):
        scene, whole = shown[name], wholes[name]
        costs = np.linspace(1, 3.0 * scene.size, 90)
        for method, made in runs.items():
            known = [c for c in costs if c <= made[0].budget]
            shares = [median(hypervolume(at(o, c), scene.base) / whole for o in made) for c in known]
            style = {"linewidth": 2.4} if method.startswith("rectangle") else {"linewidth": 1.2, "alpha": 0.8}
            axis.plot(known, shares, label=method, **style)
        axis.axvline(2.0 * scene.size, color="0.7", linestyle=":")
        axis.set(title=name, xlabel="generation equivalents", ylabel="share of hypervolume", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
