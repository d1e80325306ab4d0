"""`fa-tune serve` and `fa-tune keys`: the service, and who may ask it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, Storage, given

if TYPE_CHECKING:
    from datetime import datetime

    from fa_tuner.store.keys import Key, Keys

keys = typer.Typer(name="keys", help="Who may ask the service: create, list and revoke API keys.", no_args_is_help=True)


def serve(
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on; 127.0.0.1.", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port; 8000, and 0 for any that is free.", show_default=False)
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Further name it is asked under; repeatable.", show_default=False),
    ] = None,
    with_worker: Annotated[bool, typer.Option("--with-worker", help="Have a worker beside it.")] = False,
    storage: Storage = None,
) -> None:
    """Start the service; Ctrl-C or SIGTERM ends it. Its address goes to stdout."""
    from fa_tuner.settings import ServiceSettings, load

    flags = given({"host": host, "port": port, "allowed_hosts": allowed_host, "storage": storage})
    settings = load(ServiceSettings, flags)

    from fa_tuner_api.serving import serve as run

    run(settings, typer.echo, lambda text: typer.echo(text, err=True), with_worker)


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Who gets it.", show_default=False)],
    scope: Annotated[str, typer.Option("--scope", help="read, write or admin.", show_default=False)],
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """Make a key and print it, once: only its hash is stored."""
    from .render import print_json

    with _opened(storage) as store:
        key, secret = store.create(name, scope)
    if json_:
        print_json({**_document(key), "key": secret})
        return
    typer.echo(secret)
    typer.echo(f"key {key.id} of {key.name!r}, scope {key.scope}; keep it now, it cannot be shown again", err=True)


@keys.command("list")
def list_(storage: Storage = None, json_: Json = False) -> None:
    """List the keys, oldest first, without their secrets."""
    from rich.table import Table

    from .render import console, print_json

    with _opened(storage) as store:
        found = store.all()
    if json_:
        print_json([_document(key) for key in found])
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("id", "name", "scope", "created", "last used", "revoked"):
        table.add_column(column, no_wrap=True)
    for key in found:
        table.add_row(key.id, key.name, key.scope, *map(_minute, (key.created, key.used, key.revoked)))
    console().print(table)


@keys.command()
def revoke(
    id_: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.", show_default=False)],
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """End a key and its sessions, at once and for good."""
    from .render import print_json

    with _opened(storage) as store:
        key = store.revoke(id_)
    if json_:
        print_json(_document(key))
    else:
        typer.echo(f"key {key.id} of {key.name!r} is revoked since {_minute(key.revoked)}")


def _opened(storage: str | None) -> Keys:
    from fa_tuner.settings import StoreSettings, load
    from fa_tuner.store.keys import Keys

    return Keys.open(load(StoreSettings, given({"storage": storage})).url)


def _document(key: Key) -> dict[str, Any]:
    dates = {"created": key.created, "used": key.used, "revoked": key.revoked}
    return {"id": key.id, "name": key.name, "scope": key.scope} | {
        name: date.isoformat() if date else None for name, date in dates.items()
    }


def _minute(date: datetime | None) -> str:
    return f"{date:%Y-%m-%d %H:%M} UTC" if date else ""
