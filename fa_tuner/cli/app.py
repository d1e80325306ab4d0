"""The commands, registered; each lives with its like."""

from __future__ import annotations

from typing import Annotated

import typer

from .export import export
from .inspect import config, doctor
from .query import pareto, recommend, show, studies
from .run import run
from .service import keys, serve
from .verify import verify
from .worker import worker

app = typer.Typer(
    name="fa-tune",
    help="Find which denoising steps and layers must stay native under FP8 attention in vLLM-Omni.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("fa-tune"))
        raise typer.Exit


@app.callback()
def fa_tune(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find which denoising steps and layers must stay native under FP8 attention in vLLM-Omni."""


app.command()(run)
app.command()(studies)
app.command()(show)
app.command()(pareto)
app.command()(recommend)
app.command()(export)
app.command()(verify)
app.command()(serve)
app.command()(worker)
app.add_typer(keys)
app.command()(config)
app.command()(doctor)
