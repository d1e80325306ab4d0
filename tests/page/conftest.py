"""One service with a few studies, and one browser, for all tests of the page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from fa_tuner.domain.study import study_id
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.settings import load_run_settings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.repository import Store
from fa_tuner.tuning import tune
from tests.support.observers import Silent
from tests.support.stored import add_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

NASTY = "<script>alert(1)</script>"


@dataclass(frozen=True)
class Served:
    """A service and what it stands on; its studies are `tiny` with frames, `replayed` without, and `NASTY`, running."""

    address: str
    url: str
    artifacts: Artifacts

    def get(self, path: str) -> Any:
        return httpx.get(self.address + path).raise_for_status().json()

    def study(self, name: str, part: str = "") -> Any:
        return self.get(f"/api/v1/studies/{study_id(name)}{part}")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`fa-tune serve` on what is stored in a folder; its address."""
    from tests.acceptance.test_service_commands import served

    environment = {name: value for name, value in os.environ.items() if not name.startswith("FA_TUNE_")}
    environment |= {"FA_TUNE_STORAGE": url_of(folder), "FA_TUNE_ARTIFACTS": str(folder / "artifacts")}
    command = [sys.executable, "-c", "from fa_tuner.cli import main; main()", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield served(process)
    finally:
        process.terminate()
        process.communicate(timeout=20)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'fa-tune.db'}"


@pytest.fixture(scope="package")
def service(tiny_wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    landscape = folder / "landscape.json"
    synthetic_landscape(6, 4, prompts=2, holdout=1, seed=3).write(landscape)
    artifacts = Artifacts(str(folder / "artifacts"), 2**24)
    with Store.open(url_of(folder)) as store:
        for chosen in (
            {"engine": "replay", "model": str(landscape), "trials": 12, "study": "replayed", "min_psnr": 38},
            {
                "engine": "diffusers", "model": str(tiny_wan), "trials": 6, "study": "tiny", "device": "cpu",
                "prompts": ["red digit moving left", "blue digit moving right"], "holdout_prompts": ["green digit"],
                "height": 32, "width": 32, "frames": 5, "steps": 3, "guidance": 1.0, "min_psnr": 45,
            },
        ):  # fmt: skip
            tune(load_run_settings(chosen).request(), store, artifacts, Silent(), url_of(folder))
        add_study(store, NASTY, count=9)
    with serving(folder) as address:
        yield Served(address, url_of(folder), artifacts)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """For this package only: while it is open, no test may run an event loop of its own."""
    from tests.support.browser import chromium, executable

    if (path := executable()) is None:
        reason = "no Chromium: install the package `chromium`, or name one in FA_TUNE_CHROMIUM"
        if os.environ.get("FA_TUNE_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with chromium(path) as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser, service: Served) -> Iterator[Callable[..., Page]]:
    """`visit("#/recommend", width=360)` opens a place of the page in a window of its own, and waits until it is there.
    What a browser complains of in any of it fails the test."""
    from tests.support.browser import Complaints

    contexts: list[BrowserContext] = []
    complaints = Complaints()

    def opened(place: str = "", width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light",
            permissions=["clipboard-read", "clipboard-write"],
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        complaints.watch(page)
        page.goto(f"{service.address}/{place}")
        settled(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints.said == []


@pytest.fixture
def best(service: Served) -> str:
    """The place of the recommended policy of `tiny`."""
    return place_of("tiny", service.study("tiny", "/front")["recommended"]["policy"]["id"])


def go(page: Page, place: str) -> None:
    """To another place of the page, without loading it anew."""
    page.evaluate(
        """place => {
          document.querySelector("main").setAttribute("aria-busy", "true"); // until the page says that it is not
          location.hash = place;
        }""",
        place,
    )
    settled(page)


def settled(page: Page) -> None:
    """Wait until everything that was asked for is drawn."""
    page.wait_for_function(
        """() => {
          const main = document.querySelector("main:not([aria-busy])");
          const has = (one, other) => !main.querySelector(one) || main.querySelector(other);
          return main?.querySelector("h1") && has(".stage:not([hidden])", ".stage[data-frame]")
            && has("#export", "#export code:not(:empty), .yaml [role=status]:not(:empty)")
            && has(".plot", ".plot svg") && has(".strip", ".strip svg") && has(".heat", ".heat svg");
        }"""
    )


def place_of(study: str, policy: str | None = None) -> str:
    return f"#/studies/{study_id(study)}" + (f"/policies/{policy}" if policy else "")
