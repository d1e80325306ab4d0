"""An export as the installed vLLM-Omni reads it: what it says must be what was measured."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import IO

from fa_tuner.documents import one_line
from fa_tuner.domain.errors import DocumentError, NotQuantizedError, UsageError
from fa_tuner.domain.study import Recommendation
from fa_tuner.domain.upstream import Release
from fa_tuner.engines.vllm_omni.loader import LoadedStage, installed_version, read_flags, read_stage, read_stage_args
from fa_tuner.export.base import KEYS
from fa_tuner.export.target import Target


def check_installed(target: Target) -> None:
    """
    Raises:
        EngineError: vLLM-Omni is not installed.
        UsageError: it is not the version that the export is for, or does not read the format.
    """
    installed = installed_version()
    release = Release.parse(installed)
    if target.release is not None and release != target.release:
        raise UsageError(
            f"--validate asks the vllm-omni that is installed here, {installed}, but the export is for "
            f"{target.release}; validate where that one is installed, or leave out one of the two options"
        )
    if target.format not in release.formats:
        raise UsageError(
            f"vllm-omni {installed}, which is installed here, does not read the format {target.format}; "
            f"use --format {' or '.join(release.formats) or 'flags, with 0.22 or newer'}"
        )


def validate(
    text: str, target: Target, recommendation: Recommendation, stage_id: int, folder: Path | None = None
) -> LoadedStage:
    """What the installed vLLM-Omni would start for the stage, which is the recommended policy.

    Args:
        folder: where `text` will be written, so that a `base_config` in it is found.

    Raises:
        EngineError: vLLM-Omni is not installed, fails, or hangs.
        UsageError: as `check_installed`; DocumentError where vLLM-Omni refuses the text.
        NotQuantizedError: it reads something else than the policy.
    """
    check_installed(target)
    model = recommendation.study.spec.workload.model
    if target.format == "flags":
        found = read_flags(model, shlex.split(text, comments=True), stage_id)
    else:
        read = read_stage if target.format == "deploy" else read_stage_args
        with _scratch(folder) as file:
            file.write(text.encode())
            file.flush()
            found = read(model, Path(file.name), stage_id)
    _compare(found, target, recommendation)
    return found


def _scratch(folder: Path | None) -> IO[bytes]:
    try:
        return tempfile.NamedTemporaryFile(dir=folder, prefix=".fa-tune-", suffix=".yaml")
    except OSError as error:
        raise DocumentError(
            f"a file to validate cannot be written to {one_line(str(folder))}: {error.strerror}; nothing was changed"
        ) from None


def _compare(found: LoadedStage, target: Target, recommendation: Recommendation) -> None:
    policy = recommendation.policy
    steps, layers = frozenset(policy.skip_steps), frozenset(policy.skip_layers)
    wrong = [
        f"{key} as {_shown(read)}, which was meant to be {_shown(meant)}"
        for key, read, meant in zip(
            KEYS, (found.dtype, found.skip_steps, found.skip_layers), (policy.dtype, steps, layers), strict=True
        )
        if read != meant
    ]
    if not wrong:
        return
    message = f"vllm-omni {found.version} reads {'; '.join(wrong)}"
    if found.dtype is None and target.format == "deploy":
        message += f". {replace(target, release=Release.parse(found.version)).why_unread(recommendation)}"
    raise NotQuantizedError(message)


def _shown(value: object) -> str:
    return f"{{{', '.join(map(str, sorted(value)))}}}" if isinstance(value, frozenset) else repr(value)
