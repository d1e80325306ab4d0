"""The service on a store of its own, and studies to put into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fa_tuner_api import create_app

from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.settings import ServiceSettings, WorkerSettings, load_run_settings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.repository import Store
from fa_tuner.tuning import tune
from fa_tuner.worker.loop import WorkerLoop
from tests.support.observers import Silent, Watched
from tests.support.service import Service, close_services
from tests.support.stored import HUB_MODEL


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    for name in ("FA_TUNE_STORAGE", "FA_TUNE_ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    return ServiceSettings(
        storage=f"sqlite:///{tmp_path / 'fa-tune.db'}", artifacts=str(tmp_path / "artifacts"),
        ready_without_worker=True, models=[HUB_MODEL, *(str(tmp_path / f"landscape-{seed}.json") for seed in (3, 4))],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def closed_afterwards() -> Iterator[None]:
    yield
    close_services()


@pytest.fixture
def service(settings: ServiceSettings) -> Service:
    return Service(create_app(settings))


@pytest.fixture
def tuned(settings: ServiceSettings, tmp_path: Path) -> Callable[..., str]:
    """`tuned(trials=8)` tunes a landscape into the service's store; returns the model's name."""

    def run(trials: int = 8, seed: int = 3, **more: Any) -> str:
        model = tmp_path / f"landscape-{seed}.json"
        synthetic_landscape(6, 4, prompts=2, holdout=1, seed=seed).write(model)
        chosen = load_run_settings({"engine": "replay", "model": str(model), "trials": trials, **more})
        with Store.open(settings.url) as store:
            tune(chosen.request(), store, Artifacts(settings.artifact_root, 2**20), Silent(), settings.url)
        return str(model)

    return run


@pytest.fixture
def landscape(tmp_path: Path) -> str:
    """A recorded model that studies may be asked for."""
    synthetic_landscape(6, 4, prompts=2, holdout=1, seed=3).write(tmp_path / "landscape-3.json")
    return str(tmp_path / "landscape-3.json")


@pytest.fixture
def work(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`work()` is a worker with the replay engine, in this process until nothing is left to do; what it said.

    `work(evaluated=f)` calls `f` after each policy, while the study runs.
    """

    def run(evaluated: Callable[[], object] = lambda: None, engine: str = "replay", **more: Any) -> str:
        monkeypatch.setenv("FA_TUNE_ENGINE", engine)
        said: list[str] = []
        chosen = WorkerSettings(storage=settings.storage, artifacts=settings.artifacts, **more)
        WorkerLoop(chosen, lambda _, stop: Watched(stop, evaluated), said.append).run(until_idle=True)
        return "\n".join(said)

    return run


@pytest.fixture
def store(settings: ServiceSettings) -> Iterator[Store]:
    """The service's own, to put into it what no landscape gives."""
    with Store.open(settings.url) as opened:
        yield opened
