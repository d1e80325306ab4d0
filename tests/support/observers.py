"""Who watches a study in tests."""

from __future__ import annotations

from collections.abc import Callable

from fa_tuner.domain.measurement import Measurement
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Baseline, Evaluation
from fa_tuner.engines.base import Description


class Silent:
    """A `tuning.Observer` that says nothing and never stops."""

    def opened(self, description: Description, policies: int) -> None: ...
    def baseline(self, baseline: Baseline, reused: bool) -> None: ...
    def evaluated(self, evaluation: Evaluation, done: int, best: Measurement | None) -> None: ...
    def holdout(self, policy: SkipPolicy, met: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def stop_requested(self) -> bool:
        return False


class Watched(Silent):
    """Calls `after_each` policy that was evaluated; ends where `stop` says so."""

    def __init__(self, stop: Callable[[], bool], after_each: Callable[[], object]) -> None:
        self.stop_requested, self._after_each = stop, after_each  # type: ignore[method-assign]

    def evaluated(self, evaluation: Evaluation, done: int, best: Measurement | None) -> None:
        self._after_each()
