"""The comment block of an export: what the policy is for, and what is known about it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fa_tuner.documents import one_line
from fa_tuner.domain.measurement import IDENTICAL_DB, CaseQuality, Latency, aggregate
from fa_tuner.domain.study import Recommendation, StudySpec
from fa_tuner.domain.workload import Workload
from fa_tuner.export.target import Target

WIDTH = 110
PROMPT_CHARACTERS = 60
MAX_CASES = 32
_LABEL = 14


def comment_block(recommendation: Recommendation, stage_id: int, target: Target, note: str = "") -> str:
    """Lines that each begin with "#", between a begin and an end mark for that stage."""
    begin, end = _marks(stage_id)
    lines = [begin, *_lines(recommendation, stage_id, target, note), end]
    return "".join(f"{line}\n" for line in lines)


def replace_block(text: str, block: str, stage_id: int, newline: str) -> str:
    """`text` with `block` in the place of the earlier block for that stage, or at the top."""
    begin, end = (re.escape(mark) for mark in _marks(stage_id))
    earlier = re.compile(rf"^{begin}\r?\n(?:#[^\n]*\n)*?{end}(?=\r?$)", re.MULTILINE)
    written = block.rstrip("\n").replace("\n", newline)
    if earlier.search(text):
        return earlier.sub(lambda _: written, text, count=1)
    return f"{written}{newline}{newline}{text}"


def fa_tune_version() -> str:
    try:
        return version("fa-tune")
    except PackageNotFoundError:
        return "(not installed)"


def _marks(stage_id: int) -> tuple[str, str]:
    return f"# >>> fa-tune, stage {stage_id} >>>", f"# <<< fa-tune, stage {stage_id} <<<"


def _lines(recommendation: Recommendation, stage_id: int, target: Target, note: str) -> Iterator[str]:
    spec = recommendation.study.spec
    workload, environment = spec.workload, spec.environment
    yield from _wrapped(f"Attention policy for stage {stage_id}: {recommendation.policy}.")
    written = f"By fa-tune {fa_tune_version()} from study {one_line(spec.name)}, {_date(recommendation.study.updated)}."
    yield from _wrapped(written)
    if note:
        yield from _wrapped(note)
    yield "#"
    yield from _wrapped(
        f"WARNING: holds for {workload.steps} steps only. A stage's selectors are fixed, while a request may choose "
        "another number of steps; then they name other parts of the denoising, and nothing below applies."
    )
    yield "#"
    yield from _entry("model", f"{one_line(workload.model)}, revision {one_line(workload.revision or 'not pinned')}")
    settings = dict(environment.get("settings") or {})
    yield from _entry("request", _request(workload, settings.pop("flow_shift", None)))
    yield from _entry("seeds", ", ".join(map(str, workload.seeds)))
    yield from _entry("engine", _engine(environment))
    if settings:
        yield from _entry("settings", ", ".join(f"{one_line(k)} {one_line(str(v))}" for k, v in settings.items()))
    yield from _entry("versions", _versions(environment.get("versions") or {}))
    yield from _entry("latency", _latency(recommendation.measurement.latency, spec))
    for caveat in _caveats(recommendation.measurement.latency, environment):
        yield from _entry("", caveat)
    yield from _quality(recommendation)
    yield from _entry("requirement", str(recommendation.requirement))
    baseline = recommendation.study.baseline
    yield from _entry("noise floor", "not measured" if baseline is None else _floor(baseline.noise_floor_db))
    for remark in recommendation.notes:
        yield from _entry("note", one_line(remark))
    yield "#"
    yield from _wrapped(
        "A call runs native if its step is in the step selector or its layer in the layer selector; "
        f'"" skips nothing. {target.remarks(recommendation)}'
    )


def _floor(decibels: float) -> str:
    if decibels >= IDENTICAL_DB:
        return "none, two native runs were identical"
    return f"{decibels:.2f} dB PSNR, native against native"


def _date(when: datetime) -> str:
    moment = when if when.tzinfo is None else when.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _request(workload: Workload, shift: float | None) -> str:
    """`shift` is the flow shift that the engine found in force, None where it did not say."""
    shift = workload.flow_shift if shift is None else shift
    guidance = f"guidance {workload.guidance:g}"
    if workload.guidance_2 is not None:
        guidance += f" and {workload.guidance_2:g}"
    parts = [
        f"{workload.steps} steps",
        f"{workload.width}x{workload.height}",
        f"{workload.frames} frames",
        guidance,
        f"flow shift {'as in the model' if shift is None else f'{shift:g}'}",
        one_line(workload.task),
    ]
    return ", ".join(parts)


def _engine(environment: Mapping[str, Any]) -> str:
    parts = [f"{name} {one_line(str(environment.get(name, 'unknown')))}" for name in ("device", "operator", "pipeline")]
    return ", ".join([one_line(str(environment.get("engine", "unknown"))), *parts])


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{one_line(str(n))} {one_line(str(v))}" for n, v in sorted(versions.items())) or "not recorded"


def _latency(latency: Latency, spec: StudySpec) -> str:
    source = str(latency.source)
    if source == "projected":
        source += f" from device profile {one_line(spec.latency_profile or 'unnamed')}"
    parts = [f"{latency.relative:.4f} of native denoising time, gain {latency.gain:.1%}, {source}"]
    if latency.seconds is not None:
        parts.append(f"{latency.seconds:.3f} s")
    if latency.end_to_end_seconds is not None:
        parts.append(f"{latency.end_to_end_seconds:.3f} s end to end")
    if latency.repeats:
        parts.append(f"spread +-{latency.spread:.1%}, {latency.repeats} repeats")
    return "; ".join(parts)


def _caveats(latency: Latency, environment: Mapping[str, Any]) -> Iterator[str]:
    device = str(environment.get("device", "unknown"))
    if latency.source != "measured":
        yield f"This latency is {latency.source}, not measured: it did not run on an NPU."
    elif not any(word in device.lower() for word in ("npu", "ascend")):
        yield f"This latency was measured on {one_line(device)}, not on an NPU."
    operator = environment.get("operator")
    if operator == "emulated":
        yield "The attention operator was emulated: the quality shown did not come from an NPU."
    elif operator == "replayed":
        yield "The results were replayed from a recording: nothing was generated for this study."


def _quality(recommendation: Recommendation) -> Iterator[str]:
    measurement = recommendation.measurement
    worst, *others = recommendation.requirement.aggregates
    beside = "".join(f"{how} {measurement.psnr_db(how):.2f} dB, " for how in others)
    yield from _entry(
        "quality",
        f"PSNR {worst} prompt {measurement.psnr_db(worst):.2f} dB, {beside}"
        f"worst frame {aggregate(measurement.cases, 'worst_frame_psnr_db', 'worst'):.2f} dB",
    )
    yield from _cases(measurement.cases)
    holdout = recommendation.holdout
    if not holdout:
        yield from _entry("held out", "none: checked on no prompt that the search had not seen")
        return
    verdict = {True: "requirement met", False: "requirement MISSED", None: "not judged"}[recommendation.holdout_met]
    seen = "".join(f", {how} {aggregate(holdout, 'psnr_db', how):.2f} dB" for how in others if how != "mean")
    yield from _entry("held out", f"PSNR worst prompt {aggregate(holdout, 'psnr_db', 'worst'):.2f} dB{seen}, {verdict}")
    yield from _cases(holdout)


def _cases(cases: Iterable[CaseQuality]) -> Iterator[str]:
    seen = list(cases)
    for quality in seen[:MAX_CASES]:
        shown = "identical" if quality.identical else f"{quality.metrics['psnr_db']:.2f} dB"
        prompt = one_line(quality.case.prompt, PROMPT_CHARACTERS)
        yield f"#   {'':{_LABEL}}{shown:>9}  seed {quality.case.seed}: {prompt}"
    if len(seen) > MAX_CASES:
        yield f"#   {'':{_LABEL}}and {len(seen) - MAX_CASES} more"


def _entry(label: str, text: str) -> Iterator[str]:
    return _wrapped(text, f"#   {label:{_LABEL}}", f"#   {'':{_LABEL}}")


def _wrapped(text: str, first: str = "# ", then: str = "#   ") -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False)
