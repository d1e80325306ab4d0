"""Measurements and evaluations with chosen figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fa_tuner.domain.measurement import (
    CaseQuality,
    Coverage,
    Latency,
    LatencySource,
    Measurement,
    psnr_of_mse,
)
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.study import Evaluation
from fa_tuner.domain.workload import Case
from fa_tuner.recommend.choice import Candidate

GRID = Grid(6, (0, 1, 2, 3))


def a_policy(text: str) -> SkipPolicy:
    """ "STEPS/LAYERS" on `GRID` under fp8, or "native"."""
    return SkipPolicy() if text == "native" else SkipPolicy.parse(text, ("fp8",), GRID)


def quality_of(psnr_db: float, case: Case | None = None, **metrics: float) -> CaseQuality:
    """A case whose PSNR and mean squared error agree; `metrics` replaces others."""
    case = case or Case("a cat", 0)
    if psnr_db >= 100:
        return CaseQuality.of_identical(case)
    mse = 255.0**2 / 10 ** (psnr_db / 10)
    assert abs(psnr_of_mse(mse) - psnr_db) < 1e-9
    known: Mapping[str, float] = {
        "psnr_db": psnr_db, "worst_frame_psnr_db": psnr_db - 1, "ssim": 0.9, "cosine_similarity": 0.99, "mae": 2.0,
        "mse": mse, "rmse": mse**0.5, "max_abs": 50.0, "l2": 1000.0, "relative_l2": 0.05,
    }  # fmt: skip
    return CaseQuality(case, {**known, **metrics})


def a_measurement(
    text: str, relative: float, psnr_db: float | Sequence[float], *, spread: float = 0.0,
    holdout: Sequence[float] = (), source: LatencySource = "projected", metrics: Mapping[str, float] | None = None,
) -> Measurement:  # fmt: skip
    """PSNR by searched and by held-out prompt; `metrics` as in `quality_of`."""
    searched = (psnr_db,) if isinstance(psnr_db, int | float) else psnr_db
    return Measurement(
        a_policy(text), Latency(relative, source, spread=spread),
        tuple(quality_of(value, Case(f"prompt {i}", 0), **metrics or {}) for i, value in enumerate(searched)),
        Coverage(1, 1, 1, True), tuple(quality_of(value, Case(f"new {i}", 0)) for i, value in enumerate(holdout)),
    )  # fmt: skip


def a_candidate(text: str, relative: float, psnr_db: float | Sequence[float], **more: object) -> Candidate:
    measurement = a_measurement(text, relative, psnr_db, **more)  # type: ignore[arg-type]
    return Candidate(Evaluation(measurement.policy, "sampler", 0, measurement), measurement)


def unchecked(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Without what the held-out prompts gave, which finalists get at the end."""
    return [
        e if e.measurement is None else replace(e, measurement=replace(e.measurement, holdout=())) for e in evaluations
    ]
