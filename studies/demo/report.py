"""Show what the demo model does: a picture of samples, and its sensitivity by step and by layer.

    python studies/demo/report.py

Writes `samples.png` and the tables between the markers in `README.md`, both in this folder. Takes about two
minutes on two cores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from fa_tuner.domain.measurement import aggregate
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.base import Engine
from fa_tuner.engines.registry import open_engine
from fa_tuner.evaluate.coverage import prove
from fa_tuner.evaluate.quality import compare
from fa_tuner.report.clips import contact_sheet
from fa_tuner.settings import load_run_settings

HERE = Path(__file__).parent
SAMPLES = (
    "digit seven moving left", "red digit three moving right", "green digit zero moving up",
    "blue digit four moving down", "digit two moving right", "red digit nine moving left",
    "blue digit six moving up", "green digit five moving left",
)  # fmt: skip
DTYPES = ("fp8", "mxfp8", "mxfp4")


def draw_samples(workload: Workload) -> None:
    """One row a prompt, at the size and steps of the demo study."""
    shown = replace(workload, prompts=SAMPLES, holdout=())
    engine = open_engine("diffusers", shown, {"device": "cpu"})
    rows = [(case.prompt, engine.generate(SkipPolicy(), case).frames) for case in shown.cases]
    contact_sheet(rows, columns=7, scale=2).save(HERE / "samples.png", optimize=True)
    engine.close()


def one_step(dtype: str, step: int, grid: Grid) -> SkipPolicy:
    """Only this step quantized, in all layers."""
    return SkipPolicy(dtype, SkipSelector.of(i for i in range(grid.steps) if i != step))


def one_layer(dtype: str, layer: int, grid: Grid) -> SkipPolicy:
    """Only this layer quantized, in all steps."""
    return SkipPolicy(dtype, skip_layers=SkipSelector.of(i for i in grid.layers if i != layer))


def worst_psnr(engine: Engine, workload: Workload) -> Callable[[SkipPolicy], float]:
    """Worst-prompt PSNR of a policy against native, every run's coverage proven."""
    native = {case: engine.generate(SkipPolicy(), case).frames for case in workload.cases}

    def measure(policy: SkipPolicy) -> float:
        seen = []
        for case, reference in native.items():
            generation = engine.generate(policy, case)
            prove(engine.describe(), policy, generation)
            assert reference is not None and generation.frames is not None
            seen.append(compare(case, reference, generation.frames))
        return aggregate(seen, "psnr_db", "worst")

    return measure


def table(
    title: str,
    indices: tuple[int, ...],
    policy: Callable[[str, int], SkipPolicy],
    measure: Callable[[SkipPolicy], float],
) -> Iterator[str]:
    """Markdown: a row an index, a column a dtype."""
    yield f"| only this {title} quantized | {' | '.join(DTYPES)} |"
    yield f"|---|{'---|' * len(DTYPES)}"
    for index in indices:
        yield f"| {index} | {' | '.join(f'{measure(policy(dtype, index)):.1f}' for dtype in DTYPES)} |"


def main() -> None:
    workload = load_run_settings({"study_file": HERE / "study.yaml"}).workload()
    draw_samples(workload)
    engine = open_engine("diffusers", workload, {"device": "cpu"})
    grid, measure = engine.describe().grid, worst_psnr(engine, workload)
    everything = {dtype: measure(SkipPolicy(dtype)) for dtype in DTYPES}
    lines = [
        f"Worst-prompt PSNR in dB against the native run, {grid}, over the prompts searched in `study.yaml`.",
        "",
        "| quantized | " + " | ".join(DTYPES) + " |",
        "|---|" + "---|" * len(DTYPES),
        "| everything | " + " | ".join(f"{everything[dtype]:.1f}" for dtype in DTYPES) + " |",
        "",
        *table("step", tuple(range(grid.steps)), lambda d, i: one_step(d, i, grid), measure),
        "",
        *table("layer", grid.layers, lambda d, i: one_layer(d, i, grid), measure),
    ]
    readme = HERE / "README.md"
    text = re.sub(
        r"(?s)(<!-- sensitivity -->\n).*(<!-- /sensitivity -->)",
        lambda found: found[1] + "\n".join(lines) + "\n" + found[2],
        readme.read_text(encoding="utf-8"),
    )
    readme.write_text(text, encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
