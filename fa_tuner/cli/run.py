"""`fa-tune run`: tune a workload, or resume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AggregateBy, Constraints, Json, MinPsnr, Quality, Storage, artifacts_of, given, opened_store

if TYPE_CHECKING:
    from fa_tuner.planning import TuneRequest

_MODEL, _WORK, _GOAL, _SEARCH = "Model and engine", "Workload", "Goal", "Search"


def _option(*names: str, panel: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


def run(
    context: typer.Context,
    model: Annotated[
        str | None, _option("--model", panel=_MODEL, help="Folder or hub id of a diffusers pipeline.")
    ] = None,
    study_file: Annotated[
        Path | None, _option("--study-file", panel=_MODEL, help="YAML with any of these settings.")
    ] = None,
    engine: Annotated[str | None, _option("--engine", panel=_MODEL, help="diffusers (default) or replay.")] = None,
    engine_arg: Annotated[
        list[str] | None, _option("--engine-arg", panel=_MODEL, help="key=value; repeatable.")
    ] = None,
    device: Annotated[str | None, _option("--device", panel=_MODEL, help="cpu, cuda or npu.")] = None,
    revision: Annotated[str | None, _option("--revision", panel=_MODEL, help="Of a hub model.")] = None,
    prompt: Annotated[list[str] | None, _option("--prompt", panel=_WORK, help="Repeatable.")] = None,
    prompts_file: Annotated[Path | None, _option("--prompts-file", panel=_WORK, help="One prompt a line.")] = None,
    holdout_prompt: Annotated[
        list[str] | None, _option("--holdout-prompt", panel=_WORK, help="Only checks finalists; repeatable.")
    ] = None,
    seed: Annotated[list[int] | None, _option("--seed", panel=_WORK, help="Repeatable.")] = None,
    height: Annotated[int | None, _option("--height", panel=_WORK, help="Pixels.")] = None,
    width: Annotated[int | None, _option("--width", panel=_WORK, help="Pixels.")] = None,
    frames: Annotated[int | None, _option("--frames", "--num-frames", panel=_WORK, help="Frames of a clip.")] = None,
    steps: Annotated[
        int | None, _option("--steps", "--num-inference-steps", panel=_WORK, help="Denoising steps.")
    ] = None,
    guidance: Annotated[float | None, _option("--guidance", "--guidance-scale", panel=_WORK, help="CFG scale.")] = None,
    guidance_2: Annotated[
        float | None, _option("--guidance-2", panel=_WORK, help="Of the low-noise transformer.")
    ] = None,
    negative_prompt: Annotated[str | None, _option("--negative-prompt", panel=_WORK, help="For guidance.")] = None,
    flow_shift: Annotated[float | None, _option("--flow-shift", panel=_WORK, help="Scheduler's.")] = None,
    boundary_ratio: Annotated[
        float | None, _option("--boundary-ratio", panel=_WORK, help="Wan2.2's expert boundary.")
    ] = None,
    image: Annotated[Path | None, _option("--image", panel=_WORK, help="Makes it image-to-video.")] = None,
    min_psnr: MinPsnr = None,
    quality: Quality = None,
    constraint: Constraints = None,
    aggregate: AggregateBy = None,
    dtype: Annotated[str | None, _option("--dtype", panel=_GOAL, help="fp8 (default), mxfp8 or mxfp4.")] = None,
    device_profile: Annotated[
        str | None, _option("--device-profile", panel=_GOAL, help="Project latency from it (name or file).")
    ] = None,
    repeats: Annotated[
        int | None, _option("--repeats", panel=_GOAL, help="Timed repeats where latency is measured.")
    ] = None,
    study: Annotated[
        str | None, _option("--study", panel=_SEARCH, help="Name; default made from the workload.")
    ] = None,
    trials: Annotated[int | None, _option("--trials", panel=_SEARCH, help="Policies to measure (40).")] = None,
    budget: Annotated[str | None, _option("--budget", panel=_SEARCH, help="Time to search, such as 30m.")] = None,
    sampler: Annotated[str | None, _option("--sampler", panel=_SEARCH, help="tpe, nsga2, random, brute-force.")] = None,
    sampler_seed: Annotated[int | None, _option("--sampler-seed", panel=_SEARCH, help="Of the sampler.")] = None,
    try_: Annotated[
        list[str] | None, _option("--try", panel=_SEARCH, help='Own policy "STEPS/LAYERS", "0,1/0-2"; repeatable.')
    ] = None,
    storage: Storage = None,
    artifacts: Annotated[str | None, _option("--artifacts", panel=_SEARCH, help="Folder or URL for frames.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run; stores nothing.")] = False,
    json_: Json = False,
) -> None:
    """Tune a model's skip selectors; the same command resumes where it stopped.

    Ctrl-C once finishes the running policy, twice stops at once; either way nothing measured is lost.
    """
    from fa_tuner.settings import load_run_settings

    flags = {k: v for k, v in context.params.items() if k not in ("dry_run", "json_")}
    for flag, setting in (
        ("engine_arg", "engine_args"), ("prompt", "prompts"), ("holdout_prompt", "holdout_prompts"), ("seed", "seeds"),
        ("constraint", "constraints"), ("try_", "tries"),
    ):  # fmt: skip
        flags[setting] = flags.pop(flag)
    if flags["engine_args"]:
        flags["engine_args"] = _key_values(flags["engine_args"])
    settings = load_run_settings(given(flags))
    request = settings.request()
    if dry_run:
        _dry_run(request, json_)
        return

    from fa_tuner.recommend.question import recommend_from
    from fa_tuner.tuning import tune

    from .progress import LiveProgress
    from .render import print_json, render_result, result_document

    with opened_store(settings) as store, LiveProgress(request) as progress:
        finished = tune(request, store, artifacts_of(settings), progress, settings.url)
        evaluations = store.evaluations(finished.spec.name)
    if json_:
        print_json(result_document(finished, evaluations))
    else:
        render_result(finished, evaluations)
    recommend_from(finished, evaluations, None)  # raises where nothing qualifies: exit code 6, after the tables


def _key_values(pairs: list[str]) -> dict[str, str]:
    from fa_tuner.domain.errors import UsageError

    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--engine-arg {pair[:60]!r} is not of the form key=value")
    return dict(pair.split("=", 1) for pair in pairs)


def _dry_run(request: TuneRequest, json_: bool) -> None:
    from fa_tuner.planning import plan

    from .render import plan_document, print_json, render_plan

    made = plan(request)
    if json_:
        print_json(plan_document(request, made))
    else:
        render_plan(request, made)
