"""docs/reference.md and the program say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from fa_tuner.cli.app import app
from fa_tuner.domain.errors import _OUTCOMES
from fa_tuner.domain.measurement import METRICS, PRESETS
from fa_tuner.engines.registry import engine_names
from fa_tuner.export import EXPORTERS
from fa_tuner.search.samplers import SAMPLERS
from fa_tuner.settings import PREFIX, RunSettings, ServiceSettings, StoreSettings, WorkerSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference.md").read_text()
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
SHARED = TEXT.split("\n## Options that several commands share\n")[1].split("\n## ")[0]
SETTINGS = TEXT.split("\n## Settings\n")[1].split("\n## ")[0]
OF_SERVICE = TEXT.split("\n## Settings of the service\n")[1].split("\n## ")[0]
OF_WORKER = TEXT.split("\n## Settings of the worker\n")[1].split("\n## ")[0]
SERVICE_FIELDS = {name: f for name, f in ServiceSettings.model_fields.items() if name not in StoreSettings.model_fields}
WORKER_FIELDS = {name: f for name, f in WorkerSettings.model_fields.items() if name not in StoreSettings.model_fields}


def section(title: str) -> str:
    parts = TEXT.split(f"\n## {title}\n")
    assert len(parts) == 2, f"docs/reference.md has no section {title}"
    return parts[1].split("\n## ")[0]


def code_words(text: str) -> set[str]:
    """What stands in backticks, word by word."""
    return {word for code in re.findall(r"`([^`]+)`", text) for word in code.split()}


def options(command: Any) -> set[str]:
    own = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("-")
    }
    return own.union(*map(options, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_and_option_is_described(name: str) -> None:
    text = section(name)
    where = code_words(text) if name != "run" else code_words(text + SETTINGS + SHARED)
    missing = options(COMMANDS[name]) - where - {"-h", "--help"}
    assert not missing, f"docs/reference.md does not describe {sorted(missing)} of {name}"
    assert f"[`{name}`](#{name})" in TEXT


def test_no_option_is_described_that_does_not_exist() -> None:
    known = {"--version", "-h", "--help", "--deploy-config"}.union(*map(options, COMMANDS.values()))
    assert {word for word in code_words(TEXT) if re.match("-[-a-z]", word)} <= known


def test_every_setting_has_its_row() -> None:
    rows = {}
    for line in SETTINGS.splitlines():
        if line.startswith("| `"):
            key, flag, variable, *_ = (cell.strip() for cell in line.strip("|").split("|"))
            rows[key.strip("`")] = (code_words(flag), variable.strip("`"))
    assert list(rows) == list(RunSettings.model_fields)
    every = options(COMMANDS["run"])
    for name, (flags, variable) in rows.items():
        assert variable == PREFIX + name.upper()
        assert {flag for flag in flags if flag.startswith("-")} <= every
    described = {flag for flags, _ in rows.values() for flag in flags}
    assert every - described == {"--dry-run", "--json"}


@pytest.mark.parametrize(
    ("command", "text", "fields"), [("serve", OF_SERVICE, SERVICE_FIELDS), ("worker", OF_WORKER, WORKER_FIELDS)]
)
def test_every_setting_of_the_service_and_the_worker_has_its_row(
    command: str, text: str, fields: dict[str, Any]
) -> None:
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    assert [key.strip(" `") for key, *_ in cells] == list(fields)
    for key, flag, variable, *_ in cells:
        assert variable.strip(" `") == PREFIX + key.strip(" `").upper()
        assert code_words(flag) - {"NAME"} <= options(COMMANDS[command])


def test_defaults_are_those_of_the_program() -> None:
    lines = (SETTINGS + OF_SERVICE + OF_WORKER).splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| `")]
    for key, _, _, default, _ in rows:
        value = (RunSettings.model_fields | SERVICE_FIELDS | WORKER_FIELDS)[key.strip(" `")].default
        if isinstance(value, int | float) or (isinstance(value, str) and value):
            assert default.strip(" `") == f"{value}".removesuffix(".0")


def test_every_exit_code_and_problem_type() -> None:
    rows = re.findall(r"^\| (\d+) \| `([a-z-]+)` \| (\d+) \|", section("Exit codes"), re.MULTILINE)
    assert sorted((int(code), int(status), kind) for code, kind, status in rows) == sorted(_OUTCOMES.values())


def test_every_name_to_choose_from() -> None:
    assert {*METRICS, *PRESETS, *EXPORTERS, *SAMPLERS, *engine_names()} <= code_words(TEXT)


def test_every_variable_that_the_code_reads() -> None:
    read = {
        name
        for folder in ("fa_tuner", "api")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"FA_TUNE_[A-Z_0-9]*[A-Z0-9]", path.read_text())
    }
    assert read <= set(re.findall(r"FA_TUNE_[A-Z_0-9]*[A-Z0-9]", TEXT))


def test_the_page_of_the_service_has_every_route_field_and_state() -> None:
    import fa_tuner_api
    from fa_tuner_api.jobs import StudyRequest

    from fa_tuner.domain.job import STATES

    page = re.sub(r"^```.*?^```", "", (ROOT / "docs" / "service.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    asking = page.split("\n## Asking for a study\n")[1].split("\n## ")[0]
    assert {*StudyRequest.model_fields, *STATES} <= code_words(asking)
    routes = {
        path for path in fa_tuner_api.create_app(ServiceSettings()).openapi()["paths"] if path.startswith("/api/")
    }
    described = re.sub(r"\{[a-z_]+\}", "{}", page.replace("cases/{n}", "cases/{}"))
    missing = {path for path in routes if f"{re.sub(r'{[a-z_]+}', '{}', path)}`" not in described}
    assert not missing
