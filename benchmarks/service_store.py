"""Stores for `bench_service.py`: a new database with many studies in it, and one who adds evaluations meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.synchronize import Event
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from fa_tuner.domain.measurement import Constraint, Coverage, Latency, Measurement, Requirement
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.study import Baseline, Evaluation, StudySpec
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.synthetic import Synthetic
from fa_tuner.recommend.choice import candidates, ranked
from fa_tuner.search.space import Space
from fa_tuner.store.database import Database
from fa_tuner.store.repository import Store
from fa_tuner.store.schema import cases, evaluations, studies

POSTGRES = os.environ.get("FA_TUNE_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
PROMPTS = tuple(f"a prompt of some length, as people write them, number {number}" for number in range(4))
HELD_OUT = ("a held-out prompt of some length", "another held-out prompt")
SIZES = ((480, 832, 81), (720, 1280, 81), (480, 832, 61), (544, 960, 81), (640, 640, 49))
STEPS = (40, 20, 50, 30, 10)
LAYERS = 30
CHECKED = 5  # policies of a study that held-out prompts were run on: its best ones
GROWING = 3


@dataclass(frozen=True)
class Filling:
    """So many studies, of `models` models, with so many evaluations each."""

    models: int
    studies_each: int
    evaluations_each: int

    @property
    def evaluations(self) -> int:
        return self.models * self.studies_each * self.evaluations_each


@contextmanager
def database(kind: str) -> Iterator[str]:
    """The URL of an empty database, or an empty schema of one, that is gone afterwards."""
    if kind == "SQLite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'fa-tune.db'}"
        return
    import psycopg

    schema = f"fa_tune_bench_{uuid.uuid4().hex}"
    with psycopg.connect(POSTGRES, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            yield f"{POSTGRES}{'&' if '?' in POSTGRES else '?'}options={quote(f'-csearch_path={schema}')}"
        finally:
            connection.execute("SET client_min_messages = warning")
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


def spec_of(model: int, study: int) -> StudySpec:
    """Study number `study` of a model: each has another size or number of steps."""
    height, width, frames = SIZES[study % len(SIZES)]
    steps = STEPS[study // len(SIZES) % len(STEPS)]
    work = Workload(f"org/model-{model}", PROMPTS, height, width, frames, steps, holdout=HELD_OUT)
    environment = {
        "engine": "vllm-omni", "device": "Ascend950PR (bfloat16)", "operator": "real", "pipeline": "WanPipeline",
        "steps": steps, "layers": list(range(LAYERS)), "versions": {"vllm-omni": "0.30.0", "torch": "2.13.0"},
    }  # fmt: skip
    wanted = Requirement((Constraint.parse("psnr_db>=30"),))
    return StudySpec(f"model-{model}/{study}", work, ("fp8",), wanted, "rectangle", 0, environment, "measured")


def fill(url: str, filling: Filling) -> None:
    """One study a number of steps is written out; the others of that many steps are copies made by the database."""
    written: dict[int, int] = {}  # the study whose evaluations are copied, by the number of steps
    with Store.open(url) as store:
        opened = Database.open(url)
        for number in range(filling.models * filling.studies_each):
            spec = spec_of(number // filling.studies_each, number % filling.studies_each)
            store.create_study(spec, filling.evaluations_each)
            store.set_baseline(spec.name, Baseline(60.0, 100.0, 110.0))
            if not _grows(spec):
                store.set_state(spec.name, "finished")
            with opened.writing() as connection:
                key = connection.execute(sa.select(studies.c.id).where(studies.c.name == spec.name)).scalar_one()
                if (source := written.get(spec.workload.steps)) is not None:
                    _copy(connection, source, key)
            if source is None:
                for evaluation in _evaluations(spec, filling.evaluations_each):
                    store.add_evaluation(spec.name, evaluation)
                _check(store, spec)
                written[spec.workload.steps] = key
        with opened.writing() as connection:
            if opened.engine.dialect.name == "postgresql":
                last = sa.select(sa.func.max(evaluations.c.id)).scalar_subquery()
                sequence = sa.func.pg_get_serial_sequence(evaluations.name, "id")
                connection.execute(sa.select(sa.func.setval(sequence, last)))
            connection.exec_driver_sql("ANALYZE")
        opened.close()


@contextmanager
def growing(url: str, every: float) -> Iterator[None]:
    """While the block runs, a process of its own adds an evaluation every so many seconds, to one running study after
    the other, as a tuner would."""
    context = multiprocessing.get_context("spawn")
    ready, ended = context.Event(), context.Event()
    writer = context.Process(target=_grow, args=(url, every, ready, ended), daemon=True)
    writer.start()
    try:
        if not ready.wait(60):
            raise RuntimeError("the process that adds evaluations did not start")
        yield
    finally:
        ended.set()
        writer.join(30)
        if writer.exitcode != 0:
            writer.kill()
            raise RuntimeError(f"the process that adds evaluations ended with {writer.exitcode}")


def _grow(url: str, every: float, ready: Event, ended: Event) -> None:
    with Store.open(url) as store, suppress(KeyboardInterrupt):
        specs = [spec_of(model, 0) for model in range(GROWING)]
        counts = [store.count(spec.name) for spec in specs]
        more = [_evaluations(spec, None, count) for spec, count in zip(specs, counts, strict=True)]
        for each in more:
            next(each)  # what draws the policies that are there takes a while
        ready.set()
        turn = 0
        while not ended.wait(every):
            store.add_evaluation(specs[turn % GROWING].name, next(more[turn % GROWING]))
            turn += 1


def _grows(spec: StudySpec) -> bool:
    return spec.name in {f"model-{model}/0" for model in range(GROWING)}


def _copy(connection: sa.Connection, source: int, study: int) -> None:
    """The evaluations of one study to another, with their cases; ids are moved behind the last one."""
    first = sa.select(sa.func.min(evaluations.c.id)).where(evaluations.c.study_id == source)
    moved = connection.scalar(sa.select(sa.func.max(evaluations.c.id))) + 1 - connection.execute(first).scalar_one()
    changed = {"id": evaluations.c.id + moved, "study_id": sa.literal(study)}
    columns = [changed.get(column.name, column) for column in evaluations.c]
    copied = sa.select(*columns).where(evaluations.c.study_id == source)
    connection.execute(evaluations.insert().from_select([c.name for c in evaluations.c], copied))
    columns = [cases.c.evaluation_id + moved, *(c for c in cases.c if c is not cases.c.evaluation_id)]
    copied = sa.select(*columns).join(evaluations).where(evaluations.c.study_id == source)
    connection.execute(cases.insert().from_select([c.name for c in cases.c], copied))


def _check(store: Store, spec: StudySpec) -> None:
    """The best policies of the study on held-out prompts."""
    formula = _formula(spec.grid, spec.workload)
    for best in ranked(candidates(store.evaluations(spec.name)), spec.requirement)[:CHECKED]:
        found = (formula.quality(best.policy, case) for case in spec.workload.holdout_cases)
        store.set_holdout(spec.name, best.policy.key, [quality for quality in found if quality is not None])


def _evaluations(spec: StudySpec, count: int | None, first: int = 0) -> Iterator[Evaluation]:
    """Distinct policies from a formula, number 0 the native one; beginning with number `first`, up to `count`."""
    known, number, seed = set[str](), 0, 0
    while count is None or number < count:
        seed += 1
        policy = SkipPolicy() if number == 0 else _space(spec.grid).draw(seed)
        if policy.key in known:
            continue
        known.add(policy.key)
        if number >= first:
            yield _evaluation(spec, policy, number)
        number += 1


def _evaluation(spec: StudySpec, policy: SkipPolicy, number: int) -> Evaluation:
    work, formula = spec.workload, _formula(spec.grid, spec.workload)
    searched = tuple(q for case in work.cases if (q := formula.quality(policy, case)) is not None)
    relative = 1 - 0.4 * policy.share(spec.grid)
    latency = Latency(relative, "measured", 100 * relative, 0.01, 9, 110 * relative, "9 repeats beside the native run")
    measured = Measurement(
        policy, latency, searched, Coverage(9000, 1000, 9000, True), (), 120.0, 60_000.0,
        {"steps_reused": 0, "clock": {"median": 100 * relative, "spread": 0.01}},
    )  # fmt: skip
    return Evaluation(policy, "baseline" if policy.is_native else "predicted", number, measured)


@cache
def _space(grid: Grid) -> Space:
    return Space(grid, ("fp8",))


@cache
def _formula_of(grid: Grid, samples: int, every: tuple[Case, ...]) -> Synthetic:
    return Synthetic(grid, every, samples, seed=1, psnr_db={"fp8": 22.0})


def _formula(grid: Grid, work: Workload) -> Synthetic:
    return _formula_of(grid, work.frames * work.height * work.width * 3, work.cases + work.holdout_cases)
