"""What a tuning run says while it goes on, and what Ctrl-C does to `fa-tune run`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from fa_tuner.domain.measurement import Measurement
    from fa_tuner.domain.policy import SkipPolicy
    from fa_tuner.domain.study import Baseline, Evaluation
    from fa_tuner.engines.base import Description
    from fa_tuner.planning import TuneRequest


class Lines:
    """A `tuning.Observer` that says a line of whatever happens."""

    def __init__(self, request: TuneRequest, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
        self._request, self._say, self._asked_to_stop = request, say, stop

    def opened(self, description: Description, policies: int) -> None:
        self._say(
            f"{description.pipeline} on {description.device}, {description.grid}, operator {description.operator}"
        )
        for remark in description.remarks:
            self._say(remark)

    def baseline(self, baseline: Baseline, reused: bool) -> None:
        floor = "identical" if baseline.noise_floor_db >= 100 else f"{baseline.noise_floor_db:.2f} dB"
        self._say(f"baseline {'taken over' if reused else 'run twice'}: noise floor {floor}")

    def evaluated(self, evaluation: Evaluation, done: int, best: Measurement | None) -> None:
        measured = evaluation.measurement
        if measured is None:
            result = f"failed: {evaluation.reason}"
        else:
            psnr_db = measured.psnr_db(self._request.requirement.aggregate)
            result = f"{psnr_db:6.2f} dB, gain {measured.latency.gain:5.1%}{_source(measured)}"
        self._say(f"{done:4d}  {result}  {evaluation.policy}  [{evaluation.origin}]; {_leader(best)}")

    def holdout(self, policy: SkipPolicy, met: bool) -> None:
        self._say(f"held-out prompts under {policy}: {'pass' if met else 'fail'}")

    def note(self, text: str) -> None:
        self._say(text)

    def stop_requested(self) -> bool:
        return self._asked_to_stop()


class LiveProgress(Lines):
    """The observer of `fa-tune run`, on stderr: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, request: TuneRequest) -> None:
        super().__init__(request, lambda text: self._console.print(text, markup=False), lambda: self._stop)
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._stop = False
        self._previous: Any = None

    def __enter__(self) -> LiveProgress:
        self._previous = signal.signal(signal.SIGINT, self._interrupted)
        self._bar.start()
        self._say(f"study {self._request.study}: opening {self._request.workload.model} in {self._request.engine}")
        return self

    def __exit__(self, *_: TracebackType | type[BaseException] | BaseException | None) -> None:
        self._bar.stop()
        signal.signal(signal.SIGINT, self._previous)

    def _interrupted(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True
        self._say("finishing the running policy, then stopping; Ctrl-C again stops at once")

    def opened(self, description: Description, policies: int) -> None:
        super().opened(description, policies)
        self._task = self._bar.add_task("baseline", total=policies)

    def evaluated(self, evaluation: Evaluation, done: int, best: Measurement | None) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=done, description=_leader(best))
        if not self._console.is_terminal or evaluation.failed:
            super().evaluated(evaluation, done, best)


def _leader(best: Measurement | None) -> str:
    return f"best gain {best.latency.gain:.1%}{_source(best)}" if best else "none meets the constraints yet"


def _source(measurement: Measurement) -> str:
    """Where it is not the study's own."""
    return " fitted" if measurement.latency.source == "fitted" else ""
