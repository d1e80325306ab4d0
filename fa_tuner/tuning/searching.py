"""The search itself: ask, claim, measure, commit, tell."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from fa_tuner.domain.errors import EngineError, NotQuantizedError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Evaluation, Origin, Study
from fa_tuner.recommend.choice import candidates, ranked
from fa_tuner.tuning.baseline import priors
from fa_tuner.tuning.job import FAILURES_IN_A_ROW, WAIT_SECONDS

if TYPE_CHECKING:
    from fa_tuner.engines.base import Frames
    from fa_tuner.search.study import Proposal, Score
    from fa_tuner.tuning.job import Job

REPEATS_IN_A_ROW = 20  # proposals already evaluated, after which a policy is drawn at random instead


def refuse_unproven(study: Study) -> None:
    """
    Raises:
        NotQuantizedError: another worker of the study found that quantization did not take effect.
    """
    if study.state == "unproven":
        raise NotQuantizedError(study.reason)


class Searching:
    """One process's part of the search of a study, beside that of other workers."""

    def __init__(self, job: Job) -> None:
        """Bring Optuna's study in line with what is stored."""
        from fa_tuner.search.acquisition import Goal
        from fa_tuner.search.study import PolicySearch

        self.job, spec = job, job.spec
        self.search = PolicySearch(
            job.search_storage, spec.name, job.space, spec.sampler, spec.sampler_seed,
            Goal.of(spec.requirement), priors=priors(job), costs=job.costs,
        )  # fmt: skip
        mended = self._reconcile()
        if mended > 1:
            job.observer.note(f"resumed: {len(job.evaluations)} policies stored, {mended} trials brought in line")

    def close(self) -> None:
        self.search.close()

    def to_the_end(self) -> str:
        """Ask, claim, measure, commit, tell, until nothing is left to do; returns the reason for stopping."""
        started, earlier, failures, repeats, draws = time.monotonic(), self._spent(), 0, 0, 0
        budget = self.job.request.budget_seconds
        while self.job.done() < self.job.target or not self.job.tries <= self.job.evaluations.keys():
            if budget is not None and max(self._spent(), earlier + time.monotonic() - started) >= budget:
                return "budget"
            study = self.job.store.study(self.job.spec.name)
            refuse_unproven(study)
            if self._at_noise_floor(study):
                return "noise floor"
            self.job.stop_if_asked()
            elsewhere = self._catch_up()
            if not self._queue(elsewhere) and self.job.done() + len(elsewhere) >= self.job.target:
                time.sleep(WAIT_SECONDS)  # all that is left is being measured
                continue
            failed = [e.policy for e in self.job.evaluations.values() if e.failed]
            self.search.resumes(self._resumes())
            proposal = self.search.ask(elsewhere, failed)
            if isinstance(proposal, str):
                if not elsewhere and not self._reconcile():
                    return proposal
                time.sleep(WAIT_SECONDS)  # what others find may leave something to gain
                continue
            known = self.job.evaluations.get(proposal.policy.key)
            if known is not None or not self.job.store.claim(self.job.spec.name, proposal.policy.key, self.job.worker):
                self._tell(proposal, known)
                repeats += 1
                if known is None:
                    time.sleep(WAIT_SECONDS / 5)  # another worker took it a moment ago
                if repeats % REPEATS_IN_A_ROW == 0:
                    draws += 1
                    self.search.enqueue(self._unseen(draws), "sampler")
                continue
            repeats = 0
            evaluation = self._evaluate(proposal)
            self._tell(proposal, evaluation)
            failures = failures + 1 if evaluation.failed else 0
            if failures == FAILURES_IN_A_ROW:
                last = f"{evaluation.policy}: {evaluation.reason}"
                raise EngineError(f"{failures} policies in a row failed; the last, {last}")
        return "front verified" if self.job.done() >= self.job.space.count - 1 else "budget"

    def _resumes(self) -> bool:
        """Whether a policy is likely to be generated from a kept prefix: what is timed is not."""
        if not self.job.description.resumes or self.job.profile is not None:
            return self.job.description.resumes
        fits = {} if self.job.request.time_every_policy else self.job.latencies.fits()
        return any(fit.holds for fit in fits.values())

    def _at_noise_floor(self, study: Study) -> bool:
        """Whether quantizing everything, in the fastest dtype, changes no more than a second native run does: then no
        policy can be better."""
        anchors = [self.job.evaluations.get(p.key) for p, origin in self.job.queue if origin == "anchor"]
        measured = [a.measurement for a in anchors if a is not None and a.measurement is not None]
        if study.baseline is None or len(measured) < len(self.job.spec.dtypes):
            return False
        fastest = min(measured, key=lambda measurement: measurement.latency.relative)
        return fastest.psnr_db("worst") >= study.baseline.noise_floor_db

    def _catch_up(self) -> list[SkipPolicy]:
        """Take in what other workers have measured since; returns what they are at."""
        name = self.job.spec.name
        if self.job.store.count(name) != len(self.job.evaluations):
            self.job.refresh()
            self._reconcile()
        return self.job.elsewhere()

    def _queue(self, elsewhere: list[SkipPolicy]) -> bool:
        """Queue what is to be measured first; whether any is left that nobody is at: one that was not asked for yet, or
        a killed worker's."""
        taken = self.job.evaluations.keys() | {policy.key for policy in elsewhere}
        left = [(policy, origin) for policy, origin in self.job.queue if policy.key not in taken]
        if left:
            self._reconcile()
        for policy, origin in left:
            self.search.enqueue(policy, origin)
        return bool(left)

    def _reconcile(self) -> int:
        known = {k: (e.policy, e.origin, self._score(e)) for k, e in self.job.evaluations.items()}
        return self.search.reconcile(known, set(self.job.others()))

    def _evaluate(self, proposal: Proposal) -> Evaluation:
        """Measure and commit one policy; the row is there before Optuna hears of it."""
        origin: Origin = proposal.origin  # type: ignore[assignment]
        frames: list[Frames] = []
        try:
            given = self.job.latencies.given(proposal.policy, origin)
            measurement, frames = self.job.evaluator.measure(proposal.policy, given)
            evaluation = Evaluation(proposal.policy, origin, len(self.job.evaluations), measurement)
        except EngineError as error:
            evaluation = Evaluation(proposal.policy, origin, len(self.job.evaluations), None, str(error))
        evaluation = self.job.commit(evaluation)
        if proposal.policy.key in self.job.worth_showing():
            self.job.keep_frames(proposal.policy, frames)
            self.job.tidy()
        best = ranked(candidates(self.job.evaluations.values()), self.job.spec.requirement, fitted=True)
        self.job.observer.evaluated(evaluation, self.job.done(), best[0].measurement if best else None)
        return evaluation

    def _spent(self) -> float:
        """Seconds that measuring took so far, in this process and in earlier ones of the study."""
        return math.fsum(e.measurement.seconds for e in self.job.evaluations.values() if e.measurement is not None)

    def _score(self, evaluation: Evaluation) -> Score | None:
        from fa_tuner.search.study import Score

        measurement, wanted = evaluation.measurement, self.job.spec.requirement
        if measurement is None:
            return None
        return Score(
            measurement.latency.relative,
            measurement.psnr_db(wanted.aggregate),
            wanted.violations(measurement.cases),
            tuple(case.metrics["mse"] for case in measurement.cases),
        )

    def _tell(self, proposal: Proposal, evaluation: Evaluation | None) -> None:
        """Without an evaluation another worker makes it."""
        score = self._score(evaluation) if evaluation is not None else None
        if score is None:
            self.search.tell_failed(proposal)
        else:
            self.search.tell(proposal, score)

    def _unseen(self, draw: int) -> SkipPolicy:
        """A policy not evaluated yet, drawn at random; there is one as long as the target is not reached."""
        seed = self.job.spec.sampler_seed * 1_000_003 + draw * 7919 + len(self.job.evaluations)
        while True:
            policy = self.job.space.draw(seed)
            if policy.key not in self.job.evaluations:
                return policy
            seed += 1
