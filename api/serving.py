"""`fa-tune serve`: the application in uvicorn, until a signal ends it."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from fa_tuner.domain.errors import UsageError
from fa_tuner.settings import ServiceSettings, WorkerSettings, load
from fa_tuner.store.keys import Keys
from fa_tuner.worker.processes import Processes, parse_devices

from .access import is_loopback
from .app import create_app
from .security import GuardedApp

GRACE_SECONDS = 10  # for what is being answered, after a signal
MOST_CONNECTIONS = 512  # in many places a process may have 1024 files open; who comes then gets 503, from uvicorn
# how long a thread that computes keeps the others waiting: short answers are not to wait for a long one
SWITCH_SECONDS = 0.001


def serve(
    settings: ServiceSettings,
    announce: Callable[[str], None],
    say: Callable[[str], None],
    with_worker: bool = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C; `announce` is given the address as soon as it answers. `with_worker` has workers
    in processes of their own, on the same store, for as long; `say` is told how they fare.

    Raises:
        UsageError: the address cannot be listened on, or is not this machine's own and there is no key.
        StoreError: the store cannot be opened.
    """
    with Keys.open(settings.url) as keys:  # migrates, too, before anybody asks
        if not is_loopback(settings.host) and not keys.any(usable=True):
            raise UsageError(
                f"{settings.host} can be reached from elsewhere, and no key was created: "
                "`fa-tune keys create NAME --scope admin` makes one; or serve on 127.0.0.1"
            )
    sys.setswitchinterval(SWITCH_SECONDS)
    with _listening(settings.host, settings.port) as listener:
        app = create_app(settings)
        # uvicorn's log: what went wrong, to stderr, without addresses and queries of the requests
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, ws="none",
            timeout_graceful_shutdown=GRACE_SECONDS, limit_concurrency=MOST_CONNECTIONS,
        )  # fmt: skip
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = _Server(config, app, lambda: announce(address))
        with _workers(settings, say) if with_worker else Processes([], settings, say) as workers:

            def ended(_signal: int, _frame: FrameType | None) -> None:
                server.stop()
                workers.stop()

            for number in (signal.SIGINT, signal.SIGTERM):
                # uvicorn has handlers of its own while it runs and calls these afterwards; ours also end what only
                # starts
                signal.signal(number, ended)
            server.run(sockets=[listener])


def _workers(settings: ServiceSettings, say: Callable[[str], None]) -> Processes:
    """One for each device that `FA_TUNE_DEVICES` names, or one that has what this process sees."""
    devices = parse_devices(load(WorkerSettings, {}).devices)
    return Processes(devices or [None], settings, say)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: GuardedApp, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._app, self._announce = app, started

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.closing = True  # who listens to events would not leave by himself
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    def stop(self) -> None:
        self.should_exit = True


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot listen on {host[:80]}, port {port}: {said}; choose another --host or --port"
        ) from None
    return listener
