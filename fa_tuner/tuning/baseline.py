"""The native baseline: run, or taken over from an earlier study."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fa_tuner.domain.study import Evaluation
from fa_tuner.evaluate.evaluator import NATIVE, shadow_answers
from fa_tuner.planning import shadows_beside_baseline
from fa_tuner.recommend.choice import check_floor

if TYPE_CHECKING:
    from fa_tuner.domain.measurement import Measurement
    from fa_tuner.engines.base import Frames
    from fa_tuner.search.space import Numbers
    from fa_tuner.tuning.job import Job


def take_baseline(job: Job) -> None:
    """Run, or take over, the native baseline; refuse a threshold above its noise floor."""
    name, workload = job.spec.name, job.spec.workload
    job.alone(NATIVE.key, "the baseline")
    stored = job.store.study(name).baseline
    donor = name if stored else job.store.find_baseline(workload.fingerprint, job.description.fingerprint)
    unfit = donor is None or (donor != name and (_timed_otherwise(job, donor) or _lacks_shadows(job, donor)))
    taken = None if donor is None or unfit else _kept_baseline(job, donor)
    if donor and taken is not None:
        baseline = job.store.study(donor).baseline
        assert baseline is not None
        if taken:
            job.evaluator.adopt_baseline(taken)
        native = job.store.evaluation(donor, NATIVE.key)
        if native is not None and donor != name:
            native = replace(native, measurement=_as_taken(native.measurement))
    else:
        shadows = shadows_beside_baseline(job.request, job.description)
        if shadows:
            job.observer.note(f"{len(shadows)} shadow probes beside the baseline of each prompt")
        measurement, baseline = job.patiently("the baseline", partial(job.evaluator.run_baseline, shadows))
        native = Evaluation(NATIVE, "baseline", 0, measurement)
    if donor != name or taken is None:
        job.keep_frames(NATIVE, job.evaluator.reference_frames())
    if NATIVE.key not in job.evaluations and native is not None:
        job.commit(Evaluation(NATIVE, "baseline", 0, native.measurement))
    if stored is None:
        job.store.set_baseline(name, baseline)
    check_floor(job.spec.requirement, baseline)  # after all is kept: a lower threshold goes on from here
    job.observer.baseline(baseline, reused=taken is not None)


def priors(job: Job) -> list[Numbers] | None:
    """The cells' weights by prompt, as the shadows beside the baseline have them."""
    return _weights(job, job.evaluations[NATIVE.key].measurement)


def _weights(job: Job, native: Measurement | None) -> list[Numbers] | None:
    from fa_tuner.search.shadows import weights_by_prompt

    return weights_by_prompt(shadow_answers(native), job.space) if native is not None else None


def _lacks_shadows(job: Job, donor: str) -> bool:
    """Whether it was run for another dtype or sampler, without the shadow probes that this study wants."""
    native = job.store.evaluation(donor, NATIVE.key)
    wanted = shadows_beside_baseline(job.request, job.description)
    return bool(wanted) and _weights(job, native.measurement if native else None) is None


def _as_taken(measurement: Measurement | None) -> Measurement | None:
    """A baseline that this study did not pay for."""
    return measurement and replace(measurement, seconds=0.0, detail={**measurement.detail, "taken_over": True})


def _timed_otherwise(job: Job, donor: str) -> bool:
    """Whether its native latency is of another kind; a front is drawn in one kind only."""
    theirs = job.store.study(donor).spec
    return (theirs.latency_source, theirs.latency_profile) != (job.spec.latency_source, job.spec.latency_profile)


def _kept_baseline(job: Job, donor: str) -> list[Frames] | None:
    """The kept frames of an earlier baseline, None unless all of them are there. A record needs none."""
    if job.description.operator == "replayed":
        return []
    kept = [job.artifacts.frames(donor, NATIVE.key, i) for i in range(len(job.spec.workload.cases))]
    frames = [f for f in kept if f is not None]
    return frames if len(frames) == len(kept) else None
