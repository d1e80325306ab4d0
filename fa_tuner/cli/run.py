"""`fa-tune run`: tune a workload, or resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import AggregateBy, Constraints, Json, MinPsnr, Quality, Storage, artifacts_of, opened_store
from .workload_options import (
    GOAL,
    SEARCH,
    WORK,
    BoundaryRatio,
    CfgParallel,
    CpuOffload,
    DeployConfig,
    Device,
    DeviceProfile,
    Engine,
    EngineArg,
    FlowShift,
    Frames,
    Guidance,
    Guidance2,
    Height,
    Image,
    LayerwiseOffload,
    LoraPath,
    LoraScale,
    Model,
    NegativePrompt,
    PolicySwitch,
    Prompt,
    PromptsFile,
    Quantization,
    Repeats,
    Revision,
    Seed,
    Steps,
    StudyFile,
    TensorParallel,
    Ulysses,
    VaePatchParallel,
    VaeSlicing,
    VaeTiling,
    Width,
    as_settings,
    option,
)

if TYPE_CHECKING:
    from fa_tuner.planning import TuneRequest


def run(
    context: typer.Context,
    model: Model = None,
    study_file: StudyFile = None,
    engine: Engine = None,
    engine_arg: EngineArg = None,
    device: Device = None,
    revision: Revision = None,
    deploy_config: DeployConfig = None,
    policy_switch: PolicySwitch = None,
    tensor_parallel_size: TensorParallel = None,
    ulysses_degree: Ulysses = None,
    cfg_parallel_size: CfgParallel = None,
    vae_patch_parallel_size: VaePatchParallel = None,
    vae_use_tiling: VaeTiling = None,
    vae_use_slicing: VaeSlicing = None,
    enable_cpu_offload: CpuOffload = None,
    enable_layerwise_offload: LayerwiseOffload = None,
    lora_path: LoraPath = None,
    lora_scale: LoraScale = None,
    quantization: Quantization = None,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    holdout_prompt: Annotated[
        list[str] | None, option("--holdout-prompt", panel=WORK, help="Only checks finalists; repeatable.")
    ] = None,
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
    dtype: Annotated[
        str | None, option("--dtype", panel=GOAL, help="fp8 (default), mxfp8, mxfp4, or several: fp8,mxfp4.")
    ] = None,
    device_profile: DeviceProfile = None,
    repeats: Repeats = None,
    time_every_policy: Annotated[
        bool | None, option("--time-every-policy", panel=GOAL, help="Fit no latency where it can be measured.")
    ] = None,
    study: Annotated[str | None, option("--study", panel=SEARCH, help="Name; default made from the workload.")] = None,
    trials: Annotated[int | None, option("--trials", panel=SEARCH, help="Most policies to measure.")] = None,
    budget: Annotated[str | None, option("--budget", panel=SEARCH, help="Time to search, such as 30m.")] = None,
    sampler: Annotated[
        str | None, option("--sampler", panel=SEARCH, help="rectangle (ours), tpe, nsga2, random, brute-force.")
    ] = None,
    sampler_seed: Annotated[int | None, option("--sampler-seed", panel=SEARCH, help="Of the sampler.")] = None,
    try_: Annotated[
        list[str] | None, option("--try", panel=SEARCH, help='Own policy "STEPS/LAYERS", "0,1/0-2"; repeatable.')
    ] = None,
    storage: Storage = None,
    artifacts: Annotated[str | None, option("--artifacts", panel=SEARCH, help="Folder or URL for frames.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run; stores nothing.")] = False,
    json_: Json = False,
) -> None:
    """Tune a model's skip selectors; the same command resumes where it stopped.

    Ctrl-C once finishes the running policy, twice stops at once; either way nothing measured is lost.
    """
    from fa_tuner.settings import load_run_settings

    flags = as_settings({k: v for k, v in context.params.items() if k not in ("dry_run", "json_")})
    settings = load_run_settings(flags)
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


def _dry_run(request: TuneRequest, json_: bool) -> None:
    from fa_tuner.planning import plan

    from .render import plan_document, print_json, render_plan

    made = plan(request)
    if json_:
        print_json(plan_document(request, made))
    else:
        render_plan(request, made)
