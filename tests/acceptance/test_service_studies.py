"""Studies asked of a service in a process of its own, with a worker in another: what a client of both sees."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from fa_tuner.engines.synthetic import synthetic_landscape
from tests.acceptance.test_service_commands import served
from tests.support.command import FaTune
from tests.support.streams import Event, parse

API = "/api/v1"


@pytest.fixture
def large(tmp_path: Path, fa_tune: FaTune, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A landscape that takes some seconds to search, and that the service allows."""
    model = tmp_path / "large.json"
    synthetic_landscape(30, 20, prompts=2, holdout=1, seed=3).write(model)
    monkeypatch.setenv("FA_TUNE_MODELS", json.dumps([str(model)]))
    monkeypatch.setenv("FA_TUNE_ENGINE", "replay")
    return model


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def events(answer: httpx.Response) -> Iterator[tuple[Event, float]]:
    """Each as it comes, and when."""
    block = ""
    for line in answer.iter_lines():
        block += f"{line}\n"
        if not line:
            for event in parse(block):
                yield event, time.monotonic()
            block = ""


def test_a_study_from_its_request_to_its_recommendation(fa_tune: FaTune, large: Path) -> None:
    """With the worker beside the service: ready once it lives, heard of while it runs, recommended at the end."""
    process = fa_tune.start("serve", "--port", "0", "--with-worker")
    address = served(process)
    wait_for(lambda: httpx.get(f"{address}/readyz").status_code == 200)
    assert httpx.get(f"{address}/readyz").json() == {"status": "ready", "workers": 1}
    body = {"model": str(large), "trials": 40, "min_psnr": 25}
    asked = httpx.post(f"{address}{API}/studies", json=body)
    assert asked.status_code == 202, asked.text
    study = address + asked.headers["location"]
    with httpx.stream("GET", f"{study}/events", timeout=60) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        heard = list(events(answer))
    names = [event.name for event, _ in heard]
    assert names[-1] == "end" and heard[-1][0].data["state"] == "finished"
    first = next(when for event, when in heard if event.name == "front")
    counts = [event.data["evaluated"] for event, _ in heard if event.name == "progress"]
    assert heard[-1][1] - first > 0.5, "it all came at the end"
    assert len(set(counts)) > 2 and counts == sorted(counts)
    found = httpx.get(study).json()
    assert (found["state"], found["job"]["state"], found["evaluated"]) == ("finished", "finished", counts[-1])
    answer = httpx.get(f"{address}{API}/recommendations", params={"model": str(large)})
    assert answer.status_code == 200 and answer.json()["study"] == found["study"]
    process.send_signal(signal.SIGTERM)
    ended = fa_tune.finish(process, 30)
    assert (ended.code, ended.out) == (0, "")


def test_the_first_events_come_before_anything_happens(fa_tune: FaTune, large: Path) -> None:
    """Nothing between the application and the client waits for more."""
    address = served(fa_tune.start("serve", "--port", "0"))
    asked = httpx.post(f"{address}{API}/studies", json={"model": str(large), "trials": 2})
    began = time.monotonic()
    with httpx.stream("GET", f"{address}{asked.headers['location']}/events", timeout=60) as answer:
        coming = events(answer)
        event, when = next(coming)
        assert (event.name, event.data["state"]) == ("progress", "queued")
        assert when - began < 5
        worker = fa_tune.start("worker", "--until-idle")
        states = [event.data["state"] for event, _ in coming if event.name in ("progress", "end")]
    assert states[-1] == "finished"
    assert fa_tune.finish(worker).code == 0


def test_who_listens_does_not_keep_the_service_from_ending(fa_tune: FaTune, large: Path) -> None:
    process = fa_tune.start("serve", "--port", "0")
    address = served(process)
    asked = httpx.post(f"{address}{API}/studies", json={"model": str(large)})
    with ExitStack() as streams:
        listening = []
        for _ in range(5):
            answer = streams.enter_context(
                httpx.stream("GET", f"{address}{asked.headers['location']}/events", timeout=60)
            )
            coming = events(answer)
            assert next(coming)[0].data["state"] == "queued"
            listening.append(coming)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        for coming in listening:
            assert list(coming) == []  # ended in good order, not cut off
        ended = fa_tune.finish(process, 20)
        assert time.monotonic() - began < 5
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_who_leaves_makes_room_for_another(fa_tune: FaTune, large: Path) -> None:
    address = served(fa_tune.start("serve", "--port", "0"))
    asked = httpx.post(f"{address}{API}/studies", json={"model": str(large)})
    events_of = f"{address}{asked.headers['location']}/events"
    with ExitStack() as streams:
        client = streams.enter_context(httpx.Client(limits=httpx.Limits(max_connections=None), timeout=60))
        for _ in range(64):
            answer = streams.enter_context(client.stream("GET", events_of))
            assert answer.status_code == 200
        full = client.get(events_of)
        assert full.status_code == 429 and full.headers["content-type"] == "application/problem+json"
        assert client.get(f"{address}/healthz").status_code == 200  # and everybody else is answered
    wait_for(lambda: _is_let_in(events_of), 10)


def _is_let_in(url: str) -> bool:
    with httpx.stream("GET", url) as answer:
        return answer.status_code == 200
