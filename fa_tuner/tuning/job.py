"""One process's share of a study: what its stages share, and what they do to the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fa_tuner.domain.errors import ConflictError, EngineError, InterruptedByUser
from fa_tuner.domain.pareto import Objectives, hypervolume
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Evaluation, StudySpec, StudyState
from fa_tuner.evaluate.evaluator import NATIVE, Evaluator
from fa_tuner.planning import TuneRequest, profile_for, queue, refuse_unfit, space_of, target_of
from fa_tuner.recommend.choice import candidates, pareto_front
from fa_tuner.tuning.latencies import Latencies

if TYPE_CHECKING:
    from fa_tuner.engines.base import Engine, Frames
    from fa_tuner.store.artifacts import Artifacts
    from fa_tuner.store.repository import Store
    from fa_tuner.tuning import Observer

T = TypeVar("T")

FAILURES_IN_A_ROW = 3
# claimed like policies: the check of the finalists, and that a worker is here
FINALISTS = "finalists"
PRESENT = "worker:"
WAIT_SECONDS = 0.5  # between looks at what other workers do


class Job:
    """`evaluations` are those known by policy key: this process's and, after `refresh`, those of other workers."""

    def __init__(
        self,
        request: TuneRequest,
        engine: Engine,
        store: Store,
        artifacts: Artifacts,
        observer: Observer,
        search_storage: str,
    ) -> None:
        from fa_tuner.store.claims import Worker

        self.request, self.store, self.artifacts, self.observer = request, store, artifacts, observer
        self.search_storage = search_storage
        self.description = engine.describe()
        self.grid = self.description.grid
        refuse_unfit(request, self.description)  # before anything is stored
        self.queue = list(queue(request, self.grid))
        self.tries = {policy.key for policy, origin in self.queue if origin == "try"}
        self.space = space_of(request, self.grid)
        self.profile = profile_for(request, self.description)
        self.costs = self.profile.costs(self.grid) if self.profile else None
        self.evaluator = Evaluator(engine, request.workload, self.profile, request.repeats, observer.note)
        self.target = target_of(request, self.grid)
        self.spec = StudySpec(
            name=request.study,
            workload=request.workload,
            dtypes=request.dtypes,
            requirement=request.requirement,
            sampler=request.sampler,
            sampler_seed=request.sampler_seed,
            environment=self.description.environment,
            latency_source="projected" if self.profile else "measured",
            latency_profile=self.profile.name if self.profile else None,
        )
        self.evaluations: dict[str, Evaluation] = {}
        self.latencies = Latencies(self)
        self.worker = Worker.of_this_process()
        self.begun = False

    def refresh(self) -> None:
        """Take in what other workers have stored."""
        self.evaluations = {e.policy.key: e for e in self.store.evaluations(self.spec.name)}

    def arrive(self) -> None:
        """Be seen by other workers, from here to the end."""
        self.store.claim(self.spec.name, PRESENT + self.worker.id, self.worker)

    def leave(self) -> None:
        self.store.release(self.spec.name, self.worker)

    def others(self) -> list[str]:
        """What other living workers hold in this study: the keys of what they are at, and their presence."""
        claimed = self.store.claimed(self.spec.name)
        return [key for key, worker in claimed.items() if worker != self.worker]

    def elsewhere(self) -> list[SkipPolicy]:
        """The policies that other workers are at."""
        policies = (key for key in self.others() if key.partition(":")[0] in self.spec.dtypes)
        return [SkipPolicy.parse(key, self.spec.dtypes, self.grid) for key in policies]

    def stop(self, state: StudyState, reason: str) -> None:
        """Say how the study stands, unless other workers go on with it, or nothing of it was touched yet."""
        if self.begun and not self.others():
            self.store.set_state(self.spec.name, state, reason)

    def alone(self, what: str, words: str) -> None:
        """Claim `what`, which other workers do first as long as they hold it. What has its evaluation is done."""
        told = False
        while not self.store.claim(self.spec.name, what, self.worker):
            if self.store.evaluation(self.spec.name, what) is not None:
                break
            self.stop_if_asked()
            if not told:
                self.observer.note(f"another worker is at {words}; waiting for it")
                told = True
            time.sleep(WAIT_SECONDS)
        if told:
            self.refresh()

    def stop_if_asked(self) -> None:
        if self.observer.stop_requested():
            self.keep_front()
            self.stop("interrupted", "interrupted")
            raise InterruptedByUser(f"stopped after {self.done()} of {self.target} policies; the same command goes on")

    def patiently(self, what: str, act: Callable[[], T]) -> T:
        """Baseline and finalists have no row that a failure could be written into: try again, on a new engine where
        it failed altogether.

        Raises:
            EngineError: after three failures.
        """
        for left in range(FAILURES_IN_A_ROW - 1, 0, -1):
            try:
                return act()
            except EngineError as error:
                self.observer.note(f"{what} failed: {error}; {left} more attempt{'s' if left > 1 else ''}")
        return act()

    def keep_frames(self, policy: SkipPolicy, clips: list[Frames]) -> None:
        """Frames, and a clip of them, by case; a full quota costs pictures, never the study."""
        from fa_tuner.report.clips import encode_clip

        for index, frames in enumerate(clips):
            if not self.artifacts.put_frames(self.spec.name, policy.key, index, frames):
                self.observer.note(f"frames of {policy} are not kept: the artifact quota or the disk is full")
                return
            try:
                clip = encode_clip(frames)
            except (OSError, ValueError, RuntimeError, ImportError) as error:
                self.observer.note(f"no clip of {policy}: {type(error).__name__}: {error}")
                return
            self.artifacts.put_clip(self.spec.name, policy.key, index, clip)

    def commit(self, evaluation: Evaluation) -> Evaluation:
        """Store the row; where another process was first, its row is the one that counts."""
        try:
            self.store.add_evaluation(self.spec.name, evaluation)
        except ConflictError:
            self.refresh()
            if evaluation.policy.key not in self.evaluations:  # only its number was taken
                return self.commit(
                    Evaluation(
                        evaluation.policy, evaluation.origin, len(self.evaluations), evaluation.measurement,
                        evaluation.reason,
                    )
                )  # fmt: skip
        else:
            self.evaluations[evaluation.policy.key] = evaluation
        return self.evaluations[evaluation.policy.key]

    def keep_front(self) -> None:
        """Snapshot the front, and let go of the frames of policies that fell off it."""
        self.refresh()
        keys = self.front_keys()
        how = self.spec.requirement.aggregate
        points = [c.objectives(how) for c in candidates(self.evaluations.values()) if not c.fitted]
        # from native latency and 0 dB, so that snapshots of a study can be compared
        self.store.add_front(self.spec.name, keys, hypervolume(points, Objectives(1.0, 0.0)))
        self.tidy()

    def tidy(self) -> None:
        """Let go of the frames of policies that are not on the front, nor would be by a fitted latency; not beside
        other workers, who may be writing theirs."""
        if not self.others():
            self.artifacts.keep(self.spec.name, {*self.worth_showing(), NATIVE.key})

    def worth_showing(self) -> set[str]:
        """The policies on the front, or that would be by a fitted latency."""
        return {*self.front_keys(), *self.front_keys(fitted=True)}

    def front_keys(self, fitted: bool = False) -> list[str]:
        measured = candidates(self.evaluations.values())
        return [c.policy.key for c in pareto_front(measured, self.spec.requirement.aggregate, fitted)]

    def done(self) -> int:
        return sum(not e.policy.is_native for e in self.evaluations.values())
