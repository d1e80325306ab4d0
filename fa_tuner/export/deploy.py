"""vLLM-Omni's deploy YAML (0.20 and later), for `--deploy-config`: an overlay for the NPU platform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fa_tuner.domain.upstream import PIPELINE_TO_NAME
from fa_tuner.export.base import KEYS, Exporter


class DeployExporter(Exporter):
    """Keys under `platforms.npu.stages`; vLLM-Omni drops such an entry without a matching one under `stages`, and reads
    nothing at all for some models unless the file names a pipeline."""

    name = "deploy"
    note = (
        "For --deploy-config. To build on a deploy file of your own, add base_config: FILE, or merge with "
        "fa-tune export --into FILE."
    )

    def render(self, values: Mapping[str, str], stage_id: int, named: Mapping[str, str]) -> str:
        pipeline, of_stage = "", ""
        if named:
            pipeline = f"pipeline: {named['pipeline']}\n\n"
            of_stage = f"    model_class_name: {named['model_class_name']}\n"
        keys = "".join(f'        {key}: "{values[key]}"\n' for key in KEYS)
        platforms = f"platforms:\n  npu:\n    stages:\n      - stage_id: {stage_id}\n{keys}"
        return f"{pipeline}stages:\n  - stage_id: {stage_id}\n{of_stage}\n{platforms}"

    def read_back(self, text: str, stage_id: int) -> dict[str, Any]:
        import yaml

        document = yaml.safe_load(text)
        (stage,) = document["stages"]
        (entry,) = document["platforms"]["npu"]["stages"]
        named = PIPELINE_TO_NAME.get(stage.pop("model_class_name", ""))
        if stage != {"stage_id": stage_id} or document.get("pipeline") != named:
            return {}
        return {key: value for key, value in entry.items() if (key, value) != ("stage_id", stage_id)}
