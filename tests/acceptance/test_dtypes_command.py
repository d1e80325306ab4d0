"""One study over several dtypes, from the command line to the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fa_tuner.engines.synthetic import synthetic_landscape
from tests.support.command import FaTune, Result

PROFILE = """\
name: mine
source: a test
dit_seconds: 10
attention_seconds: 8
quantized_attention_seconds: {fp8: 5, mxfp4: 4}
"""


@pytest.fixture
def both(fa_tune: FaTune, tmp_path: Path) -> Callable[..., Result]:
    """A run over fp8 and mxfp4, which saves more and is 15 dB worse."""
    (tmp_path / "profile.yaml").write_text(PROFILE)
    levels = {"fp8": 38.0, "mxfp4": 23.0}
    synthetic_landscape(5, 4, prompts=2, seed=2, psnr_db=levels, disagreement=0.1).write(tmp_path / "landscape.json")

    def run(*arguments: str, dtype: str = "mxfp4,fp8") -> Result:
        return fa_tune(
            "run", "--engine", "replay", "--model", "landscape.json", "--dtype", dtype, "--study", "s",
            "--device-profile", "profile.yaml", "--trials", "24", "--min-psnr", "24", *arguments,
        )  # fmt: skip

    return run


def test_a_front_over_both(both: Callable[..., Result], fa_tune: FaTune, tmp_path: Path) -> None:
    result = both("--json").succeeded().document
    front = [row["policy"]["dtype"] for row in result["front"]]
    assert {"fp8", "mxfp4"} <= set(front), (
        "the gentler dtype where the picture counts, the faster one where it does not"
    )
    gains = [row["latency"]["gain"] for row in result["front"]]
    assert gains == sorted(gains, reverse=True)
    shown = fa_tune("show", "s").succeeded().out
    assert next(line for line in shown.splitlines() if "skip steps" in line).split()[0] == "dtype"
    chosen = result["recommended"]["policy"]
    fa_tune("export", "s", "-o", "deploy.yaml").succeeded()
    stage = yaml.safe_load((tmp_path / "deploy.yaml").read_text())["platforms"]["npu"]["stages"][0]
    assert stage["diffusion_kv_cache_dtype"] == chosen["dtype"]
    assert stage.get("diffusion_kv_cache_skip_layers", "") == chosen["skip_layers"]


def test_a_question_for_one_dtype(both: Callable[..., Result], fa_tune: FaTune) -> None:
    both().succeeded()
    for dtype in ("fp8", "mxfp4"):
        answer = fa_tune("recommend", "--model", "landscape.json", "--dtype", dtype, "--json").succeeded().document
        assert answer["policy"]["dtype"] == dtype
    fa_tune("recommend", "--model", "landscape.json", "--dtype", "mxfp8").refused(3, "no study matches")


def test_the_same_command_in_another_order_goes_on(both: Callable[..., Result]) -> None:
    before = both("--json").succeeded().document
    assert both("--json", dtype="fp8,mxfp4").succeeded().document["evaluated"] == before["evaluated"]
    both(dtype="fp8").refused(4, "dtype (stored: fp8,mxfp4, asked: fp8)")


def test_an_own_policy_says_its_dtype(both: Callable[..., Result], fa_tune: FaTune) -> None:
    both("--try", "0/1").refused(2, 'write it as "fp8:0/1"')
    both("--try", "mxfp4:0/1").succeeded()
    rows = fa_tune("show", "s", "--json").document["evaluations"]
    (own,) = [row["policy"] for row in rows if row["origin"] == "try"]
    assert (own["dtype"], own["skip_steps"], own["skip_layers"]) == ("mxfp4", "0", "1")


def test_a_dtype_that_nothing_is_known_of(both: Callable[..., Result], fa_tune: FaTune) -> None:
    both(dtype="fp8,mxfp8").refused(2, "cannot run mxfp8; it has fp8, mxfp4")
    both("--device-profile", "ascend-pr2640").refused(2, "no figure for mxfp4")
    fa_tune("show", "s").refused(3)


def test_how_far_the_shadow_probes_were_right_is_said(fa_tune: FaTune, tmp_path: Path) -> None:
    made = synthetic_landscape(5, 4, prompts=2, seed=2, psnr_db={"fp8": 33.0}, shadow_noise=0.1, disagreement=0.1)
    made.write(tmp_path / "landscape.json")
    arguments = ("--engine", "replay", "--model", "landscape.json", "--study", "s", "--trials", "12")
    fa_tune("run", *arguments[:-3], "tpe", "--sampler", "tpe", "--trials", "8").succeeded()
    assert "shadow_agreement" not in fa_tune("show", "tpe", "--json").document, "none were asked for"
    rows = fa_tune("run", *arguments, "--json").succeeded().document["shadow_agreement"]
    assert [row["prompt"] for row in rows] == list(made.workload.prompts)
    assert all(row["policies"] == 12 and row["rank_correlation"] > 0.9 and row["spread_db"] < 2 for row in rows)
    assert fa_tune("show", "s", "--json").document["shadow_agreement"] == rows
    (line,) = [line for line in fa_tune("show", "s").out.splitlines() if line.startswith("shadows ")]
    assert "12 policies" in line and "dB" in line
