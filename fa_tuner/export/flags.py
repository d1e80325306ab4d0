"""Flags for `vllm serve MODEL --omni`; there the command line beats every YAML file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from fa_tuner.export.base import DTYPE, KEYS, SKIP_LAYERS, SKIP_STEPS, Exporter


class FlagsExporter(Exporter):
    """One line of flags, below the comment block."""

    name = "flags"
    note = "Flags name no stage: they are meant for a model with one diffusion stage."

    def render(self, values: Mapping[str, str], stage_id: int, named: Mapping[str, str]) -> str:
        dtype, *selectors = (f"--{key.replace('_', '-')}" for key in KEYS)
        return f'{dtype} {values[DTYPE]} {selectors[0]} "{values[SKIP_STEPS]}" {selectors[1]} "{values[SKIP_LAYERS]}"\n'

    def read_back(self, text: str, stage_id: int) -> dict[str, Any]:
        words = shlex.split(text, comments=True)
        names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
        return dict(zip(names, words[1::2], strict=True))
