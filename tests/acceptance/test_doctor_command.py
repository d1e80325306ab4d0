"""`fa-tune doctor` on whatever machine the tests run: known rows, for a person and for a script."""

from __future__ import annotations

from pathlib import Path

import pytest

from fa_tuner.engines.registry import engine_names
from tests.support.command import FaTune

ROWS = [
    "python", "fa-tune", "device", "vllm-omni", "vllm", "vllm-ascend", "torch", "torch-npu", "mindiesd", "CANN",
    "diffusers", "transformers", "attention backend", "dtypes of FLASH_ATTN", "dtypes of RAINFUSION_ATTN",
]  # fmt: skip
MODEL_ROWS = [
    "model", "pipeline", "step index", "layer index", "eligible attention", "head dim", "blocks", "step cache",
]  # fmt: skip
SOMETIMES = {"msmodelslim", "platform plugin"}
REFERENCE = (
    (Path(__file__).parents[2] / "docs" / "reference.md").read_text().split("\n## doctor\n")[1].split("\n## ")[0]
)


def test_the_report_of_this_machine(fa_tune: FaTune) -> None:
    rows = fa_tune("doctor", "--json").succeeded().document
    assert all(set(row) == {"what", "verdict", "detail"} for row in rows)
    assert {row["verdict"] for row in rows} <= {"works", "cannot", "unknown"}
    assert all(row["detail"] for row in rows if not row["what"].startswith("engine "))
    names = [row["what"] for row in rows if row["what"] not in SOMETIMES and not row["what"].startswith("engine ")]
    assert names == [*ROWS, "summary"]
    assert {f"engine {name}" for name in engine_names()} <= {row["what"] for row in rows}
    assert "FP8 attention can be tuned here with engine" in rows[-1]["detail"]


def test_the_report_with_a_model(fa_tune: FaTune, tiny_wan: Path) -> None:
    rows = fa_tune("doctor", "--model", tiny_wan, "--json").succeeded().document
    assert [row["what"] for row in rows][-len(MODEL_ROWS) - 1 :] == [*MODEL_ROWS, "summary"]
    found = {row["what"]: row for row in rows}
    assert found["model"]["detail"] == str(tiny_wan)
    assert found["blocks"]["detail"].startswith("2 in each of transformer and transformer_2")
    assert "with engine" in found["summary"]["detail"]


def test_every_row_is_in_the_reference() -> None:
    for name in (*ROWS, *MODEL_ROWS, *SOMETIMES, "summary"):
        assert f"`{name}`" in REFERENCE or f"`{name.replace('FLASH_ATTN', 'BACKEND')}`" in REFERENCE, name


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [("/no/such/folder", 3, "does not exist"), ("landscape.json", 2, "is a file")],
)
def test_a_model_that_is_none(fa_tune: FaTune, landscape: Path, model: str, code: int, words: str) -> None:
    fa_tune("doctor", "--model", model).refused(code, model, words)


def test_a_table_for_a_person(fa_tune: FaTune, tiny_wan: Path) -> None:
    printed = fa_tune("doctor", "--model", tiny_wan).succeeded().out
    assert "\x1b" not in printed
    lines = printed.rstrip().splitlines()
    assert lines[0].split() == ["what", "verdict", "detail"]
    assert lines[-1].startswith("FP8 attention can be tuned here with engine")
    assert any(line.startswith("step cache") and " works " in line for line in lines)
