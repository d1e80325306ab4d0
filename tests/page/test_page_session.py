"""Logging in with a key, and out; and a session that ends meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from fa_tuner.store.keys import Keys
from fa_tuner.store.repository import Store
from tests.page.conftest import place_of, serving, url_of
from tests.support.browser import Complaints
from tests.support.stored import add_study


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    with Keys.open(url_of(tmp_path)) as opened:
        yield opened


@pytest.fixture
def secret(keys: Keys) -> str:
    return keys.create("ann", "read")[1]


@pytest.fixture
def page(browser: Browser, secret: str, tmp_path: Path) -> Iterator[Page]:
    """A service that has a key, and one study."""
    with Store.open(url_of(tmp_path)) as store:
        add_study(store, "s", count=9)
        store.set_state("s", "finished")
    complaints = Complaints(expected=(401, 404))
    with serving(tmp_path) as address:
        context = browser.new_context(base_url=address)
        opened = context.new_page()
        opened.set_default_timeout(15_000)
        complaints.watch(opened)
        yield opened
        context.close()
    assert complaints.said == []


def log_in(page: Page, secret: str) -> None:
    page.get_by_label("Key").fill(secret)
    page.keyboard.press("Enter")


def test_from_login_to_logout(page: Page, secret: str) -> None:
    answer = page.goto("/")
    assert answer is not None and answer.status == 401
    expect(page.get_by_label("Key")).to_be_focused()
    background = page.get_by_role("button").evaluate("button => getComputedStyle(button).backgroundColor")
    assert background == "rgb(11, 87, 164)"  # the form's own style is allowed
    log_in(page, "fat_wrong")
    expect(page.get_by_role("status")).to_contain_text("no key of this service")
    log_in(page, secret)
    page.wait_for_url("**/")
    expect(page.get_by_role("link", name="s", exact=True)).to_be_visible()
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("fa_tune_session", True, "Strict")
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Key")).to_be_visible()
    assert page.context.cookies() == []
    answer = page.goto("/")
    assert answer is not None and answer.status == 401


def test_a_session_that_ends_meanwhile(page: Page, secret: str, keys: Keys) -> None:
    page.goto("/")
    log_in(page, secret)
    page.get_by_role("link", name="s", exact=True).click()
    expect(page.locator("h1")).to_contain_text("s")
    keys.revoke(keys.all()[0].id)
    _, other = keys.create("bob", "read")
    page.get_by_role("link", name="Recommend").click()
    expect(page.get_by_role("alert").first).to_contain_text("session has ended")
    page.go_back()
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("status")).to_contain_text("has ended")
    log_in(page, other)
    page.wait_for_url(f"**/{place_of('s')}")  # back to where it was
    expect(page.locator("h1")).to_contain_text("s")
    expect(page.locator("#session")).to_be_hidden()
