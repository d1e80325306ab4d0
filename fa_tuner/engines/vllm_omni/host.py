"""Entry point of the engine's process, run with a socket's number: holds `Omni` and does what the tuner asks.

What vLLM-Omni prints goes to this process's log; answers go through the socket only.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fa_tuner.engines.vllm_omni.worker import HEARTBEAT

EXTENSION = "fa_tuner.engines.vllm_omni.worker.PolicyExtension"


class Host:
    """Commands are methods; their keyword arguments and answers are plain values and arrays."""

    def __init__(self) -> None:
        self._omni: Any = None
        self._image: Any = None

    def open(
        self, model: str, options: dict[str, Any], image: str | None, prefix_cache_mb: int
    ) -> list[dict[str, Any]]:
        """Load the model; answers with what `PolicyExtension.fa_tune_install` says of each rank."""
        from vllm_omni.entrypoints.omni import Omni

        if image is not None:
            from fa_tuner.engines.pictures import open_picture

            self._image = open_picture(Path(image))
        self._omni = Omni(
            model=model, worker_extension_cls=EXTENSION, enable_diffusion_pipeline_profiler=True, **options
        )
        return self._rpc("fa_tune_install", prefix_cache_mb=prefix_cache_mb)

    def generate(
        self,
        policy: tuple[str, str, str] | None,
        rows: tuple[str, ...],
        prefix: str,
        prompt: str,
        negative_prompt: str,
        sampling: dict[str, Any],
        shadows: Sequence[tuple[int, Sequence[int], str]] = (),
    ) -> dict[str, Any]:
        """One request under one policy, with what each rank reports before and after it."""
        from vllm_omni.inputs.data import OmniDiffusionSamplingParams

        from fa_tuner.engines.frames import to_uint8

        case = f"{sampling['seed']}:{prompt}"
        begun = self._rpc("fa_tune_begin", policy=policy, case=case, rows=rows, prefix=prefix, shadows=shadows)
        request: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt}
        if self._image is not None:
            request["multi_modal_data"] = {"image": self._image}
        started = time.perf_counter()
        (output,) = self._omni.generate(request, _known(OmniDiffusionSamplingParams, sampling), use_tqdm=False)
        seconds = time.perf_counter() - started
        if not output.images:
            raise RuntimeError("vllm-omni returned no frames")
        return {
            "frames": to_uint8(output.images[0][0]),
            "seconds": seconds,
            "durations": dict(output.stage_durations or {}),
            "peak_memory_mb": output.peak_memory_mb,
            "begun": begun,
            "reports": self._rpc("fa_tune_report"),
        }

    def close(self) -> None:
        if self._omni is not None:
            self._omni.close()

    def _rpc(self, method: str, **arguments: Any) -> list[dict[str, Any]]:
        """One answer a rank: the first rank's, which has gathered them all."""
        (stage,) = self._omni.engine.collective_rpc(method, kwargs=arguments)
        if isinstance(stage, dict):  # an error in a worker comes back as a value, not as an exception
            raise RuntimeError(str(stage.get("error")))
        (ranks,) = stage
        return list(ranks)


def _known(kind: Any, sampling: dict[str, Any]) -> Any:
    """Up to 0.24 a second guidance scale is given by its value alone, without the field that says that it was."""
    names = {known.name for known in fields(kind)}
    return kind(**{name: value for name, value in sampling.items() if name in names or not name.endswith("_provided")})


def _leave_with(parent: int) -> None:
    """A tuner that was killed cannot say goodbye."""
    while os.getppid() == parent:
        time.sleep(1)
    _leave()


def _leave() -> None:
    """Without a tuner this process group has no purpose, and nobody will tidy up after it."""
    if heartbeat := os.environ.get(HEARTBEAT):
        shutil.rmtree(Path(heartbeat).parent, ignore_errors=True)
    os.killpg(os.getpid(), signal.SIGKILL)


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    try:
        _serve(pipe, Host())
    except (EOFError, OSError):  # nobody asks any more, or nobody is there to take the answer
        _leave()


def _serve(pipe: Connection, host: Host) -> None:
    while True:
        request = pipe.recv()
        command = request.pop("do")
        try:
            pipe.send(("done", getattr(host, command)(**request)))
        except Exception as error:
            traceback.print_exc()
            pipe.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}"))
        if command == "close":
            return


if __name__ == "__main__":
    main()
