"""Record what every policy does to the demo model, as a landscape for engine `replay` (docs/landscapes.md).

    python studies/demo/record.py --dtype fp8 --steps 4 --out landscape.json.gz

A journal beside the file takes each policy as it is measured: the same command goes on from there. All prompts of the
study file are recorded, the held-out ones too, and for each the shadows of all layers and of each alone at every step.
So small a model gains nothing from a second core: with OMP_NUM_THREADS=1 two dtypes are recorded side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fa_tuner.domain.errors import ConflictError
from fa_tuner.domain.measurement import METRICS, CaseQuality, Coverage, Latency, Measurement
from fa_tuner.domain.policy import DTYPES, Grid, SkipPolicy
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import Engine, Shadow
from fa_tuner.engines.landscape import Landscape, LatencyModel
from fa_tuner.engines.registry import open_engine
from fa_tuner.evaluate.evaluator import NATIVE, Evaluator
from fa_tuner.evaluate.profile import DEFAULT_PROFILE, DeviceProfile, load_profile
from fa_tuner.search.space import Space
from fa_tuner.settings import load_run_settings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PREFIX_CACHE_MB = 64  # the order of the policies needs few prefixes at a time
SAY_EVERY_SECONDS = 30.0


class Journal:
    """What was measured so far, a line of JSON each, the first of which says of what. A line that was cut short is
    measured again."""

    def __init__(self, path: Path, subject: dict[str, Any]) -> None:
        """
        Raises:
            ConflictError: it is of something else.
        """
        found = path.read_bytes() if path.exists() else b""
        whole = found[: found.rfind(b"\n") + 1]
        head, *self.lines = [json.loads(line) for line in whole.splitlines()] or [subject]
        if head != subject:
            raise ConflictError(f"{path} is of {head}, not of {subject}; give another --out, or delete it")
        if whole != found:  # a line that was cut short
            with path.open("r+b") as file:
                file.truncate(len(whole))
        self._path = path
        if not whole:
            self._write(subject)

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self._write(line)

    def delete(self) -> None:
        self._path.unlink()

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def profile_of(dtype: str, attention_ratio: float | None) -> DeviceProfile:
    """The default profile, for a dtype that it has no figure of with the one given."""
    profile = load_profile(DEFAULT_PROFILE)
    if attention_ratio is not None:
        profile = replace(profile, quantized_attention_seconds={dtype: attention_ratio * profile.attention_seconds})
    profile.check(dtype)
    return profile


def shadows_beside_native(engine: Engine, cases: tuple[Case, ...], dtype: str) -> list[list[Any]]:
    """For each case [step, layers, value] of each shadow."""
    grid = engine.describe().grid
    sides = (grid.layers, *((layer,) for layer in grid.layers))
    asked = [Shadow(step, layers, dtype) for step in range(grid.steps) for layers in sides]
    answers = (engine.generate(NATIVE, case, "none", asked).shadows for case in cases)
    return [[[shadow.step, shadow.layers, value] for shadow, value in answer.items()] for answer in answers]


def measured(line: dict[str, Any], cases: tuple[Case, ...], dtype: str, grid: Grid) -> Measurement:
    """A policy's line of the journal."""
    quality = [
        CaseQuality(case, dict(zip(METRICS, values, strict=True)), identical)
        for case, (identical, *values) in zip(cases, line["cases"], strict=True)
    ]
    policy = SkipPolicy.parse(line["policy"], (dtype,), grid)
    return Measurement(policy, Latency(1.0, "projected"), tuple(quality), Coverage(0, 0, 0, True))


def record(workload: Workload, dtype: str, attention_ratio: float | None, out: Path) -> Landscape:
    profile = profile_of(dtype, attention_ratio)
    searched = replace(workload, prompts=workload.prompts + workload.holdout, holdout=())
    engine = open_engine("diffusers", searched, {"device": "cpu", "prefix_cache_mb": PREFIX_CACHE_MB})
    described, cases = engine.describe(), searched.cases
    grid = described.grid
    subject = {"workload": workload.fingerprint, "environment": described.fingerprint, "dtype": dtype}
    journal = Journal(out.with_name(f"{out.name}.journal"), subject)
    evaluator = Evaluator(engine, searched, profile, note=say)
    _, baseline = evaluator.run_baseline()
    if not any("shadows" in line for line in journal.lines):
        journal.add({"shadows": shadows_beside_native(engine, cases, dtype)})

    done = {line["policy"] for line in journal.lines if "policy" in line}
    ahead = [policy for policy in Space(grid, (dtype,)).policies() if _text(policy) not in done]
    say(f"{len(done)} policies recorded, {len(ahead)} ahead, {len(cases)} generations each")
    began = said = time.monotonic()
    for count, policy in enumerate(ahead, 1):
        measurement, _ = evaluator.measure(policy)
        rows = [[q.identical, *(q.metrics[name] for name in METRICS)] for q in measurement.cases]
        journal.add({"policy": _text(policy), "cases": rows})
        if (now := time.monotonic()) - said > SAY_EVERY_SECONDS:
            each, said = (now - began) / count, now
            say(f"{count} of {len(ahead)}, {each:.2f} s a policy, {each * (len(ahead) - count) / 60:.0f} min left")
    engine.close()

    shares = profile.attention_seconds / profile.dit_seconds
    ratio = profile.quantized_attention_seconds[dtype] / profile.attention_seconds
    assumed = f"attention ratio {ratio:g} as given" if attention_ratio is not None else f"ratio of {profile.name}"
    (shadows,) = (line["shadows"] for line in journal.lines if "shadows" in line)
    landscape = Landscape.from_measurements(
        replace(workload, model=named(workload.model)),
        replace(described, dtypes=(dtype,)),
        [measured(line, cases, dtype, grid) for line in journal.lines if "policy" in line],
        made_by=f"studies/demo/record.py; emulated operator; latency projected: share of {profile.name}, {assumed}",
        noise_floor_db=baseline.noise_floor_db,
        latency=LatencyModel(
            baseline.native_seconds / len(cases),
            baseline.native_end_to_end_seconds / len(cases),
            shares,
            {dtype: ratio},
        ),
        shadows={
            case: {Shadow(step, tuple(layers), dtype): value for step, layers, value in answers}
            for case, answers in zip(cases, shadows, strict=True)
        },
    )
    landscape.write(out)
    journal.delete()
    return landscape


def named(model: str) -> str:
    """A model of this repository by its path in it: another machine has it elsewhere."""
    path = Path(model)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else model


def _text(policy: SkipPolicy) -> str:
    return f"{policy.skip_steps}/{policy.skip_layers}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, required=True)
    parser.add_argument("--steps", type=int, required=True, help="of the denoising, in place of the study file's")
    parser.add_argument("--out", type=Path, required=True, help="the landscape, compressed where it ends in .gz")
    parser.add_argument("--config", type=Path, default=HERE / "study.yaml", help="study file with the workload")
    parser.add_argument(
        "--attention-ratio", type=float,
        help=f"quantized over native attention time, for a dtype that profile {DEFAULT_PROFILE} has no figure of",
    )  # fmt: skip
    given = parser.parse_args()
    workload = replace(load_run_settings({"study_file": given.config}).workload(), steps=given.steps)
    landscape = record(workload, given.dtype, given.attention_ratio, given.out)
    say(f"{given.out}: {landscape.size} policies")


if __name__ == "__main__":
    main()
