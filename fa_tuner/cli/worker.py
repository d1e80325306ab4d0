"""`fa-tune worker`: takes the studies that the service was asked for."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Storage, given

if TYPE_CHECKING:
    from fa_tuner.settings import WorkerSettings


def worker(
    devices: Annotated[
        str | None,
        typer.Option("--devices", help="A worker for each: npu:0,npu:1 (npu:0+1: both for one).", show_default=False),
    ] = None,
    storage: Storage = None,
    artifacts: Annotated[
        str | None, typer.Option("--artifacts", help="Folder or URL for frames.", show_default=False)
    ] = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when no study is due.")] = False,
) -> None:
    """Tune the studies that the service is asked for, one at a time on each device, until Ctrl-C or SIGTERM.

    Once, either lets the running policy end; twice stops at once. Its study then goes on with another worker.
    """
    from fa_tuner.settings import WorkerSettings, load

    named = devices.split(",") if devices is not None else None
    settings = load(WorkerSettings, given({"devices": named, "storage": storage, "artifacts": artifacts}))
    if settings.devices and not until_idle:
        _supervise(settings)
        return

    from fa_tuner.domain.errors import UsageError
    from fa_tuner.worker.loop import WorkerLoop

    from .progress import Lines

    if settings.devices:
        raise UsageError("--until-idle is for one worker; leave --devices (FA_TUNE_DEVICES) out")
    WorkerLoop(settings, lambda request, stop: Lines(request, _say, stop), _say).run(until_idle)


def _supervise(settings: WorkerSettings) -> None:
    from fa_tuner.store.database import Database
    from fa_tuner.worker.processes import POLL_SECONDS, Processes, parse_devices

    found = parse_devices(settings.devices)
    Database.open(settings.url).close()  # what is wrong with it is said once, and one process migrates it
    asked = False
    with Processes(found, settings, _say) as all_:

        def stop(_signal: int, _frame: FrameType | None) -> None:
            nonlocal asked
            asked = True
            all_.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        while not asked:
            time.sleep(POLL_SECONDS)


def _say(text: str) -> None:
    typer.echo(text, err=True)
