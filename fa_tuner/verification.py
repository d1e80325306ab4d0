"""The use case "does this deploy file keep what it promises?": a release gate, on prompts that no search has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fa_tuner.domain.errors import ConflictError, NotQuantizedError, UsageError
from fa_tuner.domain.measurement import Measurement, Requirement
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Baseline, Evaluation, Study, differing
from fa_tuner.domain.upstream import PIPELINE_TO_NAME, model_class
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import Description
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.evaluate.coverage import prove
from fa_tuner.evaluate.evaluator import Evaluator
from fa_tuner.evaluate.quality import compare
from fa_tuner.planning import TuneRequest, profile_for
from fa_tuner.recommend.choice import Candidate, check_floor

if TYPE_CHECKING:
    from fa_tuner.engines.base import Frames


@dataclass(frozen=True)
class Verdict:
    """What was measured of the policy that the engine loaded from the file; `misses` is empty where it passed."""

    policy: SkipPolicy
    description: Description
    baseline: Baseline
    measurement: Measurement
    requirement: Requirement
    misses: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.misses


NOISE_MARGIN_DB = 3.0  # the noise of a quantized run may exceed that of two native ones


def differences(study: Study, description: Description) -> list[str]:
    """What differs between a study's environment and that of a file, each as "name (study: a, here: b)"; the deploy
    configuration itself is meant to."""
    found = differing(study.spec.environment, description.environment)
    return [f"{name} (study: {a}, here: {b})" for name, a, b in found if name != "settings deploy_config_sha256"]


def unseen_workload(workload: Workload, study: Study | None) -> Workload:
    """All prompts of the workload, none of them held out.

    Raises:
        UsageError: a prompt that the study searched on.
    """
    prompts = workload.prompts + workload.holdout
    if study is not None and (seen := [p for p in prompts if p in study.spec.workload.prompts]):
        raise UsageError(f"prompt {seen[0][:40]!r} was searched on in study {study.spec.name}; give one that was not")
    return replace(workload, prompts=prompts, holdout=())


def verify(request: TuneRequest, study: Study | None = None, note: Callable[[str], None] = lambda _: None) -> Verdict:
    """Start the engine from the request's deploy configuration, as it is, and measure it against the native baseline.

    The file's policy runs first, as it was loaded, and is proven there; only then is the engine switched to native and
    back. With a `study` the environment must be the one it was tuned in.

    Raises:
        ConflictError: it is another one.
        NotQuantizedError: the file asks for no quantized attention, or it did not take effect.
        UsageError: the policy is one for another number of steps.
        ThresholdError, EngineError: as in tuning.
    """
    engine = VllmOmniEngine.open(request.workload, {**request.engine_options, "as_deployed": True})
    try:
        description = engine.describe()
        if study is not None and (other := differences(study, description)):
            raise ConflictError(
                f"study {study.spec.name} was tuned in another environment: {'; '.join(other)}. Give what it was tuned "
                "with by --engine-arg, or verify without --study"
            )
        policy = _loaded(engine, request)
        profile = profile_for(replace(request, dtypes=(policy.dtype,)), description)
        evaluator = Evaluator(engine, request.workload, profile, request.repeats, note)
        first = engine.generate(policy, request.workload.cases[0])
        prove(description, policy, first)
        native, baseline = evaluator.run_baseline()
        check_floor(request.requirement, baseline)
        measurement, clips = evaluator.measure(policy)
        _check_same(request.workload.cases[0], clips[0], first.frames, baseline)
    finally:
        engine.close()
    violations = request.requirement.violations(measurement.cases)
    misses = [f"{constraint} is missed by {by:.4g}" for constraint, by in violations.items() if by > 0]
    candidate = Candidate(Evaluation(policy, "try", 1, measurement), measurement, native.latency.spread)
    if not candidate.gains_beyond_noise:
        latency = measurement.latency
        misses.append(f"a gain of {latency.gain:.1%} is within the timing noise of ±{latency.spread:.1%}")
    return Verdict(policy, description, baseline, measurement, request.requirement, tuple(misses))


def _check_same(case: Case, switched: Frames, loaded: Frames | None, baseline: Baseline) -> None:
    """What was measured is the policy after a switch; the file is served as it was loaded. Both must be one, as far as
    two runs of one thing are one here."""
    assert loaded is not None
    quality = compare(case, switched, loaded)
    if quality.metrics["psnr_db"] < baseline.noise_floor_db - NOISE_MARGIN_DB:
        raise NotQuantizedError(
            f"the policy as loaded and the same one switched to agree to {quality.metrics['psnr_db']:.2f} dB only, and "
            f"two native runs to {baseline.noise_floor_db:.2f} dB: what was loaded is something else"
        )


def _loaded(engine: VllmOmniEngine, request: TuneRequest) -> SkipPolicy:
    """The file's policy, on this workload's steps and layers."""
    file, grid = request.engine_options.get("deploy_config"), engine.describe().grid
    asked = engine.deployed
    if asked.is_native:
        raise NotQuantizedError(
            f"{file}: the engine loaded from it quantizes nothing. The three diffusion_kv_cache_* keys belong under "
            "platforms: npu: stages: with a matching stage_id under stages:, or into the stage itself; vLLM-Omni drops "
            f"them in silence at the top level and where no stage matches{_unread(engine.describe().pipeline)}"
        )
    for what, indices, bound in (
        ("step", asked.skip_steps, grid.steps),
        ("layer", asked.skip_layers, grid.layer_bound),
    ):
        if beyond := [i for i in indices if i >= bound]:
            raise UsageError(
                f"{file} skips {what} {beyond[0]}, and this workload has {bound} {what}s: it is a policy for another "
                "one. Give the workload that it was tuned for"
            )
    policy = asked.on(grid)
    if policy.is_native:
        raise NotQuantizedError(f"{file} skips every step or every layer of {grid}: it quantizes nothing")
    return policy


def _unread(pipeline: str) -> str:
    """What such a file needs besides."""
    model = model_class(pipeline)
    if model not in PIPELINE_TO_NAME:
        return ""
    return (
        f", and all of a file for {model} that does not name pipeline: {PIPELINE_TO_NAME[model]} and, on the stage, "
        f"model_class_name: {model}"
    )
