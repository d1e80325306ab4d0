"""A recommended policy as what vLLM-Omni takes: a deploy overlay, legacy stage_args, or command-line flags."""

from __future__ import annotations

from fa_tuner.domain.errors import UsageError
from fa_tuner.export.base import Exporter
from fa_tuner.export.deploy import DeployExporter
from fa_tuner.export.flags import FlagsExporter
from fa_tuner.export.merge import merge_into, target_of
from fa_tuner.export.stage_args import StageArgsExporter
from fa_tuner.export.target import Target

__all__ = ["EXPORTERS", "Exporter", "Target", "exporter", "merge_into", "target_of"]

EXPORTERS: dict[str, type[Exporter]] = {
    kind.name: kind for kind in (DeployExporter, StageArgsExporter, FlagsExporter)
}  # fmt: skip


def exporter(name: str) -> Exporter:
    """The exporter of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in EXPORTERS:
        raise UsageError(f"export format {name[:40]!r} is unknown; choose one of {', '.join(EXPORTERS)}")
    return EXPORTERS[name]()
