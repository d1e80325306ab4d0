"""One suite over both databases: what a store promises, whoever keeps the rows."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import alembic.command
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fa_tuner
from fa_tuner.domain.errors import ConflictError, NotFoundError, StoreError
from fa_tuner.domain.measurement import METRICS, CaseQuality, Constraint, Coverage, Latency, Measurement, Requirement
from fa_tuner.domain.policy import DTYPES, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.study import Baseline, Evaluation, StudySpec, study_id
from fa_tuner.domain.workload import Case, Workload, fingerprint_of
from fa_tuner.store import migrations, rows
from fa_tuner.store.claims import Worker
from fa_tuner.store.database import Database, parse
from fa_tuner.store.repository import Store
from fa_tuner.store.schema import metadata

ROOT = str(Path(fa_tuner.__file__).parents[1])
POSTGRES = "postgresql://postgres@127.0.0.1:5432/test"


@pytest.fixture(scope="session")
def postgres() -> str:
    """A reachable server's URL."""
    url = os.environ.get("FA_TUNE_TEST_POSTGRES", POSTGRES)
    try:
        import psycopg

        psycopg.connect(url, connect_timeout=3).close()
    except Exception as error:  # no driver, or no server
        reason = f"no PostgreSQL to test with ({type(error).__name__}); set FA_TUNE_TEST_POSTGRES"
        if os.environ.get("FA_TUNE_REQUIRE_POSTGRES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database, or an empty schema of one, that is gone afterwards."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new' / 'fa-tune.db'}"
        return
    server = request.getfixturevalue("postgres")
    import psycopg

    schema = f"fa_tune_test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        yield f"{server}{'&' if '?' in server else '?'}options={quote(f'-csearch_path={schema}')}"
        connection.execute("SET client_min_messages = warning")
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def a_workload(**changes: object) -> Workload:
    known = Workload(
        "Wan-AI/Wan2.2-T2V-A14B", ("a cat walks", "rain on a window"), 480, 832, 61, 40, seeds=(0, 2**63 - 1),
        holdout=("a red bus",), guidance_2=3.0, options={"nested": {"x": [1, 2.5, None, "ä\N{SNOWMAN}"]}},
    )  # fmt: skip
    return replace(known, **changes)  # type: ignore[arg-type]


def a_spec(name: str = "first", **changes: object) -> StudySpec:
    known = StudySpec(
        name, a_workload(), ("fp8",),
        Requirement((Constraint("psnr_db", ">=", 30.1), Constraint("mae", "<=", 3.0)), "p10"), "ours", 2**63 - 1,
        {"engine": "replay", "steps": 40, "layers": [0, 1, 2], "versions": {"torch": "2.13"}},
        "projected", "a5",
    )  # fmt: skip
    return replace(known, **changes)  # type: ignore[arg-type]


def qualities(cases: tuple[Case, ...], value: float = 1 / 3) -> tuple[CaseQuality, ...]:
    return tuple(CaseQuality(case, dict.fromkeys(METRICS, value + i), i == 0) for i, case in enumerate(cases))


def an_evaluation(number: int = 0, policy: SkipPolicy | None = None) -> Evaluation:
    policy = policy or SkipPolicy("fp8", SkipSelector((0, 1, 38, 39)), SkipSelector((number,)))
    measurement = Measurement(
        policy, Latency(0.1 + 0.2, "measured", 12.5, 0.01, 5, 13.7, "of 5"), qualities(a_workload().cases),
        Coverage(10**12, 3, 10**12, True), qualities(a_workload().holdout_cases, 1e-300), 3.25, 1024.0,
        {"why": [1, {"a": None}]},
    )  # fmt: skip
    return Evaluation(policy, "sampler", number, measurement, "")


# --- round trips --------------------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=5e-324, allow_nan=False, allow_infinity=False)
seeds = st.integers(0, 2**63 - 1)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
some_cases = st.lists(
    st.builds(
        CaseQuality, st.builds(Case, words, seeds), st.fixed_dictionaries(dict.fromkeys(METRICS, finite)), st.booleans()
    ),
    max_size=3,
).map(tuple)
selectors = st.sets(st.integers(0, 999), max_size=300).map(SkipSelector.of)
policies = st.builds(SkipPolicy, st.sampled_from(DTYPES), selectors, selectors)
counts = st.integers(0, 2**63 - 1)
latencies = st.builds(
    Latency, positive, st.sampled_from(["measured", "fitted", "projected"]), st.none() | positive,
    st.floats(0, 1e308), counts, st.none() | positive, words,
)  # fmt: skip


@st.composite
def evaluations(draw: st.DrawFn) -> Evaluation:
    policy = draw(policies | st.just(SkipPolicy()))
    coverage = st.builds(Coverage, counts, counts, counts, st.booleans())
    measurement = st.builds(
        Measurement, st.just(policy), latencies, some_cases, coverage, some_cases, finite, st.none() | finite,
        st.dictionaries(st.text(), plain, max_size=3),
    )  # fmt: skip
    return Evaluation(policy, "try", draw(counts), draw(st.none() | measurement), draw(words))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(evaluations(), latencies, some_cases)
def test_every_value_comes_back_equal(
    store: Store, evaluation: Evaluation, latency: Latency, holdout: tuple[CaseQuality, ...]
) -> None:
    store.create_study(a_spec("odd"), 1)
    try:
        store.add_evaluation("odd", evaluation)
        assert store.evaluations("odd") == [evaluation] == [store.evaluation("odd", evaluation.policy.key)]
        if evaluation.measurement is not None:
            store.set_latency("odd", evaluation.policy.key, latency)
            store.set_holdout("odd", evaluation.policy.key, holdout)
            expected = replace(evaluation.measurement, latency=latency, holdout=holdout)
            assert store.evaluations("odd") == [replace(evaluation, measurement=expected)]
    finally:
        store.delete_study("odd")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200),
    options=st.dictionaries(st.text(), plain, max_size=3),
    environment=st.dictionaries(st.text(), plain, max_size=3),
    values=st.tuples(finite, finite, finite),
    bound=finite,
)
def test_every_study_comes_back_equal(
    store: Store, name: str, options: dict[str, object], environment: dict[str, object],
    values: tuple[float, float, float], bound: float,
) -> None:  # fmt: skip
    spec = a_spec(
        name, workload=a_workload(options=options), environment=environment,
        requirement=Requirement((Constraint("mse", "<=", bound),)), latency_profile=None,
    )  # fmt: skip
    created = store.create_study(spec, 7)
    try:
        assert (created.spec, created.target, created.state, created.baseline) == (spec, 7, "running", None)
        store.set_baseline(name, Baseline(*values))
        assert store.study(name).baseline == Baseline(*values)
        assert store.find_baseline(spec.workload.fingerprint, fingerprint_of(environment)) == name
    finally:
        store.delete_study(name)


def test_types_come_back_too(store: Store) -> None:
    store.create_study(a_spec(), 1)
    store.add_evaluation("first", an_evaluation())
    [evaluation] = store.evaluations("first")
    measurement = evaluation.measurement
    assert measurement is not None
    assert isinstance(measurement.cases, tuple) and isinstance(measurement.holdout, tuple)
    assert measurement.coverage.proven is True and measurement.cases[0].identical is True
    assert all(type(value) is float for value in measurement.cases[0].metrics.values())
    assert measurement.latency.relative.hex() == (0.1 + 0.2).hex()


def test_a_long_selector_is_kept(store: Store) -> None:
    every_other = SkipSelector.of(range(0, 999, 2))
    policy = SkipPolicy("mxfp4", every_other, every_other)
    store.create_study(a_spec(), 1)
    store.add_evaluation("first", an_evaluation(0, policy))
    assert store.evaluation("first", policy.key) == an_evaluation(0, policy)


def test_what_is_returned_is_a_copy(store: Store) -> None:
    store.create_study(a_spec(), 1)
    store.add_evaluation("first", an_evaluation())
    got = store.evaluations("first")[0].measurement
    assert got is not None
    got.detail["why"].append("changed")
    got.cases[0].metrics["mae"] = -1.0  # type: ignore[index]
    store.study("first").spec.environment["layers"].append(99)
    assert store.evaluations("first") == [an_evaluation()]
    assert store.study("first").spec == a_spec()


# --- studies ------------------------------------------------------------------------------------------------------


def test_a_study_changes_as_told(store: Store) -> None:
    before = datetime.now(UTC)
    created = store.create_study(a_spec(), 30)
    assert created == store.study("first")
    assert created.created.utcoffset() == timedelta(0)
    assert before - timedelta(seconds=1) < created.created == created.updated < before + timedelta(minutes=1)
    store.set_state("first", "failed", "the engine said \0 and \udc80")
    store.set_target("first", 60)
    changed = store.study("first")
    assert (changed.state, changed.target, changed.created) == ("failed", 60, created.created)
    assert changed.reason == "the engine said \ufffd and ?"
    assert changed.updated == created.updated  # nothing was measured
    store.add_evaluation("first", an_evaluation())
    assert store.study("first").updated > created.updated
    store.set_state("first", "running")
    assert store.study("first").reason == ""


def test_studies_are_listed_newest_first_and_by_model(store: Store) -> None:
    assert store.studies() == []
    for name, model in (("a", "wan"), ("b", "hunyuan"), ("c", "wan")):
        store.create_study(a_spec(name, workload=a_workload(model=model)), 1)
    assert [study.spec.name for study in store.studies()] == ["c", "b", "a"]
    assert [study.spec.name for study in store.studies("wan")] == ["c", "a"]
    assert store.studies("none") == []


def test_studies_come_in_pages_that_others_do_not_move(store: Store) -> None:
    assert (store.study_page(3).studies, store.study_page(3).last) == ((), None)
    for number in range(5):
        store.create_study(a_spec(str(number), workload=a_workload(model="wan" if number % 2 else "hunyuan")), 1)
    store.set_state("3", "finished")
    first = store.study_page(2)
    assert [study.spec.name for study, _ in first.studies] == ["4", "3"]
    store.create_study(a_spec("newer"), 1)
    store.delete_study("3")
    second = store.study_page(2, first.last)
    assert [study.spec.name for study, _ in second.studies] == ["2", "1"]
    third = store.study_page(2, second.last)
    assert ([study.spec.name for study, _ in third.studies], third.last) == (["0"], None)
    assert store.study_page(2, 0).studies == ()
    assert [study.spec.name for study, _ in store.study_page(9, model="wan").studies] == ["1"]
    store.set_state("2", "finished")
    assert [study.spec.name for study, _ in store.study_page(9, state="finished").studies] == ["2"]
    assert store.study_page(9, model="wan", state="finished").studies == ()
    assert store.study_page(4).last is not None and store.study_page(5).last is None


def test_a_page_counts_the_policies_but_not_the_native_one(store: Store) -> None:
    for name in ("first", "second"):
        store.create_study(a_spec(name), 1)
    store.add_evaluation("first", an_evaluation(0, SkipPolicy()))
    store.add_evaluation("first", an_evaluation(1))
    store.add_evaluation("first", Evaluation(SkipPolicy("fp8"), "anchor", 2, None, "died"))
    assert [(study, count) for study, count in store.study_page(9).studies] == [
        (store.study("second"), 0), (store.study("first"), 2),
    ]  # fmt: skip


def test_models_are_those_of_studies(store: Store) -> None:
    assert store.models() == []
    for name, model in (("a", "wan"), ("b", "hunyuan"), ("c", "wan")):
        store.create_study(a_spec(name, workload=a_workload(model=model, steps=len(store.models()) + 1)), 1)
    assert store.models() == ["hunyuan", "wan"]
    store.delete_study("b")
    assert store.models() == ["wan"]


@pytest.mark.parametrize("model", ["a\0b", "\ud800", "x" * 5000])
def test_a_model_that_no_database_keeps_has_no_study(store: Store, model: str) -> None:
    assert store.studies(model) == [] and store.stamps(model) == () and store.stamped_of(model) == []
    assert store.study_page(9, model=model).studies == ()


def test_a_study_is_found_by_its_id(store: Store) -> None:
    for name in ("a/b", "\N{SNOWMAN}", "../x"):
        store.create_study(a_spec(name), 1)
        assert store.name_of(study_id(name)) == name
    for key in (study_id("none"), "", "\0", "\ud800", "x" * 10_000):
        with pytest.raises(NotFoundError, match="no study of id"):
            store.name_of(key)


CHANGES: dict[str, Callable[[Store], object]] = {
    "set_state": lambda store: store.set_state("first", "finished", "enough"),
    "set_target": lambda store: store.set_target("first", 9),
    "set_requirement": lambda store: store.set_requirement("first", Requirement((), "mean")),
    "set_baseline": lambda store: store.set_baseline("first", Baseline(1.0, 2.0, 3.0)),
    "add_evaluation": lambda store: store.add_evaluation("first", an_evaluation(7)),
    "set_holdout": lambda store: store.set_holdout("first", an_evaluation().policy.key, ()),
    "set_latency": lambda store: store.set_latency("first", an_evaluation().policy.key, Latency(0.5, "measured")),
    "set_latencies": lambda store: store.set_latencies("first", "other", {}),
    "anew": lambda store: (store.delete_study("first"), store.create_study(a_spec(), 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_study_moves_its_stamp(store: Store, change: str) -> None:
    for name in ("first", "second"):
        store.create_study(a_spec(name), 1)
        store.add_evaluation(name, an_evaluation())
    before, other = store.stamp("first"), store.stamp("second")
    assert store.stamps(a_workload().model) == (other, before)
    assert {before: 1}[store.stamp("first")] == 1
    assert store.claim("first", "native", WORKER) and store.stamp("first") == before  # not a figure
    CHANGES[change](store)
    assert store.stamp("first") != before and store.stamp("first").name == "first"
    assert store.stamp("second") == other
    assert set(store.stamps(a_workload().model)) == {store.stamp("first"), other}
    both = store.stamped_of(a_workload().model)
    assert both == [store.stamped(study.spec.name) for _, study in both]
    assert both == [(stamp, store.study(stamp.name)) for stamp in store.stamps(a_workload().model)]


def test_the_newest_baseline_of_the_same_workload_and_environment_is_found(store: Store) -> None:
    spec, baseline = a_spec(), Baseline(100.0, 1.5, 2.5)
    key = spec.workload.fingerprint, fingerprint_of(spec.environment)
    for name in ("a", "b", "c"):
        store.create_study(replace(spec, name=name), 1)
    assert store.find_baseline(*key) is None
    store.set_baseline("b", baseline)
    store.set_baseline("a", baseline)
    assert store.find_baseline(*key) == "b"
    assert store.find_baseline(key[0], "other") is None
    assert store.find_baseline("other", key[1]) is None


def test_fronts_are_kept_in_order(store: Store) -> None:
    store.create_study(a_spec(), 1)
    store.add_front("first", [], 0.0)
    store.add_evaluation("first", an_evaluation())
    store.add_front("first", ("native", an_evaluation().policy.key), 1 / 3)
    kept = store.fronts("first")
    assert [(f.evaluations, f.policy_keys, f.hypervolume) for f in kept] == [
        (0, (), 0.0),
        (1, ("native", an_evaluation().policy.key), 1 / 3),
    ]
    assert kept[0].created.utcoffset() == timedelta(0)


def test_a_deleted_study_leaves_nothing(store: Store) -> None:
    store.create_study(a_spec(), 1)
    store.create_study(a_spec("second"), 1)
    for name in ("first", "second"):
        store.add_evaluation(name, an_evaluation())
        store.add_front(name, ["native"], 1.0)
        assert store.claim(name, "native", WORKER)
    store.delete_study("first")
    assert [study.spec.name for study in store.studies()] == ["second"]
    assert store.evaluations("second") == [an_evaluation()]
    assert store.claimed("second") == {"native": WORKER}
    store.delete_study("second")
    with store._database.reading() as connection:
        for table in metadata.sorted_tables:
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0, table.name


WORKER = Worker.of_this_process()
MISSING: dict[str, Callable[[Store, str], object]] = {
    "study": lambda store, name: store.study(name),
    "stamp": lambda store, name: store.stamp(name),
    "stamped": lambda store, name: store.stamped(name),
    "is_checked": lambda store, name: store.is_checked(name),
    "evaluation_page": lambda store, name: store.evaluation_page(name, 5),
    "evaluation_of_digest": lambda store, name: store.evaluation_of_digest(name, "0" * 64),
    "set_state": lambda store, name: store.set_state(name, "finished"),
    "set_target": lambda store, name: store.set_target(name, 1),
    "set_baseline": lambda store, name: store.set_baseline(name, Baseline(1.0, 1.0, 1.0)),
    "add_evaluation": lambda store, name: store.add_evaluation(name, an_evaluation()),
    "evaluation": lambda store, name: store.evaluation(name, "native"),
    "evaluations": lambda store, name: store.evaluations(name),
    "count": lambda store, name: store.count(name),
    "set_holdout": lambda store, name: store.set_holdout(name, "native", ()),
    "set_latency": lambda store, name: store.set_latency(name, "native", Latency(1.0, "measured")),
    "claim": lambda store, name: store.claim(name, "native", WORKER),
    "release": lambda store, name: store.release(name, WORKER),
    "claimed": lambda store, name: store.claimed(name),
    "add_front": lambda store, name: store.add_front(name, [], 0.0),
    "fronts": lambda store, name: store.fronts(name),
    "delete_study": lambda store, name: store.delete_study(name),
}


@pytest.mark.parametrize("method", MISSING)
def test_a_study_that_is_not_there(store: Store, method: str) -> None:
    for name in ("none", "", "\0", "\ud800", "x" * 10_000, "../x", "'; DROP TABLE fa_tune_studies; --"):
        with pytest.raises(NotFoundError, match="no study named"):
            MISSING[method](store, name)


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 201])
def test_a_name_that_cannot_be_kept_is_refused(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="study name"):
        store.create_study(a_spec(name), 1)


# --- evaluations --------------------------------------------------------------------------------------------------


def test_evaluations_come_by_number_and_failed_ones_too(store: Store) -> None:
    store.create_study(a_spec(), 3)
    failed = Evaluation(SkipPolicy("mxfp8"), "anchor", 1, None, "out of memory")
    made = [an_evaluation(0), failed, an_evaluation(2)]
    for evaluation in reversed(made):
        store.add_evaluation("first", evaluation)
    assert store.evaluations("first") == made
    assert store.count("first") == 3
    assert store.evaluation("first", failed.policy.key) == failed
    assert store.evaluation("first", "fp8:9/9") is None


def test_evaluations_come_in_pages_and_by_digest(store: Store) -> None:
    store.create_study(a_spec(), 5)
    assert (store.evaluation_page("first", 3).evaluations, store.evaluation_page("first", 3).last) == ((), None)
    made = [an_evaluation(number) for number in (0, 1, 2, 5, 6)]
    for evaluation in made:
        store.add_evaluation("first", evaluation)
    first = store.evaluation_page("first", 2)
    assert (list(first.evaluations), first.last) == (made[:2], 1)
    second = store.evaluation_page("first", 2, 1)
    assert (list(second.evaluations), second.last) == (made[2:4], 5)
    third = store.evaluation_page("first", 2, 5)
    assert (list(third.evaluations), third.last) == (made[4:], None)
    assert store.evaluation_page("first", 5).last is None
    assert store.evaluation_page("first", 5, 2**62).evaluations == ()
    assert store.evaluation_of_digest("first", rows.digest(made[3].policy.key)) == made[3]
    for digest in (rows.digest("fp8:9/9"), ""):
        assert store.evaluation_of_digest("first", digest) is None


def test_a_study_is_checked_once_a_policy_ran_on_held_out_prompts(store: Store) -> None:
    for name in ("first", "second"):
        store.create_study(a_spec(name), 5)
        store.add_evaluation(name, an_evaluation())
    store.set_holdout("first", an_evaluation().policy.key, ())
    assert (store.is_checked("first"), store.is_checked("second")) == (False, True)


def test_a_page_reads_its_own_cases_only(store: Store) -> None:
    store.create_study(a_spec(), 20)
    for number in range(20):
        store.add_evaluation("first", an_evaluation(number))
    read: list[int] = []
    of_row = rows.case_of
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rows, "case_of", lambda row: (read.append(1), of_row(row))[1])
        assert len(store.evaluation_page("first", 2).evaluations) == 2
    workload = a_workload()
    assert len(read) == 2 * len(workload.cases + workload.holdout_cases)


def test_the_number_of_queries_does_not_grow(store: Store) -> None:
    store.create_study(a_spec(), 20)
    for number in range(20):
        store.add_evaluation("first", an_evaluation(number))
    statements: list[str] = []
    sa.event.listen(store._database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    assert len(store.evaluations("first")) == 20
    assert len([statement for statement in statements if statement.startswith("SELECT")]) == 3


def test_a_policy_and_a_number_come_once(store: Store) -> None:
    store.create_study(a_spec(), 1)
    store.create_study(a_spec("second"), 1)
    store.add_evaluation("first", an_evaluation(0))
    with pytest.raises(ConflictError, match="policy fp8:"):
        store.add_evaluation("first", an_evaluation(0))
    with pytest.raises(ConflictError, match="number 0"):
        store.add_evaluation("first", an_evaluation(0, SkipPolicy("mxfp4")))
    with pytest.raises(ConflictError, match="'first' exists"):
        store.create_study(a_spec(), 1)
    store.add_evaluation("second", an_evaluation(0))
    assert store.evaluations("first") == [an_evaluation(0)] == store.evaluations("second")


def test_holdout_and_latency_replace_what_was_there(store: Store) -> None:
    store.create_study(a_spec(), 1)
    evaluation = an_evaluation()
    store.add_evaluation("first", evaluation)
    new = qualities((Case("a new prompt", 5), Case("another", 6)), 7.5)
    store.set_holdout("first", evaluation.policy.key, new)
    store.set_latency("first", evaluation.policy.key, Latency(0.5, "fitted"))
    got = store.evaluations("first")[0].measurement
    assert got is not None and evaluation.measurement is not None
    assert got == replace(evaluation.measurement, holdout=new, latency=Latency(0.5, "fitted"))
    store.set_holdout("first", evaluation.policy.key, ())
    assert store.evaluations("first")[0].measurement == replace(got, holdout=())


def test_a_failed_evaluation_has_nothing_to_replace(store: Store) -> None:
    store.create_study(a_spec(), 1)
    store.add_evaluation("first", Evaluation(SkipPolicy("fp8"), "anchor", 0, None, "died"))
    for key in (SkipPolicy("fp8").key, "mxfp4:/"):
        with pytest.raises(NotFoundError, match="no measurement of policy"):
            store.set_holdout("first", key, qualities((Case("p", 0),)))
        with pytest.raises(NotFoundError, match="no measurement of policy"):
            store.set_latency("first", key, Latency(0.5, "fitted"))


NOT_A_NUMBER = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("bad", NOT_A_NUMBER)
def test_what_is_no_number_is_refused_before_anything_is_written(store: Store, bad: float) -> None:
    store.create_study(a_spec(), 1)
    before = store.study("first")
    evaluation = an_evaluation()
    measurement = evaluation.measurement
    assert measurement is not None
    sick = qualities(a_workload().cases)
    sick[-1].metrics["mae"] = bad  # type: ignore[index]
    for wrong in (
        replace(measurement, cases=sick), replace(measurement, holdout=sick),
        replace(measurement, seconds=bad), replace(measurement, peak_memory_mb=bad),
        replace(measurement, detail={"a": [bad]}),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            store.add_evaluation("first", replace(evaluation, measurement=wrong))
    with pytest.raises(ValueError):
        store.set_baseline("first", Baseline(bad, 1.0, 1.0))
    with pytest.raises(ValueError):
        store.add_front("first", [], bad)
    with pytest.raises(ValueError):
        store.create_study(a_spec("second", environment={"steps": bad}), 1)
    with pytest.raises(ValueError):
        store.create_study(a_spec("second", requirement=Requirement((Constraint("mae", "<=", bad),))), 1)
    assert store.study("first") == before and store.count("first") == 0


def test_other_values_that_cannot_be_kept_are_refused(store: Store) -> None:
    store.create_study(a_spec(), 1)
    evaluation = an_evaluation()
    measurement = evaluation.measurement
    assert measurement is not None
    more = CaseQuality(Case("p", 0), {**dict.fromkeys(METRICS, 1.0), "lpips": 0.1})
    for wrong in (
        replace(evaluation, policy=SkipPolicy("mxfp4")),
        replace(evaluation, number=2**63),
        replace(evaluation, measurement=replace(measurement, cases=(more,))),
        replace(evaluation, measurement=replace(measurement, cases=qualities((Case("a\0b", 0),)))),
        replace(evaluation, measurement=replace(measurement, detail={"a": object()})),
    ):
        with pytest.raises(ValueError):
            store.add_evaluation("first", wrong)
    assert store.count("first") == 0


@pytest.mark.parametrize("literal", ["9e999", "-9e999"])
def test_the_tables_refuse_infinity_too(store: Store, literal: str) -> None:
    store.create_study(a_spec(), 1)
    store.add_evaluation("first", an_evaluation())
    if store.url.startswith("postgresql"):
        literal = "'Infinity'::float8" if literal[0] != "-" else "'NaN'::float8"
    for change in (f"fa_tune_cases SET mae = {literal}", f"fa_tune_evaluations SET latency_relative = {literal}"):
        with pytest.raises(StoreError), store._database.writing() as connection:
            connection.exec_driver_sql(f"UPDATE {change}")
    assert store.evaluations("first") == [an_evaluation()]


# --- several at once ----------------------------------------------------------------------------------------------


def race(url: str, act: Callable[[Store, int], None], racers: int = 6) -> list[str]:
    """What became of each: "won" or the error's class. Each has its own connections."""
    barrier = threading.Barrier(racers)

    def run(number: int) -> str:
        with Store.open(url) as store:
            barrier.wait()
            try:
                act(store, number)
            except ConflictError:
                return "ConflictError"
            return "won"

    with ThreadPoolExecutor(racers) as pool:
        return sorted(pool.map(run, range(racers)))


def test_of_several_that_add_one_policy_one_wins(store: Store, url: str) -> None:
    store.create_study(a_spec(), 1)
    policy = SkipPolicy("fp8")
    outcomes = race(url, lambda mine, number: mine.add_evaluation("first", an_evaluation(number, policy)))
    assert outcomes == ["ConflictError"] * 5 + ["won"]
    assert store.count("first") == 1


def test_of_several_that_add_one_number_one_wins(store: Store, url: str) -> None:
    store.create_study(a_spec(), 1)
    outcomes = race(url, lambda mine, number: mine.add_evaluation("first", replace(an_evaluation(number), number=0)))
    assert outcomes == ["ConflictError"] * 5 + ["won"]
    assert len(store.evaluations("first")) == 1


def test_of_several_that_create_one_study_one_wins(store: Store, url: str) -> None:
    assert race(url, lambda mine, number: void(mine.create_study(a_spec(), number))) == ["ConflictError"] * 5 + ["won"]


def test_several_add_different_evaluations_and_studies(store: Store, url: str) -> None:
    store.create_study(a_spec(), 60)

    def add(mine: Store, racer: int) -> None:
        mine.create_study(a_spec(f"of {racer}"), 1)
        for number in range(racer * 10, racer * 10 + 10):
            mine.add_evaluation("first", an_evaluation(number))
        mine.delete_study(f"of {racer}")

    assert race(url, add) == ["won"] * 6
    assert store.evaluations("first") == [an_evaluation(number) for number in range(60)]
    assert len(store.studies()) == 1


def void(_: object) -> None: ...


def child(code: str, *arguments: str, stdin: bytes = b"") -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ROOT},
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(stdin)
    process.stdin.close()
    process.stdin = None
    return process


def test_several_processes_open_a_new_database_at_once(url: str) -> None:
    code = (
        "import sys, time; from fa_tuner.store.repository import Store; import alembic.command\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time())); Store.open(sys.argv[1]).close()"
    )
    start = str(time.time() + 3)
    processes = [child(code, url, start) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 4
    with Store.open(url) as store:
        assert store.studies() == []


KILLED = """
import os, pickle, signal, sys
import sqlalchemy as sa
from fa_tuner.store.repository import Store

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

url, stage = sys.argv[1:]
store = Store.open(url)
engine = store._database.engine
if stage == "commit":
    sa.event.listen(engine, "commit", die)
elif stage != "done":
    sa.event.listen(engine, "before_cursor_execute", lambda c, cursor, sql, *_: sql.startswith(stage) and die())
store.add_evaluation("first", pickle.load(sys.stdin.buffer))
die()
"""


@pytest.mark.parametrize(
    ("stage", "kept"),
    [("INSERT INTO fa_tune_evaluations", 1), ("INSERT INTO fa_tune_cases", 1), ("commit", 1), ("done", 2)],
)
def test_a_killed_process_leaves_all_or_nothing(store: Store, url: str, stage: str, kept: int) -> None:
    store.create_study(a_spec(), 2)
    store.add_evaluation("first", an_evaluation(0))
    process = child(KILLED, url, stage, stdin=pickle.dumps(an_evaluation(1)))
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said
    assert store.evaluations("first") == [an_evaluation(number) for number in range(kept)]
    if kept == 1:  # and the next one is not hindered
        store.add_evaluation("first", an_evaluation(1))
    with store._database.reading() as connection:
        orphans = "SELECT count(*) FROM fa_tune_cases WHERE evaluation_id NOT IN (SELECT id FROM fa_tune_evaluations)"
        assert connection.exec_driver_sql(orphans).scalar() == 0


# --- the schema ---------------------------------------------------------------------------------------------------


def test_what_was_stored_is_there_when_opened_again(url: str) -> None:
    with Store.open(url) as store:
        study = store.create_study(a_spec(), 1)
        store.add_evaluation("first", an_evaluation())
        updated = store.study("first")
    with Store.open(url) as store:
        assert store.study("first") == updated == replace(study, updated=updated.updated)
        assert store.evaluations("first") == [an_evaluation()]


def test_migrations_lead_to_the_tables_of_the_schema(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def ours(name: str | None, kind: str, _parents: object) -> bool:
        return kind != "table" or (name or "").startswith("fa_tune_")

    with store._database.reading() as connection:
        options = {"version_table": "fa_tune_version", "include_name": ours, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
        inspector = sa.inspect(connection)
        for table in metadata.sorted_tables:  # alembic does not compare these
            written = {check.name for check in table.constraints if isinstance(check, sa.CheckConstraint)}
            assert {check["name"] for check in inspector.get_check_constraints(table.name)} == written


def at_the_first_schema(url: str) -> None:
    """A database as the program before claims left it: a study with a baseline, two evaluations and a front."""
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir()
    engine = sa.create_engine(parse(url))
    config = migrations._config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0001")
        spec, now = a_spec(), datetime.now(UTC)
        study = {
            **rows.study_values(spec),
            **rows.state_values("running", ""),
            "target": 3,
            "created": now,
            "updated": now,
        }
        del study["study_key"]
        for name, values in (
            ("workloads", rows.workload_values(spec.workload)),
            ("environments", rows.environment_values(spec.environment)),
            ("studies", {**study, "workload_id": 1, "environment_id": 1}),
        ):  # fmt: skip
            connection.execute(metadata.tables[f"fa_tune_{name}"].insert().values(values))
    old = Store(Database(engine))
    old.set_baseline("first", Baseline(40.0, 1.5, 2.5))
    for number in range(2):
        evaluation = an_evaluation(number)
        measurement = evaluation.measurement
        assert measurement is not None
        values = rows.evaluation_values(evaluation) | {"study_id": 1, "created": datetime.now(UTC)}
        found = [*rows.case_values("search", measurement.cases), *rows.case_values("holdout", measurement.holdout)]
        with engine.begin() as connection:
            key = connection.scalar(
                metadata.tables["fa_tune_evaluations"].insert().values(values).returning(sa.column("id"))
            )
            connection.execute(
                metadata.tables["fa_tune_cases"].insert(), [{**case, "evaluation_id": key} for case in found]
            )
    old.add_front("first", ["native"], 1 / 3)
    old.close()


def test_an_older_schema_is_brought_up_with_what_it_holds(url: str) -> None:
    at_the_first_schema(url)
    assert race(url, lambda mine, _: void(mine.study("first")), racers=4) == ["won"] * 4  # each opens, one migrates
    with Store.open(url) as store:
        test_migrations_lead_to_the_tables_of_the_schema(store)
        assert store.name_of(study_id("first")) == "first"
        assert (store.study("first").spec, store.study("first").baseline) == (a_spec(), Baseline(40.0, 1.5, 2.5))
        assert store.evaluations("first") == [an_evaluation(0), an_evaluation(1)]
        assert [front.hypervolume for front in store.fronts("first")] == [1 / 3]
        assert not store.claim("first", an_evaluation(1).policy.key, WORKER)
        assert store.claim("first", an_evaluation(2).policy.key, WORKER)
        store.add_evaluation("first", an_evaluation(2))
        store.delete_study("first")
        assert store.studies() == []


def test_a_newer_schema_is_refused_and_left_alone(url: str) -> None:
    with Store.open(url) as store, store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE fa_tune_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"schema 9999, which is newer .* upgrade fa-tune"):
        Store.open(url)
    with pytest.raises(StoreError, match="9999"):
        Store.open(url)


@pytest.mark.parametrize("optuna_first", [True, False])
def test_optuna_lives_in_the_same_database(url: str, optuna_first: bool) -> None:
    import optuna

    def use_optuna() -> None:
        storage = optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
        try:
            study = optuna.create_study(storage=storage, study_name="first", load_if_exists=True)
            study.add_trial(optuna.trial.create_trial(value=1.0))
            assert optuna.load_study(
                storage=storage, study_name="first", sampler=optuna.samplers.RandomSampler()
            ).trials
        finally:
            storage.remove_session()
            storage.engine.dispose()

    if optuna_first:
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True) if url.startswith("sqlite") else None
        use_optuna()
    with Store.open(url) as store:
        store.create_study(a_spec(), 1)
        store.add_evaluation("first", an_evaluation())
        use_optuna()
    use_optuna()
    with Store.open(url) as store:
        assert store.evaluations("first") == [an_evaluation()]
        test_migrations_lead_to_the_tables_of_the_schema(store)
        store.delete_study("first")
        with store._database.reading() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM studies").scalar() == 1
