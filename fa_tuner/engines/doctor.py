"""What this machine can do for tuning, told before any device time is spent."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator

from fa_tuner.domain.errors import FaTuneError
from fa_tuner.engines.registry import engine_class, engine_names
from fa_tuner.engines.verdict import Verdict, cannot, unknown, works
from fa_tuner.engines.vllm_omni.backend import SHOWN, backend_row, dtypes_row, plugin_rows
from fa_tuner.engines.vllm_omni.machine import Machine
from fa_tuner.engines.vllm_omni.model_rows import model_rows
from fa_tuner.engines.vllm_omni.stack import NPU_ROWS, Stack

# say something of no engine, or of another row's choice
_ASIDE = frozenset({"python", "fa-tune", "platform plugin", *(f"dtypes of {name}" for name in SHOWN)})
# what engine diffusers cannot do without either
_DIFFUSERS_ROWS = ("engine diffusers", "model", "pipeline", "head dim", "blocks")


def report(model: str | None = None, machine: Machine | None = None) -> list[Verdict]:
    """Every row; the last one is the summary.

    Raises:
        NotFoundError: there is no such model.
        UsageError: the model is a file.
    """
    machine = machine or Machine()
    stack = Stack(machine)
    rows = [
        works("python", platform.python_version()),
        works("fa-tune", machine.installed.version("fa-tune") or "a source folder without metadata"),
        stack.device(),
        *_engines(),
        *stack.software(),
        *plugin_rows(machine),
        backend_row(stack),
        *(dtypes_row(stack, backend) for backend in SHOWN),
        *(model_rows(model, stack) if model is not None else ()),
    ]
    return [*rows, summary(rows, machine.emulated)]


def _engines() -> Iterator[Verdict]:
    for name in engine_names():
        try:
            reason = engine_class(name).unavailable_because()
        except FaTuneError as error:
            reason = str(error)
        yield cannot(f"engine {name}", reason) if reason else works(f"engine {name}", "")


def summary(rows: Iterable[Verdict], emulated: bool) -> Verdict:
    """The engine that FP8 attention can be tuned with here: the real one, else the emulated operator, else none."""
    what, by_name = "summary", {row.what: row for row in rows}
    can = "FP8 attention can be tuned here with engine"
    passed_over = _ASIDE | (NPU_ROWS if emulated else frozenset())
    asked = [row for row in by_name.values() if row.what not in passed_over and not _of_another_engine(row)]
    against = next((row for row in asked if row.verdict == "cannot"), None)
    if "engine vllm-omni" not in by_name:
        against = cannot("engine vllm-omni", "not among the engines of this fa-tune")
    if against is None:
        untold = [row for row in asked if row.verdict == "unknown"]
        if untold:
            rest = f", nor {len(untold) - 1} more" if len(untold) > 1 else ""
            first = f"{untold[0].what}: {untold[0].detail}"
            return unknown(what, f"nothing speaks against engine vllm-omni, but it cannot be told of {first}{rest}")
        return works(what, f"{can} vllm-omni" + (" on an emulated NPU; results carry `emulated`" if emulated else ""))
    blocked = next((by_name[x] for x in _DIFFUSERS_ROWS if x in by_name and by_name[x].verdict == "cannot"), None)
    if blocked is None:
        return works(what, f"{can} diffusers (emulated operator, projected latency); vllm-omni cannot: {_why(against)}")
    if blocked.what == "engine diffusers":
        return cannot(what, f"cannot: {_why(against)}; {_why(blocked)}")
    return cannot(what, f"cannot: {_why(blocked)}")


def _why(row: Verdict) -> str:
    return f"{row.what}: {row.detail.partition(';')[0]}"  # what to do is in the row


def _of_another_engine(row: Verdict) -> bool:
    return row.what.startswith("engine ") and row.what != "engine vllm-omni"
