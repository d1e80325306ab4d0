"""Single frames as PNG, without loss: what the page compares pixel by pixel."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from anyio import CapacityLimiter, to_thread

if TYPE_CHECKING:
    from fa_tuner.store.artifacts import Frames

MOST_BYTES = 256 * 2**20  # of unpacked frames; of 480x832x81 two policies', which is what is compared
BELIEVED = 60.0  # seconds after which an archive is read again: a study may be deleted and tuned anew

MOST_AT_ONCE = 2  # large files and pictures that are read, unpacked or decoded; the threads of the rest stay free
T = TypeVar("T")
Name = tuple[str, str, int]  # study, key of the policy, case


class FewAtOnce:
    """Runs what takes long in threads of its own, of which there are `MOST_AT_ONCE`."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(MOST_AT_ONCE)

    async def run(self, call: Callable[[], T]) -> T:
        return await to_thread.run_sync(call, limiter=self._limiter)


class Stills:
    """The archives that were looked at last, unpacked, so that the next frame of one comes at once. Safe to use from
    several threads, of which one unpacks at a time."""

    def __init__(
        self, load: Callable[[str, str, int], Frames | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load, self._clock, self._lock = load, clock, threading.Lock()
        self._held: dict[Name, tuple[Frames, float]] = {}  # until when it is believed; the last used last

    def frames(self, study: str, policy_key: str, case: int) -> Frames | None:
        """All frames, uint8 RGB [frames, height, width, 3]; None where nothing is kept.

        Raises:
            StoreError: the file is there but cannot be read.
        """
        name = study, policy_key, case
        with self._lock:
            frames, until = self._held.pop(name, (None, 0.0))
            if frames is None or until <= self._clock():
                if (frames := self._load(*name)) is None:
                    return None
                until = self._clock() + BELIEVED
            self._held[name] = frames, until
            while sum(held.nbytes for held, _ in self._held.values()) > MOST_BYTES:
                del self._held[next(iter(self._held))]
            return frames


def png(frames: Frames, index: int) -> bytes:
    """One frame."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(frames[index]).save(content, "PNG", compress_level=1)
    return content.getvalue()
