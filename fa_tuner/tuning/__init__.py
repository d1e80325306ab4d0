"""The use case "tune this workload": joins engine, evaluation, search and store, for the CLI and the service."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, Protocol

from fa_tuner.domain.errors import EngineError, FaTuneError, InterruptedByUser, NotQuantizedError, ThresholdError
from fa_tuner.planning import TuneRequest, opened
from fa_tuner.tuning.baseline import take_baseline
from fa_tuner.tuning.finalists import check_finalists
from fa_tuner.tuning.job import FINALISTS, Job
from fa_tuner.tuning.opening import open_study
from fa_tuner.tuning.searching import Searching, refuse_unproven

if TYPE_CHECKING:
    from fa_tuner.domain.measurement import Measurement
    from fa_tuner.domain.policy import SkipPolicy
    from fa_tuner.domain.study import Baseline, Evaluation, Study
    from fa_tuner.engines.base import Description
    from fa_tuner.store.artifacts import Artifacts
    from fa_tuner.store.repository import Store


class Observer(Protocol):
    """Told of what happens, for progress. `stop_requested` is asked before each new policy."""

    def opened(self, description: Description, policies: int) -> None: ...
    def baseline(self, baseline: Baseline, reused: bool) -> None: ...
    def evaluated(self, evaluation: Evaluation, done: int, best: Measurement | None) -> None: ...
    def holdout(self, policy: SkipPolicy, met: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def stop_requested(self) -> bool: ...


def tune(request: TuneRequest, store: Store, artifacts: Artifacts, observer: Observer, search_storage: str) -> Study:
    """Run or resume the study until its target; returns it as stored, with the reason why it stopped.

    `search_storage` is the URL of the store's database, in which Optuna keeps its own tables.

    Raises:
        ConflictError: a stored study of that name is of something else.
        ThresholdError: the requirement is above the noise floor.
        NotQuantizedError: quantization did not take effect (the study is kept as unproven).
        EngineError: the engine cannot be opened, or failed three times in a row.
        InterruptedByUser: the observer asked to stop; the same request goes on from here.
    """
    with opened(request) as engine:
        job = Job(request, engine, store, artifacts, observer, search_storage)
        try:
            return _run(job)
        except NotQuantizedError as error:
            store.set_state(request.study, "unproven", str(error))  # whatever other workers are at
            raise
        except (EngineError, ThresholdError) as error:
            job.stop("failed", str(error))
            raise
        except KeyboardInterrupt:
            job.stop("interrupted", "interrupted")
            raise InterruptedByUser("stopped at once; the running policy is lost, the same command goes on") from None


def _run(job: Job) -> Study:
    """All stages, one after the other; whatever happens, nothing stays claimed."""
    from fa_tuner.store.claims import Heartbeat

    with Heartbeat(job.store.beat, job.worker):
        try:
            open_study(job)
            job.begun = True
            job.observer.opened(job.description, job.target)
            take_baseline(job)
            with closing(Searching(job)) as searching:
                reason = searching.to_the_end()
            job.alone(FINALISTS, "the finalists")
            check_finalists(job)
            job.keep_front()
            refuse_unproven(job.store.study(job.spec.name))
            job.store.set_state(job.spec.name, "finished", reason)
        finally:
            with suppress(FaTuneError):  # what went wrong inside is what counts
                job.leave()
    return job.store.study(job.spec.name)
