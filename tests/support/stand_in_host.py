"""The engine's process without an engine: the real loop, and commands that do what an engine should not.

Started by its path, with a socket's number behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fa_tuner.engines.vllm_omni import host
from fa_tuner.engines.vllm_omni.worker import HEARTBEAT

COMMAND = (sys.executable, str(Path(__file__)))


class StandIn:
    def __init__(self) -> None:
        self.stays = False

    def echo(self, value: Any) -> Any:
        return value

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def fail(self, text: str) -> None:
        raise ValueError(text)

    def die(self, number: int, text: str = "") -> None:
        print(text, flush=True)
        os.kill(os.getpid(), number)
        time.sleep(60)

    def leave(self, code: int, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        os._exit(code)

    def work(self, seconds: float, beats: bool) -> str:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(0.05)
            if beats:
                os.utime(os.environ[HEARTBEAT])
        return "worked"

    def start(self, apart: bool) -> int:
        """Start another process, in this process group or apart from it."""
        return subprocess.Popen(["sleep", "60"], start_new_session=apart, close_fds=False).pid

    def stay(self) -> None:
        """Do not leave when told to."""
        self.stays = True

    def close(self) -> None:
        if self.stays:
            time.sleep(60)


if __name__ == "__main__":
    host.Host = StandIn  # type: ignore[misc, assignment]
    host.main()
