"""The examples of docs/clients.md, taken from the page and run against a real service with a worker."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fa_tuner.engines.synthetic import synthetic_landscape
from tests.support.command import FaTune

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
EXAMPLES = {"python": ("tune.py", sys.executable), "sh": ("tune.sh", "sh")}
LONG = synthetic_landscape(20, 20, seed=3)
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=list(EXAMPLES))
def example(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The words that run it."""
    if request.param == "sh" and shutil.which("curl") is None:
        if os.environ.get("FA_TUNE_REQUIRE_CURL") == "1":
            pytest.fail("curl is missing")
        pytest.skip("no curl to run the shell example with")
    (code,) = re.findall(rf"^```{request.param}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    file, program = EXAMPLES[request.param]
    (tmp_path / file).write_text(code)
    return [program, str(tmp_path / file)]


@pytest.fixture(params=["open", "with a key"])
def service(
    request: pytest.FixtureRequest, fa_tune: FaTune, landscape: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """A service with a worker; what the examples read of the environment."""
    LONG.write(fa_tune.folder / "long.json")
    monkeypatch.setenv("FA_TUNE_ENGINE", "replay")
    monkeypatch.setenv("FA_TUNE_MODELS", json.dumps([str(landscape), str(fa_tune.folder / "long.json")]))
    key = ""
    if request.param == "with a key":
        key = fa_tune("keys", "create", "client", "--scope", "write").succeeded().out.strip()
    process = fa_tune.start("serve", "--with-worker", "--port", "0")
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 60)
    assert ready, "nothing was printed within a minute"
    known = {"TUNER_URL": process.stdout.readline().strip(), "TUNER_KEY": key}
    deadline = time.monotonic() + 60
    while asked(known, "/readyz").status_code != 200:
        assert time.monotonic() < deadline, "no worker within a minute"
        time.sleep(0.1)
    return known


def asked(service: dict[str, str], path: str, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {service['TUNER_KEY']}"} if service["TUNER_KEY"] else {}
    return httpx.get(service["TUNER_URL"] + path, headers=headers, **more)


@pytest.fixture
def run(example: list[str], service: dict[str, str], fa_tune: FaTune) -> Run:
    def ran(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*example, *map(str, words)], env={**os.environ, **service, **environment}, capture_output=True, text=True,
            timeout=90, cwd=fa_tune.folder,
        )  # fmt: skip

    return ran


def test_from_the_request_to_the_file_to_cancelling_and_to_refusals(
    run: Run, service: dict[str, str], fa_tune: FaTune, landscape: Path
) -> None:
    request, deploy = fa_tune.folder / "request.json", fa_tune.folder / "deploy.yaml"
    request.write_text(json.dumps({"model": str(landscape), "trials": 8, "min_psnr": 35}, indent=1))
    done = run(request, deploy)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "gain" in done.stdout
    (job,) = asked(service, "/api/v1/jobs").json()["jobs"]
    assert (job["state"], job["reason"]) == ("finished", "budget")
    exported = asked(service, f"{job['links']['study']}/export").content
    assert deploy.read_bytes() == exported
    fa_tune("export", job["study"], "-o", "by-hand.yaml").succeeded()
    assert deploy.read_bytes() == (fa_tune.folder / "by-hand.yaml").read_bytes()

    # once more: the same study, and the file is there
    before = deploy.stat().st_mtime_ns
    assert run(request, deploy).returncode == 0
    assert deploy.stat().st_mtime_ns == before and deploy.read_bytes() == exported
    assert len(asked(service, "/api/v1/jobs").json()["jobs"]) == 1

    long = fa_tune.folder / "long-request.json"
    long.write_text(json.dumps({"model": str(fa_tune.folder / "long.json"), "trials": 5000}))
    cancelled = run("cancel", long)
    assert cancelled.returncode == 0 and "cancel" in cancelled.stdout, cancelled.stderr
    deadline = time.monotonic() + 60
    while (state := asked(service, "/api/v1/jobs").json()["jobs"][0]["state"]) != "cancelled":
        assert state == "cancelling" and time.monotonic() < deadline
        time.sleep(0.2)
    again = run(long, deploy)
    assert again.returncode == 1, again.stdout
    assert deploy.read_bytes() == exported

    # what is refused is said, and leaves the file as it was
    request.write_text(json.dumps({"model": "another"}))
    refusals = [("forbidden", run(request, deploy))]
    if service["TUNER_KEY"]:
        refusals.append(("unauthorized", run(request, deploy, TUNER_KEY="fat_wrong")))
    for kind, refused in refusals:
        assert refused.returncode != 0 and f"urn:fa-tune:{kind}" in refused.stdout + refused.stderr
        assert "Traceback" not in refused.stderr
    assert deploy.read_bytes() == exported
