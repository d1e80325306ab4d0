"""How fast the service recommends: `python benchmarks/bench_service.py [--only sqlite|postgresql] [--seconds N]`.

`fa-tune serve` runs in a process of its own, one, with a key, and is asked over loopback sockets from this process.

Latency: an open loop, 100 requests a second on schedule whatever the answers do, counted from when each was due. 95 of
100 questions are drawn from 200 that are asked again and again (10 models; of a third of the questions only the model
is said, the others name size and steps; with the study's own bounds, a PSNR, or a preset); 5 of 100 were never asked
before (a study's size and steps, and a PSNR of three decimals). Meanwhile another process adds an evaluation a second,
to one of three running studies in turn. All questions of the 200 were asked once before.

Throughput: a closed loop of 16 connections, ours and the bare route's in short turns, nothing added meanwhile; the
ratio is that of each turn, and the median of them is shown.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from rich.console import Console
from rich.table import Table
from service_load import Load, closed_loop, open_loop
from service_store import Filling, database, fill, growing, spec_of

from fa_tuner.store.keys import Keys

FILLINGS = (Filling(10, 2, 50), Filling(10, 25, 400))
RATE, NEW_SHARE, POOL = 100.0, 0.05, 200
ADDED_EVERY = 1.0  # seconds
CONNECTIONS, TURNS, TURN_SECONDS = 16, 6, 3.0
BOUNDS = ({}, {"min_psnr": "30"}, {"min_psnr": "27.5"}, {"quality": "recommended"})
TARGET_P99_MS, TARGET_GROWTH, TARGET_RATIO = 25.0, 2.0, 0.6


@dataclass
class Questions:
    """Requests as bytes: an endless mix, from a seed."""

    filling: Filling
    secret: str | None
    draw: random.Random = field(default_factory=lambda: random.Random(1))

    def __post_init__(self) -> None:
        self.pool = [self._request(self._known()) for _ in range(POOL)]

    def mixed(self) -> Iterator[bytes]:
        while True:
            new = self.draw.random() < NEW_SHARE
            yield self._request(self._new()) if new else self.draw.choice(self.pool)

    def _known(self) -> dict[str, str]:
        asked = self._of_a_study()
        if self.draw.random() < 1 / 3:
            asked = {"model": asked["model"]}
        return {**asked, **self.draw.choice(BOUNDS)}

    def _new(self) -> dict[str, str]:
        return {**self._of_a_study(), "min_psnr": f"{self.draw.uniform(25, 32):.3f}"}

    def _of_a_study(self) -> dict[str, str]:
        number = self.draw.randrange(self.filling.models), self.draw.randrange(self.filling.studies_each)
        work = spec_of(*number).workload
        return {"model": work.model, **{n: str(getattr(work, n)) for n in ("height", "width", "frames", "steps")}}

    def _request(self, asked: dict[str, str]) -> bytes:
        return request(f"/api/v1/recommendations?{urlencode(asked)}", self.secret)


def request(path: str, secret: str | None = None) -> bytes:
    key = f"Authorization: Bearer {secret}\r\n" if secret else ""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{key}Accept: */*\r\n\r\n".encode()


@contextmanager
def served(*command: str, **environment: str) -> Iterator[tuple[str, int]]:
    """A server in a process of its own, which prints its address; that address."""
    process = subprocess.Popen(
        [sys.executable, *command], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().split()[-1])
        yield str(address.hostname), int(address.port or 0)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        finally:
            process.kill()


@contextmanager
def service(url: str) -> Iterator[tuple[str, int]]:
    command = str(Path(sys.executable).with_name("fa-tune")), "serve", "--port", "0"
    with served(*command, FA_TUNE_STORAGE=url) as address:
        yield address


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("sqlite", "postgresql"), help="one of the two databases")
    parser.add_argument("--seconds", type=float, default=30, help="of each open loop")
    parser.add_argument("--turns", type=int, default=TURNS, help="of each server in the closed loops")
    arguments = parser.parse_args()
    console = Console(width=120)
    latencies, throughputs = latency_table(), throughput_table()
    for kind in ("SQLite", "PostgreSQL"):
        if arguments.only in (None, kind.lower()):
            measure(kind, arguments.seconds, arguments.turns, latencies, throughputs)
    console.print(latencies, throughputs)
    console.print(
        f"{platform.machine()} CPU, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}"
    )


def measure(kind: str, seconds: float, turns: int, latencies: Table, throughputs: Table) -> None:
    """The rows of one database."""
    least: float | None = None
    for filling in FILLINGS:
        with database(kind) as url:
            fill(url, filling)
            with Keys.open(url) as keys:
                _, secret = keys.create("bench", "read")
            questions = Questions(filling, secret)
            with service(url) as address:
                warmed = checked(closed_loop(address, iter(questions.pool), 1, 120))
                print(warmed.seconds, percentile(warmed, 50), percentile(warmed, 90), warmed.statuses)
                with growing(url, ADDED_EVERY):
                    load = checked(open_loop(address, questions.mixed(), RATE, seconds))
                p99 = percentile(load, 99)
                latencies.add_row(
                    kind, f"{filling.evaluations:,}", f"{max(warmed.latencies) * 1e3:.0f}", *milliseconds(load),
                    "" if least is None else f"{p99 / least:.1f}",
                )  # fmt: skip
                least = least or p99
                if filling is FILLINGS[-1]:
                    throughputs.add_row(kind, *ratios(address, url, questions, turns))


def ratios(address: tuple[str, int], url: str, questions: Questions, turns: int) -> tuple[str, ...]:
    """Requests a second of the mix, of the 200 only, and of the bare route; then the ratios."""
    study = request("/study?name=model-1/0")
    rates: dict[str, list[float]] = {"mix": [], "known": [], "bare": []}
    with served(str(Path(__file__).with_name("service_bare.py")), url) as bare:
        asked = {
            "mix": (address, questions.mixed()),
            "known": (address, cycle(questions.pool)),
            "bare": (bare, cycle([study])),
        }
        for turn in range(turns + 1):
            for name, (where, requests) in asked.items():
                load = checked(closed_loop(where, requests, CONNECTIONS, TURN_SECONDS if turn else 1.0))
                if turn:  # the first one only warms
                    rates[name].append(load.rate)
    shown = [f"{statistics.median(rates[name]):.0f}" for name in rates]
    for name in ("mix", "known"):
        each = [ours / theirs for ours, theirs in zip(rates[name], rates["bare"], strict=True)]
        shown.append(f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})")
    return tuple(shown)


def checked(load: Load) -> Load:
    """A question to which no policy is the answer is answered by 404."""
    if unexpected := load.statuses.keys() - {200, 404}:
        raise RuntimeError(f"the service answered {unexpected}: {load.statuses}")
    if load.statuses.get(404, 0) > 0.2 * len(load.latencies):
        raise RuntimeError(f"too few questions have an answer: {load.statuses}")
    return load


def percentile(load: Load, percent: float) -> float:
    """Milliseconds."""
    ordered = sorted(load.latencies)
    return 1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def milliseconds(load: Load) -> tuple[str, ...]:
    return tuple(f"{percentile(load, percent):.1f}" for percent in (50, 90, 99, 99.9))


def latency_table() -> Table:
    table = Table(
        title=f"recommendations with a key, open loop at {RATE:.0f} a second; ms from when each was due",
        caption=f"p99 target {TARGET_P99_MS:.0f} ms, and at most {TARGET_GROWTH:.0f} x that of the smaller store",
    )
    table.add_column("database")
    for name in ("evaluations", "worst while warming", "p50", "p90", "p99", "p99.9", "x p99 of the smaller"):
        table.add_column(name, justify="right")
    return table


def throughput_table() -> Table:
    table = Table(
        title=f"requests a second at saturation, {CONNECTIONS} connections, {FILLINGS[-1].evaluations:,} evaluations",
        caption=f"a ratio is of turns side by side, median (least to most); target {TARGET_RATIO}",
    )
    table.add_column("database")
    for name in ("mix", "the 200 only", "bare route", "mix / bare", "200 / bare"):
        table.add_column(name, justify="right")
    return table


if __name__ == "__main__":
    main()
