"""Diffusers' denoising loop, watched: its time, the steps that a kept prefix covers, and shadows beside it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from fa_tuner.domain.policy import DTYPES, Grid, SkipPolicy
from fa_tuner.domain.workload import Case
from fa_tuner.engines.attention import Switchboard
from fa_tuner.engines.base import CellCall, Prefix, Shadow
from fa_tuner.engines.prefixes import Prefixes, State, step_rows


@dataclass
class Run:
    """One generation as it goes. `shadows` are those that can be given, by step; `shifts` sums up what each does to
    the guided velocity of the step being run, branch by branch."""

    case: Case
    rows: tuple[str, ...]
    keep: bool
    clock: Clock
    shadows: dict[int, list[Shadow]]
    start: int = 0
    resumed: State | None = None
    branch: int = 0
    shifts: dict[Shadow, Tensor] = field(default_factory=dict)
    values: dict[Shadow, float] = field(default_factory=dict)

    @property
    def reused_calls(self) -> Counter[CellCall]:
        return Counter() if self.resumed is None else Counter(self.resumed.calls)


class DenoisingLoop:
    """Stands before each transformer's forward, and at the end of each step.

    A pipeline cannot start in the middle of its loop. So the forwards of the steps that a kept prefix covers return
    zeros instead of running, and after the last of them the kept latents and scheduler take their places.
    """

    def __init__(self, experts: Sequence[tuple[Any, float]], guided: bool, grid: Grid, limit_bytes: int) -> None:
        """`experts` are the transformers, each with its guidance scale."""
        self.board = Switchboard()
        self._grid = grid
        self._prefixes = Prefixes(limit_bytes)
        self._run: Run | None = None
        for expert, scale in experts:
            # of the conditional branch, which pipelines run first, and of the other
            expert.forward = self._standing_before(expert, (scale, 1 - scale) if guided else (1.0,))

    def begin(self, policy: SkipPolicy, case: Case, prefix: Prefix, shadows: Sequence[Shadow], clock: Clock) -> Run:
        """Get ready for one generation; arguments as of `Engine.generate`, the policy canonical."""
        rows = step_rows(policy, self._grid.steps)
        given: dict[int, list[Shadow]] = {}
        for shadow in dict.fromkeys(shadows):
            if shadow.fits(self._grid, DTYPES):
                given.setdefault(shadow.step, []).append(shadow)
        run = self._run = Run(case, rows, prefix != "none", clock, given)
        if prefix == "reuse" and (found := self._prefixes.longest(case, rows)) is not None:
            run.start, run.resumed = found
        self.board.begin(policy)
        return run

    def end(self) -> None:
        self._run, self.board.policy = None, SkipPolicy()

    def step_ended(self, pipeline: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's `callback_on_step_end`; what it returns takes the place of the loop's own."""
        run = self._run
        assert run is not None
        done = self.board.step = step + 1
        run.branch = 0
        changed = {}
        if done == run.start and run.resumed is not None:
            changed["latents"], pipeline.scheduler = run.resumed.restored()
        elif done > run.start:
            with run.clock.stopped():
                self._conclude(run, step, pipeline.scheduler)
                if run.keep and done < len(run.rows):
                    calls = self.board.calls + run.reused_calls
                    self._prefixes.keep(run.case, run.rows[:done], (values["latents"], pipeline.scheduler), calls)
        run.clock.step_ended()
        return changed

    def _standing_before(self, expert: Any, weights: tuple[float, ...]) -> Callable[..., Any]:
        forward = expert.forward
        channels = expert.config.out_channels or expert.config.in_channels

        @wraps(forward)
        def standing(*args: Any, **kwargs: Any) -> Any:
            run, step = self._run, self.board.step
            if run is None:
                return forward(*args, **kwargs)
            if step < run.start:
                hidden = kwargs["hidden_states"]
                return (hidden.new_zeros(hidden.shape[0], channels, *hidden.shape[2:]),)
            output = forward(*args, **kwargs)
            with run.clock.stopped():
                for shadow in run.shadows.get(step, ()):
                    with self.board.aside(shadow.policy(self._grid)):
                        shift = weights[run.branch] * (forward(*args, **kwargs)[0].float() - output[0].float())
                    run.shifts[shadow] = run.shifts[shadow] + shift if run.branch else shift
            run.branch += 1
            return output

        return standing

    @staticmethod
    def _conclude(run: Run, step: int, scheduler: Any) -> None:
        """What the shadows of a step would have added to the latents, as a mean square."""
        for shadow, shift in run.shifts.items():
            stride = float(scheduler.sigmas[step + 1] - scheduler.sigmas[step])
            run.values[shadow] = float(shift.square().mean()) * stride**2
        run.shifts.clear()


class Clock:
    """Wall-clock seconds of one generation by phase, the device synchronized at every reading. What is done for our
    own sake, while it is `stopped`, counts in none."""

    def __init__(self, device: str, pipeline: Any) -> None:
        self._device, self._pipeline = device, pipeline
        self._begun = self._denoising = self._denoised = self._ended = 0.0
        self._aside = 0.0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Time what runs inside; denoising starts at the first transformer forward."""
        experts = (self._pipeline.transformer, getattr(self._pipeline, "transformer_2", None))
        hooks = [x.register_forward_pre_hook(self._first_forward) for x in experts if x is not None]
        self._begun = self._now()
        try:
            yield
            self._ended = self._now()
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        before = self._now()
        yield
        self._aside += self._now() - before

    def step_ended(self) -> None:
        self._denoised = self._now()

    @property
    def denoise_seconds(self) -> float:
        return self._denoised - self._denoising

    @property
    def total_seconds(self) -> float:
        return self._ended - self._begun

    @property
    def phases(self) -> dict[str, float]:
        return {
            "encode": self._denoising - self._begun,
            "denoise": self.denoise_seconds,
            "decode": self._ended - self._denoised,
        }

    def _first_forward(self, _module: Any, _inputs: Any) -> None:
        if not self._denoising:
            self._denoising = self._now()

    def _now(self) -> float:
        """Seconds, less those for which it was stopped."""
        if not self._device.startswith("cpu"):
            getattr(torch, self._device.split(":")[0]).synchronize()
        return time.perf_counter() - self._aside
