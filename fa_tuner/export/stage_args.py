"""The legacy stage configuration, for `--stage-configs-path` of vLLM-Omni up to 0.26."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fa_tuner.domain.upstream import Release
from fa_tuner.export.base import KEYS, Exporter


class StageArgsExporter(Exporter):
    """Keys under `stage_args[].engine_args`; 0.26 does not start a stage without `runtime` and `final_output`."""

    name = "stage-args"
    note = (
        "Legacy format for --stage-configs-path, up to vLLM-Omni 0.26; from 0.28 it is a ValueError. "
        "There, use the deploy format."
    )

    def note_for(self, release: Release | None) -> str:
        return self.note if release is None else "For --stage-configs-path."

    def render(self, values: Mapping[str, str], stage_id: int, named: Mapping[str, str]) -> str:
        keys = "".join(f'      {key}: "{values[key]}"\n' for key in KEYS)
        stage = f"stage_args:\n  - stage_id: {stage_id}\n    stage_type: diffusion\n    runtime: {{}}\n"
        output = "    final_output: true\n    final_output_type: video\n"
        return f"{stage}    engine_args:\n      model_stage: dit\n{keys}{output}"

    def read_back(self, text: str, stage_id: int) -> dict[str, Any]:
        import yaml

        (stage,) = yaml.safe_load(text)["stage_args"]
        arguments = dict(stage["engine_args"])
        if stage["stage_id"] != stage_id or arguments.pop("model_stage") != "dit":
            return {}
        return arguments
