"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fa_tuner.domain.measurement import Requirement
    from fa_tuner.settings import StoreSettings
    from fa_tuner.store.artifacts import Artifacts
    from fa_tuner.store.repository import Store

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Storage = Annotated[str | None, typer.Option("--storage", help="Database URL (FA_TUNE_STORAGE).", show_default=False)]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a stored study.", show_default=False)]
MinPsnr = Annotated[float | None, typer.Option("--min-psnr", help="PSNR bound in dB.", show_default=False)]
Quality = Annotated[
    str | None, typer.Option("--quality", help="Preset: recommended, good or strict.", show_default=False)
]
Constraints = Annotated[
    list[str] | None, typer.Option("--constraint", help="Bound such as ssim>=0.95; repeatable.", show_default=False)
]
AggregateBy = Annotated[
    str | None,
    typer.Option("--aggregate", help="worst (default), mean, or a quantile such as p10.", show_default=False),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="Only policies of this dtype.", show_default=False)]
OutFile = Annotated[Path | None, typer.Option("-o", "--output", help="File to write.", show_default=False)]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Only what the user gave: settings must not mistake an absent flag for a value."""
    return {name: value for name, value in values.items() if value is not None and value not in ([], ())}


def asked(
    min_psnr: float | None, quality: str | None, constraints: list[str] | None, aggregate: str | None
) -> Requirement | None:
    """The requirement of a question about stored results; None for the study's own."""
    from fa_tuner.domain.errors import UsageError
    from fa_tuner.domain.measurement import PRESETS
    from fa_tuner.settings import asked_for

    if quality is not None and quality not in PRESETS:
        raise UsageError(f"--quality {quality!r} is unknown; choose {', '.join(PRESETS)}")
    if min_psnr is not None and not 0 <= min_psnr <= 100:
        raise UsageError(f"--min-psnr {min_psnr:g} lies outside 0 to 100 dB")
    return asked_for(min_psnr, quality, constraints or [], aggregate)


def one_of(dtype: str | None) -> str | None:
    """A dtype that is asked for.

    Raises:
        UsageError: there is none of that name.
    """
    from fa_tuner.domain.errors import UsageError
    from fa_tuner.domain.policy import DTYPES

    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype[:40]!r} is unknown; choose one of {', '.join(DTYPES)}")
    return dtype


@contextmanager
def opened_store(settings: StoreSettings) -> Iterator[Store]:
    from fa_tuner.store.repository import Store

    with Store.open(settings.url) as store:
        yield store


@contextmanager
def stored(storage: str | None) -> Iterator[Store]:
    """The store, for commands that only read it."""
    from fa_tuner.settings import StoreSettings, load

    with opened_store(load(StoreSettings, given({"storage": storage}))) as store:
        yield store


def artifacts_of(settings: StoreSettings) -> Artifacts:
    from fa_tuner.store.artifacts import Artifacts

    return Artifacts(settings.artifact_root, settings.artifact_quota_mb * 2**20)
