"""The policies that are about to be recommended, checked more closely."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from fa_tuner.planning import MOST_TIMED_AGAIN
from fa_tuner.recommend.choice import candidates, ranked, unsettled
from fa_tuner.tuning.job import WAIT_SECONDS

if TYPE_CHECKING:
    from fa_tuner.tuning.job import Job


def check_finalists(job: Job) -> None:
    """The best policies, best first, until one stands: timed anew where latency is measured (the fastest of many
    noisy figures is too good to be true, and one that an outlier hit is better than it looks), then generated on
    the held-out prompts."""
    while job.elsewhere():  # which may turn out the best
        job.stop_if_asked()
        time.sleep(WAIT_SECONDS)
    job.refresh()
    name, wanted, timed = job.spec.name, job.spec.requirement, 0
    while True:
        job.stop_if_asked()
        measured = candidates(job.evaluations.values())
        doubtful = [] if job.profile else unsettled(measured, wanted, job.evaluator.finalist_repeats)
        order = ranked(measured, wanted)
        if doubtful and timed < MOST_TIMED_AGAIN:
            policy, timed = doubtful[0].policy, timed + 1
            latency = job.patiently(f"timing {policy} again", partial(job.evaluator.time_again, policy))
            job.store.set_latency(name, policy.key, latency)
        elif order and job.spec.workload.holdout and order[0].holdout_met(wanted) is None:
            policy = order[0].policy
            cases = job.patiently("a held-out prompt", partial(job.evaluator.check_holdout, policy))
            job.store.set_holdout(name, policy.key, cases)
            job.observer.holdout(policy, wanted.met_by(cases))
        else:
            return
        job.refresh()
