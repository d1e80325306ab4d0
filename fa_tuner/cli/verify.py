"""`fa-tune verify`: a release gate for a deploy file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AggregateBy, Constraints, Json, MinPsnr, Quality, Storage, asked, stored
from .workload_options import (
    BoundaryRatio,
    DeviceProfile,
    EngineArg,
    FlowShift,
    Frames,
    Guidance,
    Guidance2,
    Height,
    Image,
    Model,
    NegativePrompt,
    Prompt,
    PromptsFile,
    Repeats,
    Revision,
    Seed,
    Steps,
    StudyFile,
    Width,
    as_settings,
)

if TYPE_CHECKING:
    from fa_tuner.domain.study import Study
    from fa_tuner.planning import TuneRequest
    from fa_tuner.verification import Verdict


def verify(
    context: typer.Context,
    deploy_config: Annotated[
        Path, typer.Option("--deploy-config", help="The deploy YAML to verify.", show_default=False)
    ],
    model: Model = None,
    study: Annotated[
        str | None, typer.Option("--study", help="Take workload and requirement from this study.", show_default=False)
    ] = None,
    study_file: StudyFile = None,
    engine_arg: EngineArg = None,
    revision: Revision = None,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    seed: Seed = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    steps: Steps = None,
    guidance: Guidance = None,
    guidance_2: Guidance2 = None,
    negative_prompt: NegativePrompt = None,
    flow_shift: FlowShift = None,
    boundary_ratio: BoundaryRatio = None,
    image: Image = None,
    min_psnr: MinPsnr = None,
    quality: Quality = None,
    constraint: Constraints = None,
    aggregate: AggregateBy = None,
    device_profile: DeviceProfile = None,
    repeats: Repeats = None,
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """Start vLLM-Omni from a deploy file, and measure its policy on prompts that the search has not seen.

    Exits with 0 where coverage is proven, the requirement is met and the gain is beyond noise, else with 6; with 7
    where the file quantizes nothing.
    """
    from fa_tuner.domain.errors import NothingQualifiesError
    from fa_tuner.verification import verify as verified

    given = {k: v for k, v in context.params.items() if k not in ("study", "json_")}
    earlier = None
    if study is not None:
        with stored(storage) as store:
            earlier = store.study(study)
    request = _request(given, earlier, asked(min_psnr, quality, constraint, aggregate))
    verdict = verified(request, earlier, lambda note: typer.echo(note, err=True))
    _render(verdict, json_)
    if not verdict.passed:
        raise NothingQualifiesError(f"{deploy_config} does not pass: {'; '.join(verdict.misses)}")


def _request(parameters: dict[str, Any], earlier: Study | None, requirement: Any) -> TuneRequest:
    """The run's own settings; with a study, that study's workload, but for what was given beside it."""
    from dataclasses import replace

    from fa_tuner.domain.errors import UsageError
    from fa_tuner.settings import load_run_settings
    from fa_tuner.verification import unseen_workload

    flags = {**as_settings(parameters), "engine": "vllm-omni"}
    if earlier is None:
        request = load_run_settings(flags).request()
        return replace(request, workload=unseen_workload(request.workload, None))
    document = earlier.spec.workload.document()
    known = {
        k: document[k] for k in document.keys() - {"options", "holdout", "task", "image"} if document[k] is not None
    }
    known["prompts"] = list(earlier.spec.workload.holdout)
    if not {"prompts", "prompts_file"} & flags.keys() and not known["prompts"]:
        raise UsageError(f"study {earlier.spec.name} held no prompt out; give some that it has not seen by --prompt")
    request = load_run_settings({**known, **flags}).request()
    return replace(
        request,
        workload=unseen_workload(request.workload, earlier),
        requirement=requirement.beside(earlier.spec.requirement) if requirement else earlier.spec.requirement,
    )


def _render(verdict: Verdict, as_json: bool) -> None:
    from fa_tuner.report.documents import measurement_document, policy_document

    from .render import console, decibels, print_json

    measured, description = verdict.measurement, verdict.description
    how = verdict.requirement.aggregate
    if as_json:
        print_json({
            "passed": verdict.passed, "misses": list(verdict.misses), "requirement": str(verdict.requirement),
            "policy": policy_document(verdict.policy, description.grid), "environment": description.environment,
            "noise_floor_db": verdict.baseline.noise_floor_db, "measurement": measurement_document(measured, how),
        })  # fmt: skip
        return
    out, latency = console(), measured.latency
    spread = f" ±{latency.spread:.1%}, {latency.repeats} repeats" if latency.repeats else ""
    out.print(f"loaded      {verdict.policy}")
    out.print(f"engine      {description.pipeline} on {description.device}, operator {description.operator}")
    out.print(f"coverage    proven: {measured.coverage.quantized_calls} quantized attention calls, "
              f"{measured.coverage.native_calls} native, each where it should be")  # fmt: skip
    out.print(f"latency     gain {latency.gain:.2%}{spread}, {latency.source}"
              + (f" from {latency.detail}" if latency.source == "projected" else ""))  # fmt: skip
    out.print(f"asked for   {verdict.requirement}; noise floor: {decibels(verdict.baseline.noise_floor_db)}")
    for case in measured.cases:
        out.print(f"{decibels(case.metrics['psnr_db']):>11} {case.case.prompt}, seed {case.case.seed}")
    out.print("passed" if verdict.passed else f"not passed: {'; '.join(verdict.misses)}")
