"""The policies that are about to be recommended, checked more closely."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from fa_tuner.planning import MOST_TIMED_AGAIN
from fa_tuner.recommend.choice import candidates, missing, ranked, unsettled
from fa_tuner.tuning.job import WAIT_SECONDS

if TYPE_CHECKING:
    from fa_tuner.domain.policy import SkipPolicy
    from fa_tuner.tuning.job import Job


def check_finalists(job: Job) -> None:
    """The best policies, best first, until one stands: timed anew where latency is measured (the fastest of many
    noisy figures is too good to be true, one that an outlier hit is better than it looks, and a fitted one is a
    prediction), then generated on the held-out prompts. In between, those that belong on the front by a fitted latency
    are timed, as often as any in the search, and the user's own."""
    while job.elsewhere():  # which may turn out the best
        job.stop_if_asked()
        time.sleep(WAIT_SECONDS)
    job.refresh()
    wanted, timed, drawn = job.spec.requirement, 0, 0
    while True:
        job.stop_if_asked()
        fits = job.latencies.refit()
        measured = candidates(job.evaluations.values())
        doubtful = [] if job.profile else unsettled(measured, wanted, job.evaluator.finalist_repeats, fits)
        own = [c for c in measured if c.fitted and c.policy.key in job.tries]
        undrawn = missing(measured, wanted.aggregate)
        order = ranked(measured, wanted)
        if doubtful and timed < MOST_TIMED_AGAIN:
            timed += 1
            _time(job, doubtful[0].policy, job.evaluator.finalist_repeats)
        elif own:
            _time(job, own[0].policy, job.request.repeats)
        elif undrawn and drawn < MOST_TIMED_AGAIN:
            drawn += 1
            _time(job, undrawn[0].policy, job.request.repeats)
        elif order and job.spec.workload.holdout and order[0].holdout_met(wanted) is None:
            policy = order[0].policy
            cases = job.patiently("a held-out prompt", partial(job.evaluator.check_holdout, policy))
            job.store.set_holdout(job.spec.name, policy.key, cases)
            job.observer.holdout(policy, wanted.met_by(cases))
        else:
            job.latencies.keep()
            return
        job.refresh()


def _time(job: Job, policy: SkipPolicy, repeats: int) -> None:
    latency = job.patiently(f"timing {policy} again", partial(job.evaluator.time_again, policy, repeats))
    job.store.set_latency(job.spec.name, policy.key, latency)
