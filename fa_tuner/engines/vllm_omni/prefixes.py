"""Kept prefixes of the denoising: latents and scheduler after a step, and the calls made up to there."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

from fa_tuner.domain.policy import NATIVE
from fa_tuner.engines.base import CellCall


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
    """States by case and by what each step's layers ran in: two runs share a prefix as far as those rows are equal."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], State] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        return sum(len(state.content) for state in self._kept.values())

    def longest(self, case: str, rows: tuple[str, ...]) -> tuple[int, State] | None:
        """The number of steps that need not be run and the state after them, None where nothing fits."""
        for done in range(len(rows) - 1, 0, -1):
            if (state := self._kept.get((case, rows[:done]))) is not None:
                self._kept.move_to_end((case, rows[:done]))
                return done, state
        return None

    def keep(self, case: str, rows: tuple[str, ...], values: tuple[Any, Any], calls: Counter[CellCall]) -> None:
        """`values` are latents and scheduler after the steps of `rows`. Beyond the limit what was not used for longest
        goes, the native ones last: they serve every policy that begins with skipped steps."""
        import torch

        if (case, rows) in self._kept:
            return
        buffer = io.BytesIO()
        torch.save(values, buffer)
        self._kept[case, rows] = State(buffer.getvalue(), calls, native=set(rows) == {NATIVE})
        held = self.held_bytes
        while held > self._limit:
            oldest = next((key for key, state in self._kept.items() if not state.native), next(iter(self._kept)))
            held -= len(self._kept.pop(oldest).content)
