"""Thresholds at the ends: nothing meets them, everything does, or nothing is worse than native's own noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import FaTune, Result
from tests.support.tables import noisy_landscape

Run = Callable[..., Result]


def measured(fa_tune: FaTune) -> list[dict[str, Any]]:
    """The evaluations without the native one."""
    shown = fa_tune("show", "s", "--json").document
    return [e for e in shown["evaluations"] if not e["policy"]["native"]]


@pytest.mark.parametrize("aggregate", ["worst", "mean"])
def test_nothing_meets_the_threshold(fa_tune: FaTune, replay: Run, aggregate: str) -> None:
    """The search goes for what comes near it, and the nearest is named."""
    ran = replay("--min-psnr", "95", "--aggregate", aggregate, trials=14)
    nearest = max(measured(fa_tune), key=lambda e: e["psnr_db"])
    ran.refused(6, "meets psnr_db>=95", f'the nearest is fp8, skip steps "{nearest["policy"]["skip_steps"]}"')
    assert f'layers "{nearest["policy"]["skip_layers"]}" with {nearest["psnr_db"]:.2f} dB' in ran.err
    everything = measured(fa_tune)[0]
    assert nearest["psnr_db"] > everything["psnr_db"] + 15


def test_everything_meets_the_threshold(fa_tune: FaTune, replay: Run) -> None:
    """Then everything is quantized, and found first."""
    ran = replay("--min-psnr", "5", "--json", trials=14).succeeded().document
    chosen = ran["recommended"]["policy"]
    assert (chosen["skip_steps"], chosen["skip_layers"]) == ("", "")
    assert measured(fa_tune)[0]["policy"] == chosen


def test_what_is_within_the_noise_floor_ends_the_search(fa_tune: FaTune, tmp_path: Path) -> None:
    """Two native runs differ more than quantizing everything changes: no policy can be told to be better."""
    model = noisy_landscape(tmp_path / "noisy.json", 15.0)
    run = ("run", "--engine", "replay", "--model", model, "--study", "s", "--trials", "14", "--min-psnr", "10")
    ran = fa_tune(*run, "--json").succeeded().document
    assert (ran["reason"], ran["evaluated"]) == ("noise floor", 1)
    assert (ran["recommended"]["policy"]["skip_steps"], ran["recommended"]["policy"]["skip_layers"]) == ("", "")
    again = fa_tune(*run, "--json").succeeded().document
    assert (again["reason"], again["evaluated"]) == ("noise floor", 1)


def test_what_is_worse_than_the_noise_floor_goes_on(fa_tune: FaTune, tmp_path: Path) -> None:
    model = noisy_landscape(tmp_path / "noisy.json", 60.0)
    run = ("run", "--engine", "replay", "--model", model, "--study", "s", "--trials", "6", "--min-psnr", "10")
    ran = fa_tune(*run, "--json").succeeded().document
    assert ran["reason"] != "noise floor" and ran["evaluated"] > 1


def test_the_search_ends_before_its_trials_where_nothing_is_left(fa_tune: FaTune, tmp_path: Path) -> None:
    model = noisy_landscape(tmp_path / "noisy.json", 90.0)  # 21 policies
    run = ("run", "--engine", "replay", "--model", model, "--study", "s", "--trials", "20", "--min-psnr", "25")
    ran = fa_tune(*run, "--json").succeeded().document
    assert ran["reason"] in ("front verified", "nothing left to gain") and ran["evaluated"] < 20
