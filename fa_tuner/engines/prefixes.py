"""Kept prefixes of the denoising: latents and scheduler after a step, and the calls made up to there."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from fa_tuner.domain.policy import NATIVE, SkipPolicy
from fa_tuner.engines.base import CellCall


def step_rows(policy: SkipPolicy, steps: int) -> tuple[str, ...]:
    """For each step what its layers run in; two runs of one case are the same as far as these are equal."""
    quantized = f"{policy.dtype}/{policy.skip_layers}"
    return tuple(NATIVE if policy.is_native or step in policy.skip_steps else quantized for step in range(steps))


@dataclass(frozen=True)
class State:
    """After a step, serialised on the host: a scheduler such as UniPC holds a history of tensors."""

    content: bytes
    calls: Counter[CellCall]
    native: bool

    def restored(self) -> tuple[Any, Any]:
        """(latents, scheduler), each tensor on the device it was on: a scheduler may keep its sigmas on the CPU."""
        import torch

        # written by ourselves, in this process
        loaded: tuple[Any, Any] = torch.load(io.BytesIO(self.content), weights_only=False)
        return loaded


class Prefixes:
    """States by case and by the rows (`step_rows`) of the steps that led to them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[tuple[Hashable, tuple[str, ...]], State] = OrderedDict()
        self.held_bytes = 0

    def longest(self, case: Hashable, rows: tuple[str, ...]) -> tuple[int, State] | None:
        """The number of steps that need not be run and the state after them, None where nothing fits. The last step
        is never among them: it has to be run for there to be a result."""
        for done in range(len(rows) - 1, 0, -1):
            if (state := self._kept.get((case, rows[:done]))) is not None:
                self._kept.move_to_end((case, rows[:done]))
                return done, state
        return None

    def keep(self, case: Hashable, rows: tuple[str, ...], values: tuple[Any, Any], calls: Counter[CellCall]) -> None:
        """`values` are latents and scheduler after the steps of `rows`. Beyond the limit what was not used for longest
        goes, the native ones last: they serve every policy that begins with skipped steps."""
        import torch

        if (case, rows) in self._kept:
            return
        buffer = io.BytesIO()
        torch.save(values, buffer)
        self._kept[case, rows] = State(buffer.getvalue(), calls, native=set(rows) == {NATIVE})
        self.held_bytes += buffer.tell()
        while self.held_bytes > self._limit:
            oldest = next((key for key, state in self._kept.items() if not state.native), next(iter(self._kept)))
            self.held_bytes -= len(self._kept.pop(oldest).content)
