"""`fa-tune config` and `fa-tune doctor`: what is set, and what this machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, given


def config(
    study_file: Annotated[Path | None, typer.Option("--study-file", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Show every setting, its value, and where it comes from."""
    from rich.table import Table

    from fa_tuner.settings import RunSettings, ServiceSettings, WorkerSettings, load, load_run_settings, sources

    from .render import console, print_json

    flags = given({"study_file": study_file})
    settings = load_run_settings(flags)
    origin, fields, values = sources(flags, settings), dict(RunSettings.model_fields), settings.model_dump(mode="json")
    for more in (load(ServiceSettings, {}), load(WorkerSettings, {})):
        known = {*values, "worker_device", "worker_parent"}  # these two nobody sets by hand
        origin = sources({}, more) | origin
        fields |= type(more).model_fields
        values |= more.model_dump(mode="json", exclude=known)
    values["storage"] = _without_password(settings.url)
    artifacts = settings.artifact_root
    values["artifacts"] = _without_password(artifacts) if "://" in artifacts else artifacts
    if json_:
        print_json({name: {"value": value, "from": origin[name]} for name, value in values.items()})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("setting", "value", "from", "what it is"):
        table.add_column(column, no_wrap=column != "what it is")
    for name, value in values.items():
        shown = "" if value is None or value == [] or value == {} else str(value)
        table.add_row(name, shown, origin[name], fields[name].description or "")
    console().print(table)


def doctor(
    model: Annotated[
        str | None, typer.Option("--model", help="Also look at this folder or hub id.", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Say what can be tuned on this machine, why not, and what to install; nothing is loaded."""
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from fa_tuner.engines.doctor import report

    from .render import console, print_json

    *rows, summary = report(model)
    if json_:
        print_json([asdict(row) for row in (*rows, summary)])
        return
    style = {"works": "green", "cannot": "red", "unknown": "yellow"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("what", "verdict", "detail"):
        table.add_column(column, no_wrap=column != "detail", overflow="fold")
    for row in rows:
        table.add_row(row.what, Text(row.verdict, style[row.verdict]), row.detail)
    out = console()
    out.print(table)
    out.print()
    out.print(Text(summary.detail, style[summary.verdict]))


def _without_password(url: str) -> str:
    """A URL as it may be printed; where it is none it may still hold a password, in whatever place."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    from fa_tuner.store.failures import shown

    try:
        return shown(make_url(url))
    except (ArgumentError, ValueError):
        return "(not shown, as it is no URL)"
