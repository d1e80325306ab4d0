"""Who asks at once shares a turn, and no turn began before its question."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable

import pytest
from fa_tuner_api.turns import Turns


class Source:
    """Counts up by one each time it is asked, and answers when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self._let = threading.Semaphore(0)

    def __call__(self) -> int:
        self.asked += 1
        number = self.asked
        assert self._let.acquire(timeout=30)
        return number

    async def begun(self, number: int) -> None:
        while self.asked < number:
            await asyncio.sleep(0.001)

    def answer(self, times: int = 1) -> None:
        self._let.release(times)


async def soon(*asked: Awaitable[int]) -> list[asyncio.Future[int]]:
    """Asked in this order, and not waited for."""
    tasks = [asyncio.ensure_future(each) for each in asked]
    await asyncio.sleep(0)
    return tasks


def test_who_asks_while_a_turn_runs_shares_the_next() -> None:
    async def asking() -> list[int]:
        turns, source = Turns[int](), Source()
        early = await soon(turns.get("a", source))
        await source.begun(1)
        late = await soon(*(turns.get("a", source) for _ in range(5)))
        source.answer()
        await early[0]
        await source.begun(2)
        latest = await soon(turns.get("a", source))
        source.answer(2)
        return list(await asyncio.gather(*early, *late, *latest))

    assert asyncio.run(asking()) == [1, 2, 2, 2, 2, 2, 3]


def test_other_keys_have_turns_of_their_own() -> None:
    async def asking() -> None:
        turns, one, other = Turns[int](), Source(), Source()
        waiting = await soon(turns.get("a", one))
        other.answer()
        assert await turns.get("b", other) == 1
        one.answer()
        assert await waiting[0] == 1
        assert not turns._running and not turns._next

    asyncio.run(asking())


@pytest.mark.parametrize("keep", [True, False])
def test_an_answer_stands_while_the_version_does(keep: bool) -> None:
    async def asking() -> list[int]:
        version: list[int | None] = [1]
        turns, source = Turns[int](lambda: version[0]), Source()
        source.answer(9)
        answers = []
        for version[0] in (1, 1, 2, 2, None, None):
            answers.append(await turns.get("a", source, keep))
        return answers

    assert asyncio.run(asking()) == ([1, 1, 2, 2, 3, 4] if keep else [1, 2, 3, 4, 5, 6])


def test_what_changes_during_a_turn_is_asked_for_again() -> None:
    async def asking() -> list[int]:
        version = [1]
        turns, source = Turns[int](lambda: version[0]), Source()
        (early,) = await soon(turns.get("a", source))
        await source.begun(1)
        version[0] = 2
        source.answer(2)
        return [await early, await turns.get("a", source), await turns.get("a", source)]

    assert asyncio.run(asking()) == [1, 2, 2]


def test_only_so_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fa_tuner_api.turns.MOST_KEPT", 2)

    async def asking() -> None:
        turns = Turns[int](lambda: 1)
        for number in range(9):
            assert await turns.get(number, lambda number=number: number) == number  # type: ignore[misc]
            assert len(turns._kept) <= 2

    asyncio.run(asking())


def test_a_failure_is_everyones_and_ends_with_its_turn() -> None:
    async def asking() -> None:
        turns = Turns[int]()

        def fail() -> int:
            raise ValueError("no")

        for failed in await asyncio.gather(*(turns.get("a", fail) for _ in range(3)), return_exceptions=True):
            assert isinstance(failed, ValueError)
        assert await turns.get("a", lambda: 4) == 4

    asyncio.run(asking())


def test_one_who_leaves_takes_no_answer_from_the_others() -> None:
    async def asking() -> int:
        turns, source = Turns[int](), Source()
        leaving, staying = await soon(turns.get("a", source), turns.get("a", source))
        await source.begun(1)
        leaving.cancel()
        source.answer()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await staying

    assert asyncio.run(asking()) == 1


def test_a_loop_that_ended_early_leaves_no_turn_behind() -> None:
    turns = Turns[int]()

    async def leave() -> None:
        asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]
        await turns.get("a", lambda: 1)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(leave())
    assert asyncio.run(turns.get("a", lambda: 2)) == 2
