"""Quality of a candidate's frames against the baseline's, on uint8 RGB."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fa_tuner.domain.errors import EngineError
from fa_tuner.domain.measurement import IDENTICAL_DB, CaseQuality
from fa_tuner.domain.workload import Case

if TYPE_CHECKING:
    from fa_tuner.engines.base import Frames

SSIM_WINDOW = 7  # scikit-image's default
SSIM_THREADS = 8
# relative_l2 of anything against an all-black reference: vLLM-Omni's comparer says infinity, which is never stored
RELATIVE_TO_BLACK = 1e6


def compare(case: Case, reference: Frames, candidate: Frames) -> CaseQuality:
    """All metrics over all frames; mae, mse, rmse, max_abs, l2, relative_l2 and cosine_similarity as in
    `vllm_omni.quantization.tools.compare_diffusion_trajectory_similarity`, PSNR and SSIM by scikit-image.

    Args:
        reference, candidate: uint8 RGB [frames, height, width, 3].

    Raises:
        EngineError: the shapes differ or one is no such clip, so the candidate cannot be compared.
    """
    if reference.shape != candidate.shape:
        raise EngineError(f"candidate frames have shape {candidate.shape}, the baseline's {reference.shape}")
    _check(reference)
    _check(candidate)
    if np.array_equal(reference, candidate):
        return CaseQuality.of_identical(case)
    difference = candidate.astype(np.int32) - reference.astype(np.int32)
    squared_by_frame = np.square(difference).mean(axis=(1, 2, 3), dtype=np.float64)
    mse = float(squared_by_frame.mean())
    l2, reference_l2, candidate_l2 = (_norm(x) for x in (difference, reference, candidate))
    dot = float(np.einsum("i,i->", reference.ravel(), candidate.ravel(), dtype=np.float64, casting="unsafe"))
    cosine = max(-1.0, min(1.0, dot / (reference_l2 * candidate_l2))) if reference_l2 and candidate_l2 else 0.0
    return CaseQuality(
        case,
        {
            "psnr_db": min(IDENTICAL_DB, float(peak_signal_noise_ratio(reference, candidate, data_range=255))),
            "worst_frame_psnr_db": min(IDENTICAL_DB, 10 * math.log10(255.0**2 / float(squared_by_frame.max()))),
            "ssim": _ssim(reference, candidate),
            "mae": float(np.abs(difference).mean(dtype=np.float64)),
            "mse": mse,
            "rmse": math.sqrt(mse),
            "max_abs": float(np.abs(difference).max()),
            "l2": l2,
            "relative_l2": l2 / reference_l2 if reference_l2 else RELATIVE_TO_BLACK,
            "cosine_similarity": cosine,
        },
    )


def _check(frames: Frames) -> None:
    shape = frames.shape
    if frames.dtype != np.uint8 or len(shape) != 4 or not shape[0] or shape[3] != 3 or min(shape[1:3]) < SSIM_WINDOW:
        raise EngineError(
            f"the engine returned {frames.dtype} frames of shape {shape}; expected uint8 [frames, height, width, 3] of "
            f"at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels"
        )


def _norm(x: np.ndarray[tuple[int, ...], np.dtype[np.integer]]) -> float:
    return math.sqrt(float(np.square(x, dtype=np.float64).sum()))


def _ssim(reference: Frames, candidate: Frames) -> float:
    """Mean over frames of scikit-image's SSIM. It takes 60 ms for a frame of 480x832 and lets other threads run, so
    the frames are shared among the cores: the device waits for this."""
    with ThreadPoolExecutor(min(SSIM_THREADS, os.cpu_count() or 1)) as pool:
        return math.fsum(pool.map(_frame_ssim, reference, candidate)) / len(reference)


def _frame_ssim(reference: Frames, candidate: Frames) -> float:
    if np.array_equal(reference, candidate):
        return 1.0
    return float(structural_similarity(reference, candidate, channel_axis=-1, data_range=255, win_size=SSIM_WINDOW))
