"""What the page is made of: a fixed list of files, of the right types, kept by a browser while they stay the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fa_tuner_api.page import FILES, FOLDER

from fa_tuner.settings import ServiceSettings
from fa_tuner.store.keys import Keys
from tests.support.service import Service, problem

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def test_every_file_is_served_under_its_type(service: Service) -> None:
    assert len(FILES) > 10
    for path, file in [("/", FOLDER / "index.html"), *((f"/static/{name}", FOLDER / name) for name in FILES)]:
        answer = service.get(path)
        assert (answer.status_code, answer.content) == (200, file.read_bytes())
        assert answer.headers["content-type"].partition(";")[0] == TYPES[file.suffix]
        assert "content-disposition" not in answer.headers
        again = service.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert {file.name for file in FOLDER.iterdir()} == {"index.html", *FILES}


@pytest.mark.parametrize(
    "name", ["index.html", "", "..%2Fpage.py", "%2E%2E/page.py", "main.js%00", "MAIN.JS", "main.js/", "a" * 5000]
)
def test_nothing_else_is(service: Service, name: str) -> None:
    problem(service.get(f"/static/{name}"), 404, "not-found")


def test_it_names_only_files_that_there_are() -> None:
    """And loads nothing from elsewhere, holds no style or script of its own, and writes no markup from data."""
    for file in (path for path in FOLDER.iterdir() if path.suffix in TYPES):
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r'from "\./([^"]+)"', text) + re.findall(r'"/static/([^"]+)"', text):
            assert (FOLDER / name).is_file(), f"{file.name} names {name}"
        assert not set(re.findall(r"https?://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg"}, file.name
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "style=", "eval(", "<style"):
            assert word not in text, f"{file.name} has {word}"


def test_who_came_by_a_session_can_log_out(service: Service, settings: ServiceSettings) -> None:
    assert 'id="logout" hidden' in service.get("/").text
    with Keys.open(settings.url) as keys:
        key, secret = keys.create("ann", "read")
        session = {"Cookie": f"fa_tune_session={keys.start_session(key.id, 60)}"}
    assert 'id="logout">' in service.get("/", headers=session).text
    assert 'id="logout" hidden' in service.get("/", headers={"X-API-Key": secret}).text


def test_a_module_is_no_longer_than_a_few_screens() -> None:
    for file in Path(FOLDER).glob("*.js"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 250, file.name
