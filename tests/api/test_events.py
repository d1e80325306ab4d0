"""What a client hears of a study while it goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fa_tuner_api.access
import fa_tuner_api.events
import fa_tuner_api.slow
import pytest

from fa_tuner.domain.study import study_id
from fa_tuner.settings import ServiceSettings
from fa_tuner.store.keys import Keys
from fa_tuner.store.repository import Store
from tests.support.service import Service, problem, strict_json
from tests.support.stored import HUB_MODEL, STUDIES, add_study
from tests.support.streams import Event, Stream, parse

Work = Callable[..., str]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fa_tuner_api.events, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(fa_tuner_api.events, "STILL_SECONDS", 0.1)
    monkeypatch.setattr(fa_tuner_api.access, "ASKED_EVERY", 0)


@pytest.fixture
def keys(settings: ServiceSettings) -> Iterator[Keys]:
    with Keys.open(settings.url) as opened:
        yield opened


def asked(service: Service, **body: Any) -> str:
    """The path of a study that was asked for."""
    answer = service.request("POST", STUDIES, json={"model": HUB_MODEL, **body})
    assert answer.status_code == 202, answer.text
    return str(answer.headers["location"])


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


# --- what is said -----------------------------------------------------------------------------------------------------


def test_an_ended_study_tells_its_front_and_ends(service: Service, tuned: Callable[..., str]) -> None:
    tuned(study="s")
    path = f"{STUDIES}/{study_id('s')}"
    answer = service.get(f"{path}/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-store" and answer.headers["x-accel-buffering"] == "no"
    assert answer.text.startswith("retry: ")
    events = list(parse(answer.text))
    front = strict_json(service.get(f"{path}/front"))
    assert names(events) == ["front"] * len(front["front"]) + ["progress", "end"]
    points = [event.data for event in events if event.name == "front"]
    assert sorted(points, key=lambda point: point["latency"]["relative"]) == front["front"]
    assert [event.id for event in events[:-2]] == [str(number) for number in sorted(p["number"] for p in points)]
    assert events[-2].data == {
        "state": "finished", "reason": front["reason"], "evaluated": front["evaluated"], "target": front["target"],
        "front": len(points),
    }  # fmt: skip
    assert events[-1] == Event("end", None, {"state": "finished", "reason": front["reason"]})


def test_who_comes_back_is_told_what_is_later(service: Service, tuned: Callable[..., str]) -> None:
    tuned(study="s")
    path = f"{STUDIES}/{study_id('s')}/events"
    all_ = [event for event in parse(service.get(path).text) if event.name == "front"]
    for place, last in enumerate(all_):
        again = list(parse(service.get(path, headers={"Last-Event-ID": str(last.id)}).text))
        assert [event for event in again if event.name == "front"] == all_[place + 1 :]
        assert names(again)[-2:] == ["progress", "end"] and again[-2].data["front"] == len(all_)
    later = parse(service.get(path, headers={"Last-Event-ID": "9" * 18}).text)
    assert names(list(later)) == ["progress", "end"]


@pytest.mark.parametrize("last", ["", "x", "-1", "1.5", "9" * 19, "\u0661".encode(), "1 2"])
def test_a_last_event_that_there_cannot_be(service: Service, store: Store, last: str) -> None:
    answer = service.get(f"{add_study(store, 's')}/events", headers={"Last-Event-ID": last})
    problem(answer, 422, "invalid-request")


def test_a_study_is_followed_from_waiting_to_its_end(service: Service, landscape: str, work: Work) -> None:
    path = asked(service, model=landscape, trials=8)
    with Stream(service.app, f"{path}/events") as stream:
        (waiting,) = stream.until("progress")
        assert waiting.data == {"state": "queued", "reason": "", "evaluated": 0, "target": 0, "front": 0}
        while_it_ran: list[Event] = []
        work(evaluated=lambda: while_it_ran.extend(stream.until("progress")))
        events = while_it_ran + stream.until("end")
        assert stream.rest() == []
    assert "front" in names(while_it_ran)  # told before the study had ended
    progress = [event.data for event in events if event.name == "progress"]
    assert {one["state"] for one in progress} == {"running", "finished"}
    counted = [one["evaluated"] for one in progress]
    assert counted == sorted(counted) and len(set(counted)) > 3 and counted[-1] == 8
    told = [event.data for event in events if event.name == "front"]
    ids = [point["policy"]["id"] for point in told]
    assert len(ids) == len(set(ids))  # none twice
    front = strict_json(service.get(f"{path}/front"))
    assert {point["policy"]["id"] for point in front["front"]} <= set(ids)
    assert events[-1].data == {"state": "finished", "reason": front["reason"]}


def test_a_cancelled_study_ends(service: Service) -> None:
    path = asked(service, prompts=["x"])
    with Stream(service.app, f"{path}/events") as stream:
        stream.until("progress")
        service.request("POST", f"{path}/cancel")
        events = stream.rest()
    assert names(events) == ["progress", "end"]
    assert events[-1].data == {"state": "cancelled", "reason": "cancelled"}


def test_a_failed_study_says_why(service: Service, landscape: str, work: Work) -> None:
    path = asked(service, model=landscape)
    Path(landscape).unlink()
    with Stream(service.app, f"{path}/events") as stream:
        stream.until("progress")
        work()
        events = stream.rest()
    reason = strict_json(service.get(path))["reason"]
    assert landscape in reason and events[-1].data == {"state": "failed", "reason": reason}


def test_a_study_that_the_command_line_runs(service: Service, store: Store) -> None:
    """It has no job, and its own state says when it ends."""
    path = add_study(store, "s", count=3)
    with Stream(service.app, f"{path}/events") as stream:
        first = stream.until("progress")
        assert first[-1].data["state"] == "running" and "front" in names(first)
        add_study(store, "other", count=2)  # of which nothing is said
        store.set_state("s", "unproven", "a cell ran native")
        events = stream.rest()
    assert [event for event in events if event.name == "front"] == []
    assert events[-1].data == {"state": "unproven", "reason": "a cell ran native"}


def test_a_study_that_is_resumed_can_be_followed_again(service: Service, landscape: str, work: Work) -> None:
    path = asked(service, model=landscape, trials=2)
    work()
    assert names(list(parse(service.get(f"{path}/events").text)))[-1] == "end"
    service.request("POST", f"{path}/resume", json={"trials": 4})
    with Stream(service.app, f"{path}/events", last_event_id="2") as stream:
        assert stream.until("progress")[-1].data["state"] == "queued"
        work()
        assert stream.until("end")[-1].data["state"] == "finished"


def test_text_of_a_study_cannot_be_taken_for_an_event(service: Service, store: Store) -> None:
    path = add_study(store, "s", count=1)
    store.set_state("s", "failed", "one\n\nevent: end\ndata: {}\r\rid: 9\n\u2028x")
    events = list(parse(service.get(f"{path}/events").text))
    assert names(events)[-2:] == ["progress", "end"] and len(events) == 2 + names(events).count("front")
    assert "event: end" in events[-1].data["reason"]


# --- what there is not ------------------------------------------------------------------------------------------------


def test_there_is_no_such_study(service: Service) -> None:
    problem(service.get(f"{STUDIES}/{'0' * 16}/events"), 404, "not-found")
    problem(service.get(f"{STUDIES}/x/events"), 422, "invalid-request")


def test_a_study_that_is_deleted_meanwhile(service: Service, store: Store) -> None:
    path = add_study(store, "s")
    with Stream(service.app, f"{path}/events") as stream:
        stream.until("progress")
        store.delete_study("s")
        stream.rest()
    problem(service.get(f"{path}/events"), 404, "not-found")


# --- who listens ------------------------------------------------------------------------------------------------------


def test_it_comes_a_piece_at_a_time(service: Service, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fa_tuner_api.events, "ALIVE_SECONDS", 0.1)
    with Stream(service.app, f"{add_study(store, 's')}/events") as stream:
        stream.until("progress")
        end = time.monotonic() + 10
        while ": alive\n\n" not in stream.text and time.monotonic() < end:
            time.sleep(0.02)
        assert ": alive\n\n" in stream.text


def test_a_revoked_key_hears_no_more(service: Service, store: Store, keys: Keys) -> None:
    path = f"{add_study(store, 's')}/events"
    key, secret = keys.create("ann", "read")
    _, other = keys.create("bob", "read")
    with (
        Stream(service.app, path, x_api_key=secret) as stream,
        Stream(service.app, path, x_api_key=other) as stays,
    ):
        stream.until("progress")
        stays.until("progress")
        keys.revoke(key.id)
        assert stream.rest() == []
        store.set_state("s", "failed", "so")
        assert stays.until("end")[-1].data["reason"] == "so"


def test_a_session_that_is_logged_out_hears_no_more(service: Service, store: Store, keys: Keys) -> None:
    path = f"{add_study(store, 's')}/events"
    key, _ = keys.create("ann", "read")
    session = keys.start_session(key.id, 60)
    with Stream(service.app, path, cookie=f"fa_tune_session={session}") as stream:
        stream.until("progress")
        keys.end_session(session)
        assert stream.rest() == []


def test_the_first_key_ends_what_was_open(service: Service, store: Store, keys: Keys) -> None:
    with Stream(service.app, f"{add_study(store, 's')}/events") as stream:
        stream.until("progress")
        keys.create("ann", "read")
        assert stream.rest() == []


def test_only_so_many_listen_at_once(service: Service, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fa_tuner_api.events, "MOST_STREAMS", 3)
    path = f"{add_study(store, 's')}/events"
    with ExitStack() as streams:
        for _ in range(3):
            streams.enter_context(Stream(service.app, path)).until("progress")
        answer = service.get(path)
        problem(answer, 429, "too-many-requests")
        assert int(answer.headers["retry-after"]) > 0
        assert service.get(path.removesuffix("/events")).status_code == 200
    with Stream(service.app, path) as stream:  # those who left make room
        stream.until("progress")
    assert service.app.streams == 0  # type: ignore[attr-defined]


def test_only_so_many_are_let_in_where_more_come_together(
    service: Service, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fa_tuner_api.events, "MOST_STREAMS", 5)
    path = f"{add_study(store, 's')}/events"
    service.get("/readyz")

    async def all_together() -> list[int]:
        statuses: list[int] = []
        left = asyncio.Event()

        async def listen() -> None:
            async def receive() -> Any:
                await left.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                await asyncio.sleep(0.01)  # as a slow client makes it
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            scope = {
                "type": "http", "method": "GET", "path": path, "raw_path": b"", "query_string": b"", "scheme": "http",
                "headers": [(b"host", b"127.0.0.1")], "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
                "asgi": {"version": "3.0"},
            }  # fmt: skip
            await service.app(scope, receive, send)

        tasks = [asyncio.create_task(listen()) for _ in range(30)]
        while len(statuses) < 30:
            await asyncio.sleep(0.01)
        left.set()
        await asyncio.gather(*tasks)
        return statuses

    statuses = asyncio.run(asyncio.wait_for(all_together(), 20))
    assert sorted(statuses) == [200] * 5 + [429] * 25
    assert service.app.streams == 0  # type: ignore[attr-defined]


def test_who_does_not_read_loses_its_place(service: Service, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fa_tuner_api.slow, "SECONDS", 0.2)

    class Unread(Stream):
        async def _send(self, message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.sleep(60)
            await super()._send(message)

    with Unread(service.app, f"{add_study(store, 's')}/events") as stream:
        assert stream.rest(5) == []
        assert stream.status == 200
    assert service.app.streams == 0  # type: ignore[attr-defined]


def test_they_end_with_the_service(service: Service, store: Store) -> None:
    with Stream(service.app, f"{add_study(store, 's')}/events") as stream:
        stream.until("progress")
        service.app.closing = True  # type: ignore[attr-defined]
        assert stream.rest() == []


def test_a_store_that_fails_ends_the_stream_without_a_word(
    service: Service, store: Store, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fa_tuner.domain.errors import StoreError

    def failing(*_: Any) -> None:
        raise StoreError("the disk is full of hunter2secret")

    with Stream(service.app, f"{add_study(store, 's')}/events") as stream:
        stream.until("progress")
        monkeypatch.setattr(Store, "stamp", failing)
        assert stream.rest() == []
        assert "hunter2secret" not in stream.text
