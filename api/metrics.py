"""What Prometheus is told. Labels are route templates, known methods, status codes and study states: nothing that a
client can make up."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fa_tuner.store.counts import jobs_by_state, studies_by_state
from fa_tuner.store.database import Database
from fa_tuner.store.jobs import Jobs

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics:
    """One application's own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fa_tune_requests", "Requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "fa_tune_request_seconds", "Until an answer begins.", ("route", "method"), registry=self.registry
        )
        self.studies = Gauge("fa_tune_studies", "Stored studies.", ("state",), registry=self.registry)
        self.jobs = Gauge("fa_tune_jobs", "Studies that were asked for.", ("state",), registry=self.registry)
        self.workers = Gauge("fa_tune_workers", "Living workers.", registry=self.registry)

    def text(self, database: Database) -> bytes:
        """In Prometheus' text format.

        Raises:
            StoreError: the database failed.
        """
        for study_state, number in studies_by_state(database).items():
            self.studies.labels(study_state).set(number)
        for job_state, number in jobs_by_state(database).items():
            self.jobs.labels(job_state).set(number)
        self.workers.set(len(Jobs(database).workers()))
        return generate_latest(self.registry)


class Metered:
    """Counts and times what the application answers; a stream's time is that to its first word."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def send_metered(message: Message) -> None:
            if message["type"] == "http.response.start":
                route, method = _route(scope), scope["method"] if scope["method"] in METHODS else "other"
                self.metrics.requests.labels(route, method, message["status"]).inc()
                self.metrics.seconds.labels(route, method).observe(time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, send_metered)


def _route(scope: Scope) -> str:
    """The template of the route that was found, such as /studies/{name}, without what a mount puts before it."""
    template = getattr(scope.get("route"), "path", None)
    return template if isinstance(template, str) else "none"
