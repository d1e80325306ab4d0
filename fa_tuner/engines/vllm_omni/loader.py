"""What the installed vLLM-Omni reads from a configuration: by its own code, without starting an engine.

Importing it takes ten seconds and more, prints to stdout, and may hang or abort, so that happens in a process of its
own: this module, run with `-m`. It takes a request as JSON from stdin and leaves its answer as JSON in a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from fa_tuner.documents import one_line
from fa_tuner.domain.errors import DocumentError, EngineError
from fa_tuner.engines.vllm_omni.child import how_it_ended, last_line


@dataclass(frozen=True)
class LoadedStage:
    """The policy of a diffusion stage as vLLM-Omni `version` would start it."""

    version: str
    dtype: str | None
    skip_steps: frozenset[int]
    skip_layers: frozenset[int]


def installed_version() -> str:
    """
    Raises:
        EngineError: vLLM-Omni is not installed.
    """
    with contextlib.suppress(PackageNotFoundError):
        if find_spec("vllm_omni") is not None:
            return version("vllm-omni")
    raise EngineError("vllm-omni is not installed beside fa-tune; do this in the environment that serves the model")


def read_stage(model: str, deploy_config: Path, stage_id: int = 0, timeout: float = 300) -> LoadedStage:
    """What `--deploy-config` makes of one stage of `model`, on an NPU.

    Raises:
        EngineError: vLLM-Omni is not installed, fails, or is not done after `timeout` seconds.
        DocumentError: it refuses the file; with its reason.
    """
    return _ask(model, stage_id, {"deploy_config": str(deploy_config.absolute())}, (), timeout)


def read_stage_args(model: str, stage_args: Path, stage_id: int = 0, timeout: float = 300) -> LoadedStage:
    """As `read_stage`, for the legacy `--stage-configs-path`, which vLLM-Omni reads up to 0.26."""
    return _ask(model, stage_id, {"stage_configs_path": str(stage_args.absolute())}, (), timeout)


def read_flags(model: str, flags: Sequence[str], stage_id: int = 0, timeout: float = 300) -> LoadedStage:
    """As `read_stage`, for flags of `vllm serve MODEL --omni`."""
    return _ask(model, stage_id, {}, flags, timeout)


def _ask(model: str, stage_id: int, arguments: dict[str, str], flags: Sequence[str], timeout: float) -> LoadedStage:
    omni = f"vllm-omni {installed_version()}"
    with tempfile.TemporaryDirectory(prefix="fa-tune-") as folder:
        request = {
            "model": model, "stage_id": stage_id, "arguments": arguments, "flags": list(flags),
            "answer": f"{folder}/answer.json",
        }  # fmt: skip
        log = Path(folder, "log")
        code = _run(json.dumps(request), log, timeout)
        if code is None:
            raise EngineError(f"{omni} was not done reading the configuration after {timeout:g} s: {last_line(log)}")
        try:
            answer = json.loads(Path(folder, "answer.json").read_bytes())
        except (OSError, ValueError):
            raise EngineError(
                f"{omni} {how_it_ended(code)} when it was to read the configuration: {last_line(log)}"
            ) from None
    if "failed" in answer:
        raise EngineError(f"{omni} cannot say what it would start for {one_line(model, 200)}: {answer['failed']}")
    if "refused" in answer:
        raise DocumentError(f"{omni} refuses the configuration: {answer['refused']}")
    sets = {name: frozenset(answer[name]) for name in ("skip_steps", "skip_layers")}
    return LoadedStage(answer["version"], answer["dtype"], **sets)


def _run(request: str, log: Path, timeout: float) -> int | None:
    """The exit code of the child, None where it had to be ended; what it wrote to stderr is in the log."""
    with log.open("wb") as written:
        child = subprocess.Popen(  # noqa: S603 - our own module, in our own interpreter
            [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=written,
            start_new_session=True, env={"OMP_WAIT_POLICY": "passive", **os.environ},
        )  # fmt: skip
        code: int | None = None
        try:
            child.communicate(request.encode(), timeout)
            code = child.returncode
        except BaseException as error:  # Ctrl-C too; what it started goes with it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
    return code


def main() -> None:
    """The child."""
    from fa_tuner.engines.vllm_omni.configuration import answer

    request = json.load(sys.stdin)
    Path(request.pop("answer")).write_text(json.dumps(answer(**request)))
    sys.stderr.flush()
    os._exit(0)  # vLLM may leave threads that never end


if __name__ == "__main__":
    main()
