"""`fa-tune doctor` beside the real vLLM-Omni 0.30: what it reads from the installed source, without importing it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("vllm_omni") is None, reason="vllm-omni is not installed")

DEMO = Path(__file__).parents[2] / "studies" / "demo" / "model"
DOCTOR = (
    "import sys\nfrom fa_tuner.cli import main\ntry:\n    main()\nfinally:\n    assert 'vllm_omni' not in sys.modules"
)


def report(emulated: bool) -> tuple[dict[str, Any], float]:
    """Rows by name, and how long it took."""
    environment = {**os.environ, "FA_TUNE_EMULATE_NPU": "1" if emulated else "0"}
    for name in ("DIFFUSION_ATTENTION_BACKEND", "DIFFUSION_CACHE_BACKEND"):
        environment.pop(name, None)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", DOCTOR, "doctor", "--model", str(DEMO), "--json"],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {row["what"]: (row["verdict"], row["detail"]) for row in json.loads(done.stdout)}, time.monotonic() - began


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    return report(emulated=False)[0]


def test_the_installed_versions(rows: dict[str, Any]) -> None:
    assert rows["vllm-omni"] == ("works", "0.30.0")
    assert rows["vllm"][0] == "works"
    assert rows["vllm"][1].startswith("0.30.")
    assert rows["engine vllm-omni"][0] == "works"
    for name in ("torch", "diffusers", "transformers"):
        assert rows[name][0] == "works", rows[name]


def test_what_the_installed_source_declares(rows: dict[str, Any]) -> None:
    assert rows["dtypes of FLASH_ATTN"] == ("works", "fp8, mxfp8, mxfp4")
    assert rows["dtypes of RAINFUSION_ATTN"] == ("works", "fp8, mxfp4")


def test_what_keeps_this_machine_from_it(rows: dict[str, Any]) -> None:
    assert rows["device"][0] == "cannot"
    assert "no NPU" in rows["device"][1]
    assert rows["torch-npu"][0] == rows["vllm-ascend"][0] == "cannot"
    assert rows["mindiesd"][0] == "cannot"
    assert "mindiesd.quant_attention" in rows["mindiesd"][1]
    assert rows["attention backend"][0] == "cannot"
    assert rows["attention backend"][1].startswith("TORCH_SDPA, the default without mindiesd")
    assert "msmodelslim" not in rows
    assert rows["summary"][0] == "works"
    assert "with engine diffusers (emulated operator" in rows["summary"][1]
    assert "device: no NPU" in rows["summary"][1]


def test_the_demo_model(rows: dict[str, Any]) -> None:
    assert rows["pipeline"] == ("works", "WanPipeline, run as Wan22Pipeline")
    assert rows["step index"][0] == rows["layer index"][0] == "works"
    assert rows["step index"][1].startswith("published at diffusion/models/wan2_2/pipeline_wan2_2.py:")
    assert "WanSelfAttention (diffusion/models/wan2_2/wan2_2_transformer.py:" in rows["layer index"][1]
    assert rows["eligible attention"] == ("works", "WanSelfAttention of every block; opted out: WanCrossAttention")
    assert rows["head dim"] == ("works", "64, a power of two that FLASH_ATTN lists")
    assert rows["blocks"] == ("works", "8 in each of transformer and transformer_2; one index names the block in both")


def test_the_emulated_npu_is_told_apart_and_nothing_waits_for_an_import() -> None:
    rows, seconds = report(emulated=True)
    assert rows["platform plugin"][0] == "works"
    assert "out of tree" in rows["platform plugin"][1]
    assert "`emulated`" in rows["platform plugin"][1]
    assert rows["attention backend"][0] == "unknown"
    assert rows["device"][0] == "cannot"
    assert rows["summary"][0] == "works"
    assert "engine vllm-omni on an emulated NPU" in rows["summary"][1]
    assert seconds < 10, "the import of vllm-omni alone takes longer"
