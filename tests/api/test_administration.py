"""/healthz, /readyz and /metrics: whether the service can answer, and what it did."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from fa_tuner_api import create_app
from prometheus_client.parser import text_string_to_metric_families

from fa_tuner.settings import ServiceSettings
from fa_tuner.store.claims import LEASE_SECONDS, Worker
from fa_tuner.store.database import Database
from fa_tuner.store.jobs import Jobs
from fa_tuner.store.repository import Store
from fa_tuner.store.schema import workers
from tests.support.service import Service, problem, strict_json


def figures(service: Service) -> dict[str, dict[tuple[str, ...], float]]:
    """By name of the metric, what it is by its labels' values."""
    answer = service.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels[name] for name in sorted(sample.labels))] = (
                sample.value
            )
    return found


def test_ready_with_a_database_at_its_schema(service: Service, settings: ServiceSettings) -> None:
    answer = service.get("/readyz")
    assert (answer.status_code, strict_json(answer)) == (200, {"status": "ready", "workers": 0})
    database = Database.open(settings.url)
    with database.writing() as connection:
        connection.execute(sa.text("UPDATE fa_tune_version SET version_num = '9999'"))
    database.close()
    assert "9999" in problem(service.get("/readyz"), 503, "store-unavailable")
    assert service.get("/healthz").status_code == 200


def test_not_ready_without_a_database(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    service = Service(create_app(ServiceSettings(storage=f"sqlite:///{tmp_path}/file/fa-tune.db")))
    problem(service.get("/readyz"), 503, "store-unavailable")
    assert service.get("/healthz").status_code == 200


def test_ready_as_long_as_a_worker_lives(settings: ServiceSettings) -> None:
    service = Service(create_app(settings.model_copy(update={"ready_without_worker": False})))
    detail = problem(service.get("/readyz"), 503, "service-unavailable")
    assert "fa-tune worker" in detail and "ready_without_worker" in detail
    database = Database.open(settings.url)
    jobs, ann, bob = Jobs(database), Worker.of_this_process(), Worker.of_this_process()
    jobs.enlist(ann, "npu:0")
    jobs.enlist(bob, "npu:1")
    answer = service.get("/readyz")
    assert (answer.status_code, strict_json(answer)) == (200, {"status": "ready", "workers": 2})
    assert figures(service)["fa_tune_workers"][()] == 2
    jobs.retire(ann)
    assert strict_json(service.get("/readyz"))["workers"] == 1
    jobs.enlist(replace(bob, host="elsewhere"), "npu:1")  # of whose process nothing can be known here
    assert strict_json(service.get("/readyz"))["workers"] == 1
    with database.writing() as connection:
        long_ago = datetime.now(UTC) - timedelta(seconds=LEASE_SECONDS + 1)
        connection.execute(workers.update().values(heartbeat=long_ago))
    problem(service.get("/readyz"), 503, "service-unavailable")
    assert figures(service)["fa_tune_workers"][()] == 0
    assert jobs.beat(bob, "y")
    assert service.get("/readyz").status_code == 200
    database.close()


def test_a_worker_whose_process_ended_does_not_live(settings: ServiceSettings) -> None:
    service = Service(create_app(settings.model_copy(update={"ready_without_worker": False})))
    code = (
        "import sys\n"
        "from fa_tuner.store.claims import Worker\n"
        "from fa_tuner.store.database import Database\n"
        "from fa_tuner.store.jobs import Jobs\n"
        "Jobs(Database.open(sys.argv[1])).enlist(Worker.of_this_process(), 'cpu')\n"
        "print('enlisted', flush=True)\n"
        "input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, settings.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == b"enlisted\n"
        assert strict_json(service.get("/readyz"))["workers"] == 1
        worker.kill()
    problem(service.get("/readyz"), 503, "service-unavailable")


def test_what_was_asked_and_answered(service: Service) -> None:
    for path in ("/healthz", "/healthz", "/api/v1/recommendations", "/api/v1/recommendations?model=x"):
        service.get(path)
    service.request("POST", "/healthz")
    found = figures(service)
    requests = found["fa_tune_requests_total"]
    assert requests["GET", "/healthz", "200"] == 2 and requests["POST", "/healthz", "405"] == 1
    assert requests["GET", "/api/v1/recommendations", "422"] == 1
    assert requests["GET", "/api/v1/recommendations", "404"] == 1
    assert found["fa_tune_request_seconds_count"]["GET", "/healthz"] == 2
    assert 0 < found["fa_tune_request_seconds_sum"]["GET", "/healthz"] < 60
    assert figures(service)["fa_tune_requests_total"]["GET", "/metrics", "200"] == 1


def test_clients_make_up_no_labels(service: Service) -> None:
    for number in range(50):
        service.get(f"/nothing-{number}")
        service.request(f"MADE{number}", "/healthz")
        service.request("GET", "/readyz", headers={"Host": f"{number}.example"})
    requests = figures(service)["fa_tune_requests_total"]
    assert requests["GET", "none", "404"] == 50 and requests["other", "/healthz", "405"] == 50
    assert requests["GET", "none", "400"] == 50
    assert len(requests) < 10


def test_studies_by_state(service: Service, settings: ServiceSettings, tuned: Callable[..., str]) -> None:
    states = {("running",): 0.0, ("finished",): 0.0, ("interrupted",): 0.0, ("failed",): 0.0, ("unproven",): 0.0}
    assert figures(service)["fa_tune_studies"] == states
    tuned(study="one", trials=1)
    tuned(study="two", trials=1)
    with Store.open(settings.url) as store:
        store.set_state("two", "failed", "the engine died")
    assert figures(service)["fa_tune_studies"] == states | {("finished",): 1, ("failed",): 1}


def test_two_applications_count_apart(settings: ServiceSettings) -> None:
    one, other = Service(create_app(settings)), Service(create_app(settings))
    one.get("/healthz")
    assert ("GET", "/healthz", "200") not in figures(other).get("fa_tune_requests_total", {})


@pytest.mark.parametrize("path", ["/readyz", "/metrics"])
def test_what_is_said_names_no_secret(settings: ServiceSettings, path: str) -> None:
    service = Service(create_app(ServiceSettings(storage="postgresql://root:hunter2secret@127.0.0.1:1/x")))
    assert not re.search("hunter2secret", service.get(path).text)
