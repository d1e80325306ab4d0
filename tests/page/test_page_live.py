"""A study while it waits, runs and ends, without the page being loaded again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from fa_tuner.domain.study import Evaluation, study_id
from fa_tuner.store.database import Database
from fa_tuner.store.jobs import Jobs
from fa_tuner.store.repository import Store
from tests.page.conftest import Served, place_of
from tests.support.measured import a_measurement
from tests.support.stored import add_study

Visit = Callable[..., Page]


@pytest.fixture
def store(service: Served) -> Iterator[Store]:
    with Store.open(service.url) as opened:
        yield opened


def test_a_study_that_runs_is_followed_to_its_end(visit: Visit, store: Store) -> None:
    add_study(store, "growing", count=4)
    page = visit(place_of("growing"))
    live = page.locator(".live")
    expect(live).to_contain_text("running · 3 of 10 policies measured")
    assert live.locator("progress").evaluate("bar => bar.value / bar.max") == pytest.approx(0.3)
    better = a_measurement("1/2", 0.5, 39.0, source="measured")
    store.add_evaluation("growing", Evaluation(better.policy, "predicted", 9, better))
    expect(live).to_contain_text("4 of 10 policies measured", timeout=15_000)
    expect(page.locator('.plot a[aria-label*="latency 50.0 %"]')).to_have_count(1, timeout=15_000)
    store.set_state("growing", "finished", "budget")
    expect(live).to_have_count(0, timeout=15_000)
    expect(page.locator("h1")).to_contain_text("finished")


def test_without_events_the_front_is_asked_for_again(visit: Visit, store: Store) -> None:
    add_study(store, "quiet", count=3)
    page = visit()
    page.route("**/events", lambda route: route.fulfill(status=404, body="{}"))
    with page.expect_response(lambda answer: answer.url.endswith("/front"), timeout=15_000):
        page.evaluate("place => { location.hash = place; }", place_of("quiet"))
    expect(page.locator(".live")).to_contain_text("2 of 10")
    with page.expect_response(lambda answer: answer.url.endswith("/front"), timeout=15_000) as again:
        pass
    assert again.value.ok


def test_a_study_that_no_worker_has_begun(visit: Visit, service: Served) -> None:
    database = Database.open(service.url)
    try:
        Jobs(database).submit("waiting", {"model": "<b>some model</b>"}, 1)
    finally:
        database.close()
    page = visit()
    row = page.locator("tbody tr").filter(has=page.get_by_role("link", name="waiting", exact=True))
    expect(row).to_contain_text("queued")
    expect(row).to_contain_text("<b>some model</b>")
    row.get_by_role("link").click()
    expect(page.locator("h1")).to_contain_text("queued")
    expect(page.locator(".live")).to_contain_text("queued")
    expect(page.locator("main")).to_contain_text("No worker has begun it yet")
    asked = httpx.post(f"{service.address}/api/v1/studies/{study_id('waiting')}/cancel")
    assert asked.status_code == 202, asked.text
    expect(page.locator("h1")).to_contain_text("cancelled", timeout=15_000)
    expect(page.locator(".live")).to_have_count(0)
    page.evaluate("location.hash = '#/?state=cancelled'")
    expect(page.locator("tbody tr")).to_have_count(1)
