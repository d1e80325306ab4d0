"""The use case "tune this workload": joins engine, evaluation, search and store, for the CLI and the service."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fa_tuner.domain.errors import (
    ConflictError,
    EngineError,
    FaTuneError,
    InterruptedByUser,
    NotFoundError,
    NotQuantizedError,
    ThresholdError,
    UsageError,
)
from fa_tuner.domain.measurement import Measurement
from fa_tuner.domain.pareto import Objectives, hypervolume
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Baseline, Evaluation, Origin, Study, StudySpec
from fa_tuner.evaluate.evaluator import NATIVE, Evaluator, shadow_answers
from fa_tuner.planning import (
    TuneRequest,
    differences,
    new_terms,
    opened,
    profile_for,
    queue,
    shadows_beside_baseline,
    target_of,
)
from fa_tuner.recommend.choice import candidates, check_floor, pareto_front, ranked, unsettled

if TYPE_CHECKING:
    from fa_tuner.engines.base import Description, Engine, Frames
    from fa_tuner.search.space import Numbers
    from fa_tuner.search.study import PolicySearch, Proposal, Score
    from fa_tuner.store.artifacts import Artifacts
    from fa_tuner.store.repository import Store

T = TypeVar("T")

FAILURES_IN_A_ROW = 3
MOST_TIMED_AGAIN = 12  # finalists of one process, where latency is measured
FINALISTS = "finalists"  # claimed like a policy: one worker checks them
WAIT_SECONDS = 0.5  # between looks at what other workers do
REPEATS_IN_A_ROW = 20  # proposals already evaluated, after which a policy is drawn at random instead


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
        run = _Run(request, engine, store, artifacts, observer, search_storage)
        try:
            return run.to_the_end()
        except NotQuantizedError as error:
            store.set_state(request.study, "unproven", str(error))
            raise
        except (EngineError, ThresholdError) as error:
            run.stop_if_stored("failed", str(error))
            raise
        except KeyboardInterrupt:
            run.stop_if_stored("interrupted", "interrupted")
            raise InterruptedByUser("stopped at once; the running policy is lost, the same command goes on") from None


class _Run:
    """One process's share of a study."""

    def __init__(
        self,
        request: TuneRequest,
        engine: Engine,
        store: Store,
        artifacts: Artifacts,
        observer: Observer,
        search_storage: str,
    ) -> None:
        from fa_tuner.search.samplers import check_sampler
        from fa_tuner.store.claims import Worker

        self.request, self.store, self.artifacts, self.observer = request, store, artifacts, observer
        self.search_storage = search_storage
        self.description = engine.describe()
        self.grid = self.description.grid
        if request.dtype not in self.description.dtypes:
            raise UsageError(
                f"engine {request.engine} cannot run {request.dtype}; it has {', '.join(self.description.dtypes)}"
            )
        self.queue = list(queue(request, self.grid))
        check_sampler(request.sampler, self.grid)  # before anything is stored
        self.profile = profile_for(request, self.description)
        self.evaluator = Evaluator(engine, request.workload, self.profile, request.repeats, observer.note)
        self.target = target_of(request, self.grid)
        self.spec = StudySpec(
            name=request.study,
            workload=request.workload,
            dtype=request.dtype,
            requirement=request.requirement,
            sampler=request.sampler,
            sampler_seed=request.sampler_seed,
            environment=self.description.environment,
            latency_source="projected" if self.profile else "measured",
            latency_profile=self.profile.name if self.profile else None,
        )
        self.evaluations: dict[str, Evaluation] = {}
        self.worker = Worker.of_this_process()
        self.begun = False

    def to_the_end(self) -> Study:
        from fa_tuner.store.claims import Heartbeat

        self._open_study()
        self.begun = True
        with Heartbeat(self.store, self.worker):
            try:
                self.observer.opened(self.description, self.target)
                self._baseline()
                reason = self._loop(self._search())
                self._alone(FINALISTS, "the finalists")
                self._check_finalists()
                self._keep_front()
                self.store.set_state(self.spec.name, "finished", reason)
            finally:
                with suppress(FaTuneError):  # what went wrong inside is what counts
                    self.store.release(self.spec.name, self.worker)
        return self.store.study(self.spec.name)

    def stop_if_stored(self, state: Any, reason: str) -> None:
        if not self.begun:  # refused before anything of it was changed
            return
        try:
            self.store.set_state(self.spec.name, state, reason)
        except NotFoundError:
            return

    def _open_study(self) -> None:
        name = self.spec.name
        try:
            stored = self.store.study(name)
        except NotFoundError:
            try:
                self.store.create_study(self.spec, self.target)
                return
            except ConflictError:  # another worker was first
                stored = self.store.study(name)
        if found := differences(stored.spec, self.spec):
            if self.store.count(name) > 1:
                raise ConflictError(
                    f"study {name} is stored with another {'; '.join(found)}. Give the stored values to go on with "
                    "it, or another --study name"
                )
            self._replace(name)  # nothing but a baseline: what was refused may be corrected
            return
        if terms := new_terms(stored.spec, self.spec):
            self._ask_anew(stored, terms)
        self._resume(name)

    def _resume(self, name: str) -> None:
        self.store.set_target(name, self.target)
        self.store.set_state(name, "running")
        self.evaluations = {e.policy.key: e for e in self.store.evaluations(name)}

    def _replace(self, name: str) -> None:
        from fa_tuner.search.study import delete

        delete(self.search_storage, [name])
        self.artifacts.delete(name)
        self.store.delete_study(name)
        self.store.create_study(self.spec, self.target)

    def _ask_anew(self, stored: Study, terms: list[str]) -> None:
        """Judge what is stored by new terms. Optuna's trials carry the old ones, so they are written again.

        Raises:
            ConflictError: another worker runs the study by the old terms.
            ThresholdError: the new threshold is above the noise floor.
        """
        from fa_tuner.search.study import delete

        name, told = stored.spec.name, "; ".join(terms)
        if self.store.claimed(name):
            raise ConflictError(f"another worker runs study {name} with another {told}; wait until it is done")
        if stored.baseline is not None:
            check_floor(self.spec.requirement, stored.baseline)
        delete(self.search_storage, [name])
        self.store.set_requirement(name, self.spec.requirement)
        if stored.spec.latency_profile != self.spec.latency_profile and self.profile is not None:
            project = partial(self.profile.project, grid=self.grid, workload=self.spec.workload)
            measured = [e.policy for e in self.store.evaluations(name) if not e.failed]
            self.store.set_latencies(name, self.profile.name, {policy.key: project(policy) for policy in measured})
        self.observer.note(f"asked anew: {told}; nothing stored is generated again")

    def _baseline(self) -> None:
        """Run, or take over, the native baseline; refuse a threshold above its noise floor."""
        name, workload = self.spec.name, self.spec.workload
        self._alone(NATIVE.key, "the baseline")
        stored = self.store.study(name).baseline
        donor = name if stored else self.store.find_baseline(workload.fingerprint, self.description.fingerprint)
        taken = None if donor is None or self._timed_otherwise(donor) else self._kept_baseline(donor)
        if donor and taken is not None:
            baseline = self.store.study(donor).baseline
            assert baseline is not None
            if taken:
                self.evaluator.adopt_baseline(taken)
            native = self.store.evaluation(donor, NATIVE.key)
        else:
            shadows = shadows_beside_baseline(self.request, self.description)
            if shadows:
                self.observer.note(f"{len(shadows)} shadow probes beside the baseline of each prompt")
            measurement, baseline = self._patiently("the baseline", partial(self.evaluator.run_baseline, shadows))
            native = Evaluation(NATIVE, "baseline", 0, measurement)
        if donor != name or taken is None:
            self._keep_frames(NATIVE, self.evaluator.reference_frames())
        if NATIVE.key not in self.evaluations and native is not None:
            self._commit(Evaluation(NATIVE, "baseline", 0, native.measurement))
        if stored is None:
            self.store.set_baseline(name, baseline)
        check_floor(self.spec.requirement, baseline)  # after all is kept: a lower threshold goes on from here
        self.observer.baseline(baseline, reused=taken is not None)

    def _priors(self) -> list[Numbers] | None:
        """The cells' weights by prompt, as the shadows beside the baseline have them."""
        from fa_tuner.search.shadows import cell_weights

        native = self.evaluations[NATIVE.key].measurement
        answers = shadow_answers(native) if native is not None else []
        weights = [cell_weights(answer, self.grid, self.spec.dtype) for answer in answers]
        known = [w for w in weights if w is not None]
        return known if known and len(known) == len(weights) else None

    def _timed_otherwise(self, donor: str) -> bool:
        """Whether its native latency is of another kind; a front is drawn in one kind only."""
        theirs = self.store.study(donor).spec
        return (theirs.latency_source, theirs.latency_profile) != (self.spec.latency_source, self.spec.latency_profile)

    def _kept_baseline(self, donor: str) -> list[Frames] | None:
        """The kept frames of an earlier baseline, None unless all of them are there. A record needs none."""
        if self.description.operator == "replayed":
            return []
        kept = [self.artifacts.frames(donor, NATIVE.key, i) for i in range(len(self.spec.workload.cases))]
        frames = [f for f in kept if f is not None]
        return frames if len(frames) == len(kept) else None

    def _search(self) -> PolicySearch:
        from fa_tuner.search.acquisition import Goal
        from fa_tuner.search.study import PolicySearch

        resumes = self.description.resumes and self.profile is not None
        search = PolicySearch(
            self.search_storage, self.spec.name, self.spec.dtype, self.grid, self.spec.sampler, self.spec.sampler_seed,
            Goal.of(self.spec.requirement), resumes, self._priors(),
        )  # fmt: skip
        mended = self._reconcile(search)
        if mended > 1:
            self.observer.note(f"resumed: {len(self.evaluations)} policies stored, {mended} trials brought in line")
        for policy, origin in self.queue:
            if policy.key not in self.evaluations:
                search.enqueue(policy, origin)
        return search

    def _loop(self, search: PolicySearch) -> str:
        """Ask, claim, measure, commit, tell, until nothing is left to do; returns the reason for stopping."""
        from fa_tuner.search.space import policy_count

        started, earlier, failures, repeats, draws = time.monotonic(), self._spent(), 0, 0, 0
        budget, tries = self.request.budget_seconds, [p.key for p, origin in self.queue if origin == "try"]
        while self._done() < self.target or any(key not in self.evaluations for key in tries):
            if budget is not None and max(self._spent(), earlier + time.monotonic() - started) >= budget:
                return "budget"
            if self._at_noise_floor():
                return "noise floor"
            self._stop_if_asked()
            elsewhere = self._catch_up(search)
            if not self._queue_again(search, elsewhere) and self._done() >= self.target:
                time.sleep(WAIT_SECONDS)  # all that is left is being measured
                continue
            proposal = search.ask(elsewhere)
            if isinstance(proposal, str):
                if not elsewhere and not self._reconcile(search):
                    return proposal
                time.sleep(WAIT_SECONDS)  # what others find may leave something to gain
                continue
            known = self.evaluations.get(proposal.policy.key)
            if known is not None or not self.store.claim(self.spec.name, proposal.policy.key, self.worker):
                self._tell(search, proposal, known)
                repeats += 1
                if repeats % REPEATS_IN_A_ROW == 0:
                    draws += 1
                    search.enqueue(self._unseen(draws), "sampler")
                continue
            repeats = 0
            evaluation = self._evaluate(proposal)
            self._tell(search, proposal, evaluation)
            failures = failures + 1 if evaluation.failed else 0
            if failures == FAILURES_IN_A_ROW:
                raise EngineError(f"{failures} policies in a row failed; the last: {evaluation.reason}")
        return "front verified" if self._done() >= policy_count(self.grid) - 1 else "budget"

    def _at_noise_floor(self) -> bool:
        """Whether quantizing everything changes no more than a second native run does: then no policy can be better."""
        baseline, everything = self.store.study(self.spec.name).baseline, self.evaluations.get(self.queue[0][0].key)
        if baseline is None or everything is None or everything.measurement is None:
            return False
        return everything.measurement.psnr_db("worst") >= baseline.noise_floor_db

    def _alone(self, what: str, words: str) -> None:
        """Wait until no other worker is at `what`, and claim it; done by another, it cannot be claimed any more."""
        told = False
        while not self.store.claim(self.spec.name, what, self.worker):
            if what not in self.store.claimed(self.spec.name):
                break
            self._stop_if_asked()
            if not told:
                self.observer.note(f"another worker is at {words}; waiting for it")
                told = True
            time.sleep(WAIT_SECONDS)
        if told:
            self.evaluations = {e.policy.key: e for e in self.store.evaluations(self.spec.name)}

    def _catch_up(self, search: PolicySearch) -> list[SkipPolicy]:
        """Take in what other workers have measured since; returns what they are at."""
        name = self.spec.name
        if self.store.count(name) != len(self.evaluations):
            self.evaluations = {e.policy.key: e for e in self.store.evaluations(name)}
            self._reconcile(search)
        claimed = (key for key, worker in self.store.claimed(name).items() if worker != self.worker)
        policies = (key.partition(":")[2] for key in claimed if key not in (NATIVE.key, FINALISTS))
        return [SkipPolicy.parse(text, self.spec.dtype, self.grid) for text in policies]

    def _queue_again(self, search: PolicySearch, elsewhere: list[SkipPolicy]) -> bool:
        """Whether a queued policy is left that nobody is at: one that was not asked for yet, or a killed worker's."""
        taken = self.evaluations.keys() | {policy.key for policy in elsewhere}
        left = [(policy, origin) for policy, origin in self.queue if policy.key not in taken]
        if left:
            self._reconcile(search)
        for policy, origin in left:
            search.enqueue(policy, origin)
        return bool(left)

    def _reconcile(self, search: PolicySearch) -> int:
        known = {k: (e.policy, e.origin, self._score(e)) for k, e in self.evaluations.items()}
        others = {key for key, worker in self.store.claimed(self.spec.name).items() if worker != self.worker}
        return search.reconcile(known, others)

    def _stop_if_asked(self) -> None:
        if self.observer.stop_requested():
            self._keep_front()
            self.store.set_state(self.spec.name, "interrupted", "interrupted")
            raise InterruptedByUser(f"stopped after {self._done()} of {self.target} policies; the same command goes on")

    def _evaluate(self, proposal: Proposal) -> Evaluation:
        """Measure and commit one policy; the row is there before Optuna hears of it."""
        origin: Origin = proposal.origin  # type: ignore[assignment]
        frames: list[Frames] = []
        try:
            measurement, frames = self.evaluator.measure(proposal.policy)
            evaluation = Evaluation(proposal.policy, origin, len(self.evaluations), measurement)
        except EngineError as error:
            evaluation = Evaluation(proposal.policy, origin, len(self.evaluations), None, str(error))
        evaluation = self._commit(evaluation)
        if proposal.policy.key in self._front_keys():
            self._keep_frames(proposal.policy, frames)
            self.artifacts.keep(self.spec.name, {*self._front_keys(), NATIVE.key})
        best = ranked(candidates(self.evaluations.values()), self.spec.requirement)
        self.observer.evaluated(evaluation, self._done(), best[0].measurement if best else None)
        return evaluation

    def _patiently(self, what: str, act: Callable[[], T]) -> T:
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

    def _keep_frames(self, policy: SkipPolicy, clips: list[Frames]) -> None:
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

    def _commit(self, evaluation: Evaluation) -> Evaluation:
        """Store the row; where another process was first, its row is the one that counts."""
        try:
            self.store.add_evaluation(self.spec.name, evaluation)
        except ConflictError:
            self.evaluations = {e.policy.key: e for e in self.store.evaluations(self.spec.name)}
            if evaluation.policy.key not in self.evaluations:  # only its number was taken
                return self._commit(
                    Evaluation(
                        evaluation.policy, evaluation.origin, len(self.evaluations), evaluation.measurement,
                        evaluation.reason,
                    )
                )  # fmt: skip
        else:
            self.evaluations[evaluation.policy.key] = evaluation
        return self.evaluations[evaluation.policy.key]

    def _check_finalists(self) -> None:
        """The best policies, best first, until one stands: timed anew where latency is measured (the fastest of many
        noisy figures is too good to be true, and one that an outlier hit is better than it looks), then generated on
        the held-out prompts."""
        name, wanted, timed = self.spec.name, self.spec.requirement, 0
        while True:
            self._stop_if_asked()
            measured = candidates(self.evaluations.values())
            doubtful = [] if self.profile else unsettled(measured, wanted, self.evaluator.finalist_repeats)
            order = ranked(measured, wanted)
            if doubtful and timed < MOST_TIMED_AGAIN:
                policy, timed = doubtful[0].policy, timed + 1
                latency = self._patiently(f"timing {policy} again", partial(self.evaluator.time_again, policy))
                self.store.set_latency(name, policy.key, latency)
            elif order and self.spec.workload.holdout and order[0].holdout_met(wanted) is None:
                policy = order[0].policy
                cases = self._patiently("a held-out prompt", partial(self.evaluator.check_holdout, policy))
                self.store.set_holdout(name, policy.key, cases)
                self.observer.holdout(policy, wanted.met_by(cases))
            else:
                return
            self.evaluations = {e.policy.key: e for e in self.store.evaluations(name)}

    def _keep_front(self) -> None:
        """Snapshot the front, and let go of the frames of policies that fell off it."""
        keys = self._front_keys()
        how = self.spec.requirement.aggregate
        points = [c.objectives(how) for c in candidates(self.evaluations.values())]
        # from native latency and 0 dB, so that snapshots of a study can be compared
        self.store.add_front(self.spec.name, keys, hypervolume(points, Objectives(1.0, 0.0)))
        self.artifacts.keep(self.spec.name, {*keys, NATIVE.key})

    def _front_keys(self) -> list[str]:
        measured = candidates(self.evaluations.values())
        return [c.policy.key for c in pareto_front(measured, self.spec.requirement.aggregate)]

    def _spent(self) -> float:
        """Seconds that measuring took so far, in this process and in earlier ones of the study."""
        return math.fsum(e.measurement.seconds for e in self.evaluations.values() if e.measurement is not None)

    def _done(self) -> int:
        return sum(not e.policy.is_native for e in self.evaluations.values())

    def _score(self, evaluation: Evaluation) -> Score | None:
        from fa_tuner.search.study import Score

        measurement, wanted = evaluation.measurement, self.spec.requirement
        if measurement is None:
            return None
        return Score(
            measurement.latency.relative,
            measurement.psnr_db(wanted.aggregate),
            wanted.violations(measurement.cases),
            tuple(case.metrics["mse"] for case in measurement.cases),
        )

    def _tell(self, search: PolicySearch, proposal: Proposal, evaluation: Evaluation | None) -> None:
        """Without an evaluation another worker makes it."""
        score = self._score(evaluation) if evaluation is not None else None
        if score is None:
            search.tell_failed(proposal)
        else:
            search.tell(proposal, score)

    def _unseen(self, draw: int) -> SkipPolicy:
        """A policy not evaluated yet, drawn at random; there is one as long as the target is not reached."""
        from fa_tuner.search.space import random_policy

        seed = self.spec.sampler_seed * 1_000_003 + draw * 7919 + len(self.evaluations)
        while True:
            policy = random_policy(self.spec.dtype, self.grid, seed)
            if policy.key not in self.evaluations:
                return policy
            seed += 1
