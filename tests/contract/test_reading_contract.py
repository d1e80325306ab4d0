"""A later reading of a study, over both databases: all that is stored, of which only what was changed is read again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from fa_tuner.domain.errors import NotFoundError
from fa_tuner.domain.measurement import Latency
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Evaluation
from fa_tuner.store import evaluations
from fa_tuner.store.repository import Store
from fa_tuner.store.schema import studies
from tests.contract import test_store_contract as contract
from tests.contract.test_store_contract import a_spec, a_workload, an_evaluation, qualities

postgres, url = contract.postgres, contract.url  # the store's own fixtures

COUNT = 5  # of evaluations, the last one failed
KEYS = [an_evaluation(number).policy.key for number in range(COUNT - 1)]
FASTER = Latency(0.2, "measured", 12.5, 0.01, 5, 13.7, "of 5")
HELD_OUT = a_workload().holdout_cases


def failed(number: int) -> Evaluation:
    return Evaluation(replace(SkipPolicy("fp8"), skip_steps=an_evaluation().policy.skip_steps), "try", number)


def anew(store: Store) -> None:
    """Another study of that name, whose rows have the ids and figures of the first one's."""
    store.delete_study("first")
    store.create_study(a_spec(), 9)
    for number in range(COUNT - 1):
        store.add_evaluation("first", replace(an_evaluation(number), origin="try"))


# what is done, and how many of the evaluations are another object afterwards
CHANGES: dict[str, tuple[Callable[[Store], object], int]] = {
    "nothing": (lambda store: None, 0),
    "said of the study": (lambda store: store.set_state("first", "finished"), 0),
    "one more": (lambda store: store.add_evaluation("first", an_evaluation(9)), 1),
    "two more, one before the others": (
        lambda store: (
            store.add_evaluation("first", replace(an_evaluation(9), number=8)),
            store.add_evaluation("first", replace(an_evaluation(8), number=-1)),
        ),
        2,
    ),
    "a latency": (lambda store: store.set_latency("first", KEYS[1], FASTER), 1),
    "the same latency": (
        lambda store: store.set_latency("first", KEYS[1], an_evaluation(1).measurement.latency),  # type: ignore[union-attr]
        0,
    ),
    "its detail": (
        lambda store: store.set_latency("first", KEYS[1], replace(FASTER, relative=0.1 + 0.2, detail="of 6")), 1,
    ),
    "all latencies": (lambda store: store.set_latencies("first", None, dict.fromkeys(KEYS, FASTER)), COUNT - 1),
    "held out no more": (lambda store: store.set_holdout("first", KEYS[2], ()), 1),
    "held out again": (lambda store: store.set_holdout("first", KEYS[2], qualities(HELD_OUT, 0.25)), 1),
    "held out alike": (lambda store: store.set_holdout("first", KEYS[2], qualities(HELD_OUT, 1e-300)), 0),
    "another study": (anew, COUNT - 1),
}  # fmt: skip


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """With one study, "first"."""
    with Store.open(url) as opened:
        opened.create_study(a_spec(), 9)
        for number in range(COUNT - 1):
            opened.add_evaluation("first", an_evaluation(number))
        opened.add_evaluation("first", failed(COUNT - 1))
        yield opened


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_later_reading_is_all_that_is_stored(
    store: Store, change: str, one_by_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "MOST_BY_ID", 100 if one_by_one else 0)
    before = store.reading("first")
    handed_out = before.evaluations
    assert handed_out == store.evaluations("first")
    done, differing = CHANGES[change]
    done(store)
    later = store.reading("first", before)
    assert later.evaluations == store.evaluations("first")
    assert before.evaluations == handed_out
    if one_by_one:
        kept = {id(evaluation) for evaluation in handed_out}
        assert sum(id(evaluation) not in kept for evaluation in later.evaluations) == differing


def test_of_a_study_that_grows_few_rows_are_read_in_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.reading("first")
    store.add_evaluation("first", an_evaluation(9))
    read: list[int] = []
    of_row = evaluations.rows.evaluation_of
    monkeypatch.setattr(evaluations.rows, "evaluation_of", lambda *row: (read.append(1), of_row(*row))[1])
    statements: list[str] = []
    sa.event.listen(store._database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    store.reading("first", before)
    assert len(read) == 1
    assert len([statement for statement in statements if statement.startswith("SELECT")]) == 5


def test_a_study_without_evaluations_and_one_that_is_gone(store: Store) -> None:
    store.create_study(a_spec("second"), 9)
    before = store.reading("second")
    assert before.evaluations == []
    store.add_evaluation("second", an_evaluation())
    later = store.reading("second", before)
    assert later.evaluations == store.evaluations("second")
    store.delete_study("second")
    with pytest.raises(NotFoundError, match="second"):
        store.reading("second", later)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_the_version_is_another_after_every_commit_and_only_then(store: Store, url: str) -> None:
    database = store._database
    with Store.open(url) as other:
        seen = [database.version()]
        for number, writer in enumerate((store, other) * 3):  # one's own commits, too
            writer.stamp("first"), writer.evaluations("first")
            assert database.version() == seen[-1]
            with writer._database.writing() as connection:
                connection.execute(sa.update(studies).values(updated=datetime(2026, 1, 1 + number, tzinfo=UTC)))
                assert database.version() == seen[-1]  # nor does it wait for who writes
            seen.append(database.version())
        assert None not in seen and len(set(seen)) == len(seen)
        database.close()
        assert database.version() not in seen  # of another connection


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_no_version_is_told_where_it_would_have_to_wait(store: Store, url: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        store._database.engine.dispose()
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN IMMEDIATE")
        assert store._database.version() is None


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_postgresql_tells_no_version(store: Store) -> None:
    assert store._database.version() is None


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)  # a server that can close one
def test_a_glance_takes_another_connection_where_its_own_was_closed(store: Store) -> None:
    for _ in range(2):
        ((pid,),) = store._database.glance(sa.select(sa.func.pg_backend_pid()), {})
        with store._database.writing() as connection:
            assert connection.scalar(sa.select(sa.func.pg_terminate_backend(pid, 5000)))
        assert store.stamp("first").name == "first"
