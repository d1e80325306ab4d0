"""Where latency is measured: which policies are timed, and what the others are given."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fa_tuner.evaluate.latency_fit import CHECK_EVERY, LatencyFit, due_for_timing, fit_latencies

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fa_tuner.domain.measurement import Latency
    from fa_tuner.domain.policy import SkipPolicy
    from fa_tuner.domain.study import Evaluation, Origin
    from fa_tuner.tuning.job import Job


class Latencies:
    """Decides from what is stored alone, so that every worker, and a resumed study, decides alike."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._held: set[str] = set()

    def fits(self) -> dict[str, LatencyFit]:
        """By dtype over what is timed by now, where that is enough. Says so when one begins or ceases to hold."""
        job = self._job
        if job.profile:
            return {}
        fits = fit_latencies(job.evaluations.values(), job.spec.dtypes, job.grid, job.costs)
        for dtype, fit in fits.items():
            if fit.holds != (dtype in self._held) and not job.request.time_every_policy:
                job.observer.note(
                    f"latency of {dtype} is {fit}: from here policies are generated once, and one in {CHECK_EVERY} "
                    "timed as a check"
                    if fit.holds
                    else f"the fit of latency of {dtype} does not hold: {fit.doubt}; policies are timed again"
                )
        self._held = {dtype for dtype, fit in fits.items() if fit.holds}
        return fits

    def given(self, policy: SkipPolicy, origin: Origin) -> Latency | None:
        """The fitted latency; None for a policy that is to be timed."""
        fit = self.fits().get(policy.dtype)
        if self._job.request.time_every_policy or fit is None or not fit.holds:
            return None
        check = origin == "try" or due_for_timing(self._job.evaluations.values(), policy.dtype)
        return None if check or not fit.covers(policy) else fit.latency(policy)

    def refit(self) -> dict[str, LatencyFit]:
        """Give the fitted ones of `Job.evaluations` what the fits say by now, whether they still hold or not: where one
        does not, their spread says so. Returns the fits, where any is to be believed."""
        fits, known = self.fits(), self._job.evaluations
        for key, evaluation in known.items():
            measured, fit = evaluation.measurement, fits.get(evaluation.policy.dtype)
            if fit is not None and measured is not None and measured.latency.source == "fitted":
                known[key] = replace(evaluation, measurement=replace(measured, latency=fit.latency(measured.policy)))
        return {} if self._job.request.time_every_policy else fits

    def keep(self) -> None:
        """Store the fitted latencies of `Job.evaluations` that are no longer those stored."""
        name, store = self._job.spec.name, self._job.store
        stored, known = (_fitted(of) for of in (store.evaluations(name), self._job.evaluations.values()))
        if changed := {key: latency for key, latency in known.items() if latency != stored.get(key, latency)}:
            store.set_latencies(name, self._job.spec.latency_profile, changed)


def _fitted(evaluations: Iterable[Evaluation]) -> dict[str, Latency]:
    """By policy key."""
    measured = [e.measurement for e in evaluations if e.measurement is not None]
    return {m.policy.key: m.latency for m in measured if m.latency.source == "fitted"}
