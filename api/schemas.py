"""What the service answers, as OpenAPI has it. A key whose value is not known is left out; every number is finite."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from .fields import LEFT_OUT, Document, Dtype, JobState, Left, Moment, Number, Share, State, no_default


class Difference(Document):
    """In what a stored study is not what was asked for."""

    field: str = Field(examples=["steps"])
    asked: str | int | bool = Field(examples=[20])
    stored: str | int | bool = Field(examples=[40])


class NearestStudy(Document):
    study: str
    study_id: str
    model: str
    differences: list[Difference]
    link: str = Field(examples=["/api/v1/studies/9f86d081884c7d65"])


class Problem(BaseModel):
    """RFC 9457."""

    type: str = Field(examples=["urn:fa-tune:not-found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no study of id '9f86d081884c7d65' in sqlite:////data/fa-tune.db"])


class NoMatch(Problem):
    """No study matches. `nearest` are up to five that differ least, the nearest first."""

    nearest: list[NearestStudy]


class Policy(Document):
    """Which steps and layers stay native. `id` is what it goes by in URLs."""

    id: str = Field(pattern="^[0-9a-f]{64}$")
    dtype: Literal["native", "fp8", "mxfp8", "mxfp4"]
    skip_steps: str = Field(examples=["0,1,38,39"])
    skip_layers: str = Field(examples=["0-2"])
    native: bool
    share_quantized: Share


class Latency(Document):
    """`relative` to native (1), `gain` is 1 - relative; `spread` the relative half-width of the repeats."""

    source: Literal["measured", "fitted", "projected"]
    relative: Number
    gain: Number
    spread: Number
    repeats: int
    detail: str
    seconds: Number | Left = LEFT_OUT
    end_to_end_seconds: Number | Left = LEFT_OUT


class Case(Document):
    """Quality against the native baseline for one prompt and seed."""

    prompt: str
    seed: int
    identical: bool
    metrics: dict[str, Number] = Field(examples=[{"psnr_db": 34.1, "ssim": 0.96}])


class Coverage(Document):
    """Attention calls that were counted."""

    proven: bool
    quantized_calls: int
    native_calls: int


class Measured(Document):
    """`psnr_db` and `ssim` are aggregated over the prompts as `aggregate` says."""

    latency: Latency
    psnr_db: Number
    ssim: Number
    aggregate: str = Field(examples=["worst"])
    prompts: list[Case]
    holdout_prompts: list[Case]
    coverage: Coverage
    seconds: Number = Field(description="what measuring it took")
    detail: dict[str, Any]
    peak_memory_mb: Number | Left = LEFT_OUT


class MeasuredPolicy(Measured):
    number: int = Field(description="in the order of evaluation, from 0")
    origin: str = Field(examples=["predicted"])
    policy: Policy
    failed: Literal[False]


class FailedPolicy(Document):
    number: int
    origin: str
    policy: Policy
    failed: Literal[True]
    reason: str


class FrontPoint(MeasuredPolicy):
    feasible: bool = Field(description="whether it meets the study's requirement")
    holdout_met: bool | Left = Field(
        None, description="whether it does so on held-out prompts, too; absent where that was not checked",
        json_schema_extra=no_default,
    )  # fmt: skip


class Workload(Document):
    """Everything about a request. Null stands for the model's own value, in `revision` and `image` for none."""

    model: str
    prompts: list[str]
    height: int
    width: int
    frames: int
    steps: int
    revision: str | None
    task: str
    holdout: list[str]
    seeds: list[int]
    guidance: Number
    guidance_2: Number | None
    negative_prompt: str
    flow_shift: Number | None
    boundary_ratio: Number | None
    image: str | None
    options: dict[str, Any]


class LatencyFit(Document):
    """Residuals `rms` and `worst` in shares of native latency."""

    dtype: Dtype
    timed: int
    overhead: Number
    saving: Number
    rms: Number
    worst: Number
    holds: bool
    doubt: str


class StudyLinks(Document):
    self: str
    front: str
    trials: str
    sensitivity: str
    events: str
    exports: dict[str, str]


class Study(Document):
    """`evaluated` counts the policies measured, the native one not among them; `target` is how many are wanted."""

    study: str = Field(description="its name")
    id: str = Field(pattern="^[0-9a-f]{16}$")
    state: State
    reason: str
    target: int
    evaluated: int
    dtype: str = Field(examples=["fp8", "fp8,mxfp4"])
    requirement: list[str] = Field(examples=[["psnr_db>=30"]])
    aggregate: str
    sampler: str
    sampler_seed: int
    latency_source: Literal["measured", "projected"]
    workload: Workload
    workload_fingerprint: str
    environment: dict[str, Any]
    created: Moment
    updated: Moment = Field(description="when its last figure was stored")
    links: StudyLinks
    latency_profile: str | Left = LEFT_OUT
    noise_floor_db: Number | Left = Field(
        None, description="absent before the baseline was run", json_schema_extra=no_default
    )


class Studies(Document):
    """A page, newest first. `next_cursor` and `next` are absent on the last one."""

    studies: list[Study]
    next_cursor: str | Left = LEFT_OUT
    next: str | Left = LEFT_OUT


class ShadowAgreement(Document):
    """How well the shadow probes foretell what was measured: rank correlation of squared errors, and dB missed."""

    prompt: str
    seed: int
    policies: int
    rank_correlation: Number
    spread_db: Number


class JobLinks(Document):
    study: str
    events: str
    cancel: str
    resume: str


class Job(Document):
    """A study that was asked for. `workers` may be at it at once; `attempts` were in vain since it last got on;
    `problem` is the type of the error that `reason` tells."""

    study: str = Field(description="its name")
    id: str = Field(pattern="^[0-9a-f]{16}$", description="the study's")
    model: str
    state: JobState
    reason: str
    attempts: int
    workers: int
    request: dict[str, Any] = Field(examples=[{"model": "Wan-AI/Wan2.2-T2V-A14B-Diffusers", "min_psnr": 30}])
    created: Moment
    updated: Moment
    links: JobLinks
    problem: str | Left = Field(None, examples=["urn:fa-tune:engine-unavailable"], json_schema_extra=no_default)


class Jobs(Document):
    """A page, newest first. `next_cursor` and `next` are absent on the last one."""

    jobs: list[Job]
    next_cursor: str | Left = LEFT_OUT
    next: str | Left = LEFT_OUT


class SearchedStudy(Study):
    """With what the search cost, in generations of every prompt, and how far its predictions were right, where it made
    any. `front_untimed` policies belong on the front by a latency that is only fitted. A `job` is there where it was
    asked for."""

    generation_equivalents: Number
    latency_fits: list[LatencyFit] | Left = LEFT_OUT
    shadow_agreement: list[ShadowAgreement] | Left = LEFT_OUT
    front_untimed: int | Left = LEFT_OUT
    job: Job | Left = LEFT_OUT


class Front(SearchedStudy):
    """The Pareto front, fastest first, and the recommended policy where there is one."""

    front: list[FrontPoint]
    recommended: MeasuredPolicy | Left = LEFT_OUT


class Trials(Document):
    """A page of evaluations in the order in which they were made."""

    trials: list[MeasuredPolicy | FailedPolicy]
    next_cursor: str | Left = LEFT_OUT
    next: str | Left = LEFT_OUT


class DtypeSensitivity(Document):
    """Shares of the squared error: each list adds up to 1."""

    dtype: Dtype
    steps: list[Share]
    layers: list[Share]


class PromptSensitivity(Document):
    prompt: str
    seed: int
    dtypes: list[DtypeSensitivity]


class Sensitivity(Document):
    """By the error model, fitted to the `measured` policies; `steps` and `layers` are the indices of the shares."""

    study: str
    id: str
    measured: int
    steps: list[int]
    layers: list[int]
    prompts: list[PromptSensitivity]


class HoldsFor(Document):
    steps: int
    height: int
    width: int
    frames: int
    guidance: Number
    task: str


class Evidence(Document):
    """Of one searched prompt and seed, where frames were kept."""

    case: int
    baseline_frames: str
    baseline_clip: str
    frames: str
    clip: str


class RecommendationLinks(Document):
    study: str
    front: str
    exports: dict[str, str] = Field(description="by format")
    evidence: list[Evidence] = Field(description="404 where nothing was kept; empty where nothing was generated")


class Recommendation(Measured):
    """`verified` is false where no study matched and the nearest one answers, which `differences` then describe."""

    model: str
    study: str
    study_id: str
    verified: bool
    differences: list[Difference]
    policy: Policy
    worst_psnr_db: Number
    requirement: list[str]
    holdout: Literal["not checked", "passed", "failed"]
    noise_floor_db: Number
    holds_for: HoldsFor
    environment: dict[str, Any]
    environment_fingerprint: str
    workload_fingerprint: str
    measured: Moment
    age_seconds: Number = Field(ge=0, description="since `measured`")
    notes: list[str]
    links: RecommendationLinks


class WaitingStudy(Document):
    """A study that was asked for and that no worker has begun yet."""

    study: str
    id: str = Field(pattern="^[0-9a-f]{16}$")
    state: JobState
    reason: str
    job: Job
    links: StudyLinks


class Picture(Document):
    """A picture that was sent; `image` is what a request for an image-to-video study names."""

    image: str = Field(pattern="^[0-9a-f]{64}$")
    width: int
    height: int


class Health(Document):
    status: Literal["ok"]


class Ready(Document):
    status: Literal["ready"]
    workers: int = Field(description="that live")
