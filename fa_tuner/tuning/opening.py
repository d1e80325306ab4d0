"""The study's row: made, gone on with, replaced, or asked anew."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fa_tuner.domain.errors import ConflictError, NotFoundError, OtherEnvironmentError
from fa_tuner.domain.study import Study, differing
from fa_tuner.planning import differences, new_terms
from fa_tuner.recommend.choice import check_floor

if TYPE_CHECKING:
    from fa_tuner.tuning.job import Job


def open_study(job: Job) -> None:
    """Make it, or go on with the stored one.

    Raises:
        ConflictError: the stored one is of something else, or another worker runs it by other terms.
        ThresholdError: the new threshold is above the noise floor.
    """
    name = job.spec.name
    try:
        stored = job.store.study(name)
    except NotFoundError:
        try:
            job.store.create_study(job.spec, job.target)
            job.arrive()
            return
        except ConflictError:  # another worker was first
            stored = job.store.study(name)
    job.arrive()
    found, terms = differences(stored.spec, job.spec), new_terms(stored.spec, job.spec)
    if (found or terms) and job.others():  # of two that arrive at once, both are refused
        raise _conflict(stored, job)(
            f"another worker runs study {name} with another {'; '.join(found + terms)}; wait until it is done, or "
            "give another --study name"
        )
    if found and job.store.count(name) > 1:
        raise _conflict(stored, job)(
            f"study {name} is stored with another {'; '.join(found)}. Give the stored values to go on with "
            "it, or another --study name"
        )
    if found:
        _replace(job, name)  # nothing but a baseline: what was refused may be corrected
        return
    if terms:
        _ask_anew(job, stored, terms)
    _resume(job, name)


def _conflict(stored: Study, job: Job) -> type[ConflictError]:
    """Where the environment is another one, another worker may be the right one."""
    return OtherEnvironmentError if differing(stored.spec.environment, job.spec.environment) else ConflictError


def _resume(job: Job, name: str) -> None:
    job.store.set_target(name, job.target)
    job.store.set_state(name, "running")
    job.refresh()


def _replace(job: Job, name: str) -> None:
    from fa_tuner.search.study import delete

    delete(job.search_storage, [name])
    job.artifacts.delete(name)
    job.store.delete_study(name)
    job.store.create_study(job.spec, job.target)
    job.arrive()


def _ask_anew(job: Job, stored: Study, terms: list[str]) -> None:
    """Judge what is stored by new terms. Optuna's trials carry the old ones, so they are written again.

    Raises:
        ThresholdError: the new threshold is above the noise floor.
    """
    from fa_tuner.search.study import delete

    name, told = stored.spec.name, "; ".join(terms)
    if stored.baseline is not None:
        check_floor(job.spec.requirement, stored.baseline)
    delete(job.search_storage, [name])
    job.store.set_requirement(name, job.spec.requirement)
    if stored.spec.latency_profile != job.spec.latency_profile and job.profile is not None:
        project = partial(job.profile.project, grid=job.grid, workload=job.spec.workload)
        measured = [e.policy for e in job.store.evaluations(name) if not e.failed]
        job.store.set_latencies(name, job.profile.name, {policy.key: project(policy) for policy in measured})
    job.observer.note(f"asked anew: {told}; nothing stored is generated again")
