"""vLLM-Omni's deploy YAML (0.20 and later), for `--deploy-config`: an overlay for the NPU platform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fa_tuner.export.base import KEYS, Exporter


class DeployExporter(Exporter):
    """Keys under `platforms.npu.stages`; vLLM-Omni drops such an entry without a matching one under `stages`."""

    name = "deploy"
    note = (
        "For --deploy-config. To build on a deploy file of your own, add base_config: FILE, or merge with "
        "fa-tune export --into FILE."
    )

    def render(self, values: Mapping[str, str], stage_id: int) -> str:
        keys = "".join(f'        {key}: "{values[key]}"\n' for key in KEYS)
        platforms = f"platforms:\n  npu:\n    stages:\n      - stage_id: {stage_id}\n{keys}"
        return f"stages:\n  - stage_id: {stage_id}\n\n{platforms}"

    def read_back(self, text: str, stage_id: int) -> dict[str, Any]:
        import yaml

        document = yaml.safe_load(text)
        (stage,) = document["stages"]
        (entry,) = document["platforms"]["npu"]["stages"]
        if stage != {"stage_id": stage_id}:
            return {}
        return {key: value for key, value in entry.items() if (key, value) != ("stage_id", stage_id)}
