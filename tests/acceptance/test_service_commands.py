"""`fa-tune serve` in a process of its own, and `fa-tune keys`, as a user has them."""

from __future__ import annotations

import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import httpx
import pytest
from fa_tuner_api.serving import MOST_CONNECTIONS

from tests.support.command import FaTune


@pytest.fixture(autouse=True)
def ready_without_worker(fa_tune: FaTune, monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests ask nothing of a worker."""
    monkeypatch.setenv("FA_TUNE_READY_WITHOUT_WORKER", "true")


def served(process: subprocess.Popen[str]) -> str:
    """The address that it prints."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        ready = selector.select(60)
    assert ready, "nothing was printed within a minute"
    return process.stdout.readline().strip()


def test_it_starts_answers_and_ends(fa_tune: FaTune) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        process = fa_tune.start("serve", "--port", "0")
        address = served(process)
        assert address.startswith("http://127.0.0.1:") and not address.endswith((":0", ":8000"))
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            answer = httpx.get(address + path)
            assert answer.status_code == 200, answer.text
            assert "server" not in answer.headers
        process.send_signal(number)
        ended = fa_tune.finish(process, 20)
        assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_a_key_closes_it_and_revoking_is_felt_at_once(fa_tune: FaTune) -> None:
    address = served(fa_tune.start("serve", "--port", "0"))
    assert httpx.get(f"{address}/readyz").status_code == 200
    made = fa_tune("keys", "create", "ann", "--scope", "read", "--json").succeeded().document
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert httpx.get(f"{address}/readyz", headers=headers).status_code == 200
    time.sleep(1.1)
    assert httpx.get(f"{address}/readyz").status_code == 401
    login = httpx.post(f"{address}/login", headers=headers)
    session = {"Cookie": login.headers["set-cookie"].partition(";")[0]}
    assert httpx.get(f"{address}/readyz", headers=session).status_code == 200
    assert httpx.post(f"{address}/logout", headers=session).status_code == 403  # without an origin
    fa_tune("keys", "revoke", made["id"]).succeeded()
    for gone in (headers, session):
        assert httpx.get(f"{address}/readyz", headers=gone).status_code == 401
    assert httpx.get(f"{address}/healthz").status_code == 200


def test_hosts_origins_and_sizes_over_a_socket(fa_tune: FaTune) -> None:
    address = served(fa_tune.start("serve", "--port", "0"))
    named = address.replace("127.0.0.1", "localhost")
    for answer, status in (
        (httpx.get(f"{address}/readyz", headers={"Host": named.removeprefix("http://")}), 200),
        (httpx.get(f"{address}/readyz", headers={"Host": "evil.example"}), 400),
        (httpx.post(f"{address}/login", headers={"Origin": "http://evil.example"}), 403),
        (httpx.post(f"{address}/login", headers={"Origin": address}), 409),  # there is no key
        (httpx.post(f"{address}/login", content=b"x" * (2**20 + 1)), 413),
    ):
        assert answer.status_code == status, answer.text
        assert status == 200 or answer.headers["content-type"] == "application/problem+json"


def test_only_so_many_are_connected_at_once(fa_tune: FaTune) -> None:
    address = served(fa_tune.start("serve", "--port", "0"))
    with ExitStack() as idle:
        for _ in range(MOST_CONNECTIONS):
            idle.enter_context(socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=10))
        assert httpx.get(f"{address}/healthz").status_code == 503
    assert httpx.get(f"{address}/healthz").status_code == 200


def test_elsewhere_it_wants_a_key(fa_tune: FaTune) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "tuner.example"):
        fa_tune("serve", "--host", host, "--port", "0").refused(2, "no key was created", "fa-tune keys create")
    made = fa_tune("keys", "create", "ann", "--scope", "read", "--json").succeeded().document
    process = fa_tune.start("serve", "--host", "0.0.0.0", "--port", "0")
    address = served(process).replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{address}/readyz").status_code == 401
    assert httpx.get(f"{address}/readyz", headers={"X-API-Key": made["key"]}).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert fa_tune.finish(process, 20).code == 0
    fa_tune("keys", "revoke", made["id"]).succeeded()
    fa_tune("serve", "--host", "0.0.0.0", "--port", "0").refused(2, "no key was created")


def test_an_address_that_cannot_be_had(fa_tune: FaTune) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        fa_tune("serve", "--port", port).refused(2, f"port {port}", "in use", "--port")
    fa_tune("serve", "--port", "99999").refused(2, "port", "65535")
    fa_tune("serve", "--storage", "nonsense").refused(8, "sqlite:///PATH")


def test_keys_from_creation_to_revocation(fa_tune: FaTune, capsys: pytest.CaptureFixture[str]) -> None:
    assert fa_tune("keys", "list", "--json").succeeded().document == []
    made = fa_tune("keys", "create", "Ann's laptop", "--scope", "admin").succeeded()
    secret = made.out.strip()
    assert secret.startswith("fat_") and len(secret) == 47 and "cannot be shown again" in made.err
    assert secret not in made.err
    shown = fa_tune("keys", "list").succeeded().out
    (row,) = fa_tune("keys", "list", "--json").succeeded().document
    assert (row["name"], row["scope"], row["used"], row["revoked"]) == ("Ann's laptop", "admin", None, None)
    assert row["id"] in shown and "Ann's laptop" in shown and secret not in shown
    assert row["id"] in fa_tune("keys", "revoke", row["id"]).succeeded().out
    once = fa_tune("keys", "revoke", row["id"], "--json").succeeded().document
    assert once["revoked"] == fa_tune("keys", "list", "--json").succeeded().document[0]["revoked"] is not None
    fa_tune("keys", "create", "bob", "--scope", "root").refused(2, "'root'", "read, write, admin")
    fa_tune("keys", "create", "", "--scope", "read").refused(2, "name")
    fa_tune("keys", "revoke", "nobody").refused(3, "'nobody'", "fa-tune keys list")
    for file in (fa_tune.folder / "data").rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes()


def test_the_service_loads_no_torch(fa_tune: FaTune) -> None:
    code = (
        "import sys, fa_tuner_api.serving\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'optuna', 'alembic', 'skimage'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_settings_of_the_service_and_the_worker(fa_tune: FaTune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA_TUNE_ALLOWED_HOSTS", '["tuner.example"]')
    shown = fa_tune("config", "--json").succeeded().document
    assert shown["allowed_hosts"] == {"value": ["tuner.example"], "from": "environment"}
    assert shown["max_body_kb"] == {"value": 1024, "from": "default"}
    assert shown["ready_without_worker"] == {"value": True, "from": "environment"}
    monkeypatch.setenv("FA_TUNE_DEVICES", '["npu:0+1"]')
    monkeypatch.setenv("FA_TUNE_WORKER_PARENT", "1")
    shown = fa_tune("config", "--json").succeeded().document
    assert shown["devices"] == {"value": ["npu:0+1"], "from": "environment"}
    assert shown["max_attempts"] == {"value": 3, "from": "default"}
    assert not {"worker_device", "worker_parent"} & shown.keys()
    monkeypatch.setenv("FA_TUNE_MAX_BODY_KB", "none")
    fa_tune("config").refused(2, "FA_TUNE_MAX_BODY_KB")
