"""A database that cannot be used gives one clear StoreError, without a secret in it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

import fa_tuner
from fa_tuner.domain.errors import StoreError
from fa_tuner.domain.measurement import Constraint, Requirement
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Evaluation, StudySpec
from fa_tuner.domain.workload import Workload
from fa_tuner.store import database, location
from fa_tuner.store.failures import describe, shown
from fa_tuner.store.repository import Store

CANARY = "canary-h7Q2"
SPEC = StudySpec(
    "s", Workload("m", ("a cat",), 480, 832, 61, 4), ("fp8",), Requirement((Constraint.parse("mae<=3"),)), "ours", 1,
    {"steps": 4, "layers": [0, 1]}, "projected", "a5",
)  # fmt: skip


def failed(number: int, reason: str = "died") -> Evaluation:
    return Evaluation(SkipPolicy.parse(f"{number}/", ("fp8",), SPEC.grid), "try", number, None, reason)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with one study and three evaluations."""
    path = tmp_path / "fa-tune.db"
    with Store.open(f"sqlite:///{path}") as store:
        store.create_study(SPEC, 4)
        for number in range(3):
            store.add_evaluation("s", failed(number))
    return path


def refusal(url: str, timeout_seconds: float = 0.2) -> str:
    with pytest.raises(StoreError) as caught:
        Store.open(url, timeout_seconds)
    return str(caught.value)


def test_sqlite_is_set_up_for_several_processes(path: Path) -> None:
    with Store.open(f"sqlite:///{path}") as store, store._database.reading() as connection:
        pragmas = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in
                   ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")}  # fmt: skip
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30_000, "synchronous": 1}


@pytest.mark.parametrize("keep", [100, 1000, 4096, 5000, 20_000])
def test_a_truncated_file(path: Path, keep: int) -> None:
    whole = path.read_bytes()
    assert keep < len(whole)
    path.write_bytes(whole[:keep])
    said = refusal(f"sqlite:///{path}")
    assert str(path) in said and "damaged" in said
    assert path.read_bytes() == whole[:keep]


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("dear diary, " * 1000)
    assert "file is not a database; the file is damaged or of another program" in refusal(
        f"sqlite:///{tmp_path}/notes.txt"
    )
    assert (tmp_path / "notes.txt").read_text() == "dear diary, " * 1000


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for inside in ("file/a.db", "file/b/a.db"):
        assert "check that the folder exists and is writable" in refusal(f"sqlite:///{tmp_path}/{inside}")


def test_a_folder_where_a_file_is_needed(tmp_path: Path) -> None:
    assert "unable to open database file; check" in refusal(f"sqlite:///{tmp_path}")


def test_a_database_that_may_only_be_read(path: Path) -> None:
    with Store.open(f"sqlite:///file:{path}?mode=ro&uri=true") as store:
        assert store.count("s") == 3
        with pytest.raises(StoreError, match="readonly database; give this user the right to write"):
            store.add_evaluation("s", failed(3))


def test_a_new_database_in_a_place_that_may_only_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.db").write_bytes(b"")
    assert "right to write" in refusal(f"sqlite:///file:{tmp_path}/empty.db?mode=ro&uri=true")


def test_a_locked_database(path: Path) -> None:
    url = f"sqlite:///{path}"
    with closing(sqlite3.connect(path, isolation_level=None)) as other, Store.open(url, timeout_seconds=0.1) as store:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked; another process is writing"):
            store.add_evaluation("s", failed(3))
        assert store.count("s") == 3  # reading goes on
        other.execute("ROLLBACK")
        store.add_evaluation("s", failed(3))
        assert store.count("s") == 4


def test_a_new_database_that_another_process_holds(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "locked; another process is writing" in refusal(f"sqlite:///{tmp_path}/a.db")


def test_a_full_disk(path: Path) -> None:
    with Store.open(f"sqlite:///{path}") as store:
        with store._database.engine.connect() as connection:  # the pool's one connection, so the limit stays
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
        with pytest.raises(StoreError, match="full; free some space"):
            store.add_evaluation("s", failed(3, "x" * 1_000_000))
        assert store.count("s") == 3
        store.add_evaluation("s", failed(3))


def test_a_table_that_is_gone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE fa_tune_cases")
    with (
        Store.open(f"sqlite:///{path}") as store,
        pytest.raises(StoreError, match="no such table: fa_tune_cases") as caught,
    ):
        store.evaluations("s")
    assert isinstance(caught.value.__cause__, sa.exc.SQLAlchemyError)
    assert "SELECT" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "fa-tune.db", f"/x/{CANARY}", f"mysql://u:{CANARY}@host/db", "sqlite://", "sqlite:///:memory:",
     f"postgresql://u:{CANARY}@host:port/db", f"oracle+none://u:{CANARY}@h/d", f"://u:{CANARY}@h"],
)  # fmt: skip
def test_a_url_that_cannot_be_used(url: str) -> None:
    with pytest.raises(StoreError, match="write sqlite:///PATH or postgresql://USER@HOST/DATABASE") as caught:
        Store.open(url)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [f"postgresql://user:{CANARY}@127.0.0.1:1/db", f"postgres://127.0.0.1:1/db?user=u&password={CANARY}",
     f"postgresql+psycopg2://user:{CANARY}@127.0.0.1:1/db?sslpassword={CANARY}",
     f"postgresql://user:{CANARY}@127.0.0.1:1/db?no_such_option={CANARY[:0]}1"],
)  # fmt: skip
def test_a_server_that_cannot_be_reached(url: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    said = str(caught.value)
    assert "127.0.0.1:1/db" in said and ("***" in said or "hidden" in said)
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)


def test_an_error_that_quotes_the_password_is_told_without_it() -> None:
    url = sa.make_url(f"postgresql+psycopg://u:{CANARY}@h/d?passfile=/x/{CANARY}")
    said = describe(sqlite3.OperationalError(f"connection to u:{CANARY}@h failed\nfor /x/{CANARY}"), url)
    assert CANARY not in said and CANARY not in shown(url) and "\n" not in said
    assert said.endswith("host, port, database, user and password")


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    said = refusal(f"postgresql://u:{CANARY}@h/d")
    assert "pip install 'fa-tune[postgres]'" in said and CANARY not in said


def test_the_url_shown_hides_the_password(path: Path) -> None:
    with Store.open(f"sqlite:///{path}") as store:
        assert store.url == f"sqlite:///{path}"
    assert (
        shown(sa.make_url(f"postgresql://u:{CANARY}@h/d?password={CANARY}")) == "postgresql://u:***@h/d?password=hidden"
    )


def test_threads_may_migrate_different_databases_at_once(tmp_path: Path) -> None:
    def use(number: int) -> int:
        with Store.open(f"sqlite:///{tmp_path}/{number}.db") as store:
            store.create_study(SPEC, 1)
            return len(store.studies())

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(use, range(6))) == [1] * 6


def test_head_is_alembics_head() -> None:
    from fa_tuner.store import migrations

    assert migrations.revisions()[0] == database.HEAD


def test_heavy_packages_load_only_where_they_are_used(path: Path) -> None:
    code = (
        "import sys, fa_tuner.store, fa_tuner.store.location\n"
        "print(sorted({'sqlalchemy', 'alembic', 'numpy'} & set(sys.modules)))\n"
        "from fa_tuner.store.repository import Store\n"
        "Store.open(sys.argv[1]).close()\n"
        "print(sorted({'alembic', 'numpy', 'psycopg', 'optuna'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(fa_tuner.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{path}"], env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


def test_the_default_places_are_in_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if sys.platform.startswith("linux"):
        assert location.default_url() == f"sqlite:///{tmp_path}/fa-tune/fa-tune.db"
        assert location.default_artifacts() == f"{tmp_path}/fa-tune/artifacts"
    Store.open(location.default_url()).close()
