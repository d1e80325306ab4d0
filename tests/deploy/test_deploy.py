"""What lies in deploy/: compose file, image, unit and environments, as far as they are judged without an engine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fa_tuner.cli.app import app
from fa_tuner.settings import PREFIX, RunSettings, ServiceSettings, WorkerSettings, load
from fa_tuner.store.database import parse

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
GUIDE = (ROOT / "docs" / "deployment.md").read_text()
SET_BY_HAND = {
    PREFIX + name.upper()
    for kind in (RunSettings, ServiceSettings, WorkerSettings)
    for name in kind.model_fields
    if name not in ("worker_device", "worker_parent")
}


def variables(path: Path) -> dict[str, str]:
    """Of an environment file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}


def is_understood(words: list[str]) -> None:
    """The real command line takes these words; nothing is run."""
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="fa-tune")
    rest = words[1:]
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, rest)
        context = typer.Context(command, info_name=name, parent=context)
    command.parse_args(context, list(rest))


def test_services_have_what_the_specification_wants() -> None:
    assert COMPOSE.keys() <= {"name", "services", "networks", "volumes", "secrets"} | {"x-fa-tune"}
    named = {"database": None, "service": None, "worker": None}
    assert SERVICES.keys() == named.keys()
    for name, service in SERVICES.items():
        assert service.get("image") or service.get("build"), name
        image, _, tag = service["image"].partition(":")
        assert image and re.match(r"\d+\.\d+", tag), f"{name}: {tag!r} is no version"
        assert service.get("depends_on", {}).keys() <= SERVICES.keys()
        for condition in service.get("depends_on", {}).values():
            assert condition["condition"] != "service_healthy" or "healthcheck" in SERVICES["database"]
        for secret in service.get("secrets", ()):
            assert secret in COMPOSE["secrets"]
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), source
        for value in service["environment"].values():
            assert isinstance(value, str | int | float)
        if "build" in service:
            context = DEPLOY / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", ["database", "service"])
def test_who_is_asked_says_how_it_is(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD" and all(isinstance(word, str) for word in check["test"])
    assert {"interval", "timeout", "retries", "start_period"} < check.keys()
    assert name != "service" or "/healthz" in check["test"][-1]


def test_no_secret_is_in_a_file() -> None:
    for path in DEPLOY.iterdir():
        for word in ("PASSWORD", "KEY", "TOKEN"):
            assert not re.search(rf"{word}\s*[:=]\s*[^$\s]", path.read_text().replace("PASSWORD=$(", "")), path.name
        assert not re.search(r"://[^/@\s]+:[^/@\s]+@", path.read_text()), path.name
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for secret in COMPOSE["secrets"].values():
        assert f"/deploy/{secret['file'].removeprefix('./')}" in ignored
    assert {"/deploy/.env", "/deploy/object_store.env"} <= {*ignored}


def test_nobody_is_let_in_from_elsewhere() -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["service"]["ports"])
    assert all(port.startswith("${DATABASE_ADDRESS:-127.0.0.1}:") for port in SERVICES["database"]["ports"])
    (network,) = COMPOSE["networks"]["default"]["ipam"]["config"]
    assert SERVICES["service"]["environment"]["FORWARDED_ALLOW_IPS"] == network["gateway"]
    assert re.search(r"^USER fa-tune$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)


def test_every_variable_is_a_setting() -> None:
    named = {word for path in DEPLOY.iterdir() for word in re.findall(rf"{PREFIX}[A-Z_]+", path.read_text())}
    assert named and named <= SET_BY_HAND
    assert set(re.findall(rf"{PREFIX}[A-Z_]+", GUIDE)) <= SET_BY_HAND


def test_the_settings_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for file, kind in (("example.env", ServiceSettings), ("worker.env", RunSettings)):
        for name, value in variables(DEPLOY / file).items():
            monkeypatch.setenv(name, value)
        assert load(kind, {}).model_fields_set
    assert load(ServiceSettings, {}).models and load(ServiceSettings, {}).allowed_hosts == ["tuner.example"]
    for address in (variables(DEPLOY / "worker.env"), SERVICES["service"]["environment"]):
        url = parse(address["FA_TUNE_STORAGE"])
        assert (url.get_backend_name(), url.username, url.password) == ("postgresql", "fa_tune", None)


def test_every_command_is_understood() -> None:
    commands = [service["command"] for service in SERVICES.values() if "command" in service]
    unit = (DEPLOY / "fa-tune-worker.service").read_text()
    blocks = [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE) if not kind]
    for line in "\n".join([*re.findall(r"exec (.*)'$", unit, re.MULTILINE), *blocks]).splitlines():
        words = shlex.split(line, comments=True)
        at = [index for index, word in enumerate(words) if Path(word).name == "fa-tune"]
        commands += [words[index:] for index in at]
    assert {words[1] for words in commands} == {"serve", "worker", "keys"}
    for words in commands:
        is_understood(words)


def test_the_image_is_built_from_what_is_there() -> None:
    copied = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for source in " ".join(copied).split():
        assert (ROOT / source).exists() and f"!{source}" in sent
    assert re.match(r"FROM python:3\.\d+-slim", re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Dockerfile").read_text()).lstrip())


def test_the_entrypoint_gives_the_password_to_the_driver_alone(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    told = ["sh", DEPLOY / "entrypoint.sh", "sh", "-c", "echo ${PGPASSWORD-none} $*", "-", "a b"]
    for environment, said in (({"PGPASSWORD_FILE": str(tmp_path / "password")}, "s3cret a b"), ({}, "none a b")):
        done = subprocess.run(told, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, said, "")
    assert os.access(DEPLOY / "entrypoint.sh", os.X_OK)


def test_compose_itself_takes_it(tmp_path: Path) -> None:
    has = (
        shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    )
    if not has:
        pytest.skip("no docker with its compose plugin; the other tests here read the file")
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    done = subprocess.run(
        ["docker", "compose", "--env-file", "example.env", "--profile", "worker", "config", "--quiet"],
        cwd=tmp_path / "deploy", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_unit_signals_one_process() -> None:
    unit = (DEPLOY / "fa-tune-worker.service").read_text()
    assert re.search(r"^KillMode=mixed$", unit, re.MULTILINE)  # else a worker is asked twice, and stops at once
    assert [line for line in unit.splitlines() if line.startswith("[")] == ["[Unit]", "[Service]", "[Install]"]
