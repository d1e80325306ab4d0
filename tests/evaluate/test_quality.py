"""Quality of frames, against the definitions it follows written once more."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fa_tuner.domain.errors import EngineError
from fa_tuner.domain.measurement import IDENTICAL_DB, METRICS
from fa_tuner.domain.workload import Case
from fa_tuner.evaluate.quality import RELATIVE_TO_BLACK, SSIM_WINDOW, compare

CASE = Case("a cat", 3)
SHAPE = (3, 16, 24, 3)


def noise(seed: int, shape: tuple[int, ...] = SHAPE, low: int = 0, high: int = 256) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def near(seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A clip and the same clip with an error that grows from frame to frame."""
    reference = noise(seed, shape)
    error = np.random.default_rng(seed + 1).normal(0, 4, shape) * np.arange(1, shape[0] + 1)[:, None, None, None]
    return reference, (reference + error).round().clip(0, 255).astype(np.uint8)


def omni_metrics(reference: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any]) -> dict[str, float]:
    """vllm_omni/quantization/tools/compare_diffusion_trajectory_similarity.py, `compute_tensor_metrics`, with
    numpy in place of torch."""
    lhs, rhs = reference.astype(np.float64), candidate.astype(np.float64)
    diff = lhs - rhs
    mse = float(np.mean(diff * diff))
    l2, ref_l2 = float(np.linalg.norm(diff.reshape(-1))), float(np.linalg.norm(lhs.reshape(-1)))
    norms = ref_l2 * float(np.linalg.norm(rhs.reshape(-1)))
    cosine = float(lhs.reshape(-1) @ rhs.reshape(-1)) / norms if norms else 0.0
    return {
        "cosine_similarity": max(-1.0, min(1.0, cosine)),
        "mae": float(np.mean(np.abs(diff))),
        "mse": mse,
        "rmse": math.sqrt(mse),
        "max_abs": float(np.max(np.abs(diff))),
        "l2": l2,
        "relative_l2": 0.0 if ref_l2 == 0.0 and l2 == 0.0 else math.inf if ref_l2 == 0.0 else l2 / ref_l2,
        "psnr_db": math.inf if mse == 0.0 else 20 * math.log10(255.0) - 10 * math.log10(mse),
    }


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_vllm_omnis_comparer(seed: int) -> None:
    reference, candidate = near(seed)
    quality = compare(CASE, reference, candidate)
    assert quality.case == CASE and not quality.identical
    assert set(quality.metrics) == set(METRICS)
    for name, value in omni_metrics(reference, candidate).items():
        assert quality.metrics[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name


def test_metrics_of_unrelated_clips() -> None:
    """Here every difference of uint8 would wrap around."""
    reference, candidate = noise(5), noise(6)
    metrics = compare(CASE, reference, candidate).metrics
    for name, value in omni_metrics(reference, candidate).items():
        assert metrics[name] == pytest.approx(value, rel=1e-12), name


def test_the_comparer_itself_agrees() -> None:
    """`torch.nn.functional.cosine_similarity` and `vector_norm`, as upstream calls them."""
    import torch

    reference, candidate = near(9)
    lhs, rhs = (torch.as_tensor(x).double().reshape(-1) for x in (reference, candidate))
    metrics = compare(CASE, reference, candidate).metrics
    assert metrics["cosine_similarity"] == pytest.approx(
        float(torch.nn.functional.cosine_similarity(lhs, rhs, dim=0)), rel=1e-12
    )
    assert metrics["l2"] == pytest.approx(float(torch.linalg.vector_norm(lhs - rhs)), rel=1e-12)


def test_psnr_and_ssim_are_scikit_images_by_frame() -> None:
    reference, candidate = near(1)
    metrics = compare(CASE, reference, candidate).metrics
    frames = list(zip(reference, candidate, strict=True))
    assert metrics["psnr_db"] == pytest.approx(peak_signal_noise_ratio(reference, candidate, data_range=255))
    by_frame = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in frames]
    assert metrics["worst_frame_psnr_db"] == pytest.approx(min(by_frame))
    assert min(by_frame) < metrics["psnr_db"] < max(by_frame)
    ssim = [structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in frames]
    assert metrics["ssim"] == pytest.approx(np.mean(ssim))


def test_psnr_is_of_all_frames_together_not_the_mean_of_theirs() -> None:
    """One bad frame among good ones: the mean of decibels would hide it."""
    reference = noise(2, (5, 16, 16, 3), 50, 200)
    candidate = reference + np.array([0, 0, 40, 0, 0], np.uint8)[:, None, None, None]
    metrics = compare(CASE, reference, candidate).metrics
    assert metrics["psnr_db"] == pytest.approx(10 * math.log10(255**2 / (1600 / 5)))
    assert metrics["worst_frame_psnr_db"] == pytest.approx(10 * math.log10(255**2 / 1600))
    untouched = structural_similarity(reference[2], candidate[2], channel_axis=-1, data_range=255)
    assert metrics["ssim"] == pytest.approx((4 + untouched) / 5)


def test_identical_frames_count_as_100_db() -> None:
    reference = noise(3)
    quality = compare(CASE, reference, reference.copy())
    assert quality.identical
    assert quality.metrics == {
        **dict.fromkeys(METRICS, 0.0),
        "psnr_db": IDENTICAL_DB, "worst_frame_psnr_db": IDENTICAL_DB, "ssim": 1.0, "cosine_similarity": 1.0,
    }  # fmt: skip


def test_one_sample_off_by_one() -> None:
    reference = noise(4, (2, 16, 16, 3), 10, 200)
    candidate = reference.copy()
    candidate[1, 5, 7, 2] += 1
    quality = compare(CASE, reference, candidate)
    assert not quality.identical
    assert quality.metrics["max_abs"] == quality.metrics["l2"] == 1.0
    assert quality.metrics["mse"] == quality.metrics["mae"] == 1 / reference.size
    assert quality.metrics["psnr_db"] == pytest.approx(10 * math.log10(255**2 * reference.size))
    assert quality.metrics["worst_frame_psnr_db"] == pytest.approx(10 * math.log10(255**2 * reference.size / 2))
    assert 0.99 < quality.metrics["ssim"] < 1.0


def test_a_difference_too_small_for_the_scale_stays_below_the_identical() -> None:
    """One sample of half a million: 105 dB by formula, stored as 100 but not as identical."""
    reference = np.full((1, 420, 420, 3), 100, np.uint8)
    candidate = reference.copy()
    candidate[0, 0, 0, 0] += 1
    quality = compare(CASE, reference, candidate)
    assert quality.metrics["psnr_db"] == quality.metrics["worst_frame_psnr_db"] == IDENTICAL_DB
    assert not quality.identical and quality.metrics["mse"] > 0


def test_an_all_black_reference() -> None:
    """vLLM-Omni's comparer says infinity for the relative error and 0 for the cosine."""
    black = np.zeros(SHAPE, np.uint8)
    metrics = compare(CASE, black, noise(1)).metrics
    assert metrics["relative_l2"] == RELATIVE_TO_BLACK
    assert metrics["cosine_similarity"] == 0.0
    assert all(map(math.isfinite, metrics.values()))
    assert compare(CASE, black, black).identical


def test_an_all_black_candidate() -> None:
    metrics = compare(CASE, noise(1), np.zeros(SHAPE, np.uint8)).metrics
    assert metrics["relative_l2"] == pytest.approx(1.0) and metrics["cosine_similarity"] == 0.0


def test_black_against_white_is_0_db() -> None:
    metrics = compare(CASE, np.zeros(SHAPE, np.uint8), np.full(SHAPE, 255, np.uint8)).metrics
    assert metrics["psnr_db"] == metrics["worst_frame_psnr_db"] == 0.0
    assert metrics["max_abs"] == metrics["mae"] == 255.0


def test_the_arguments_are_not_changed() -> None:
    reference, candidate = near(8)
    before = reference.copy(), candidate.copy()
    compare(CASE, reference, candidate)
    assert np.array_equal(reference, before[0]) and np.array_equal(candidate, before[1])


@pytest.mark.parametrize("shape", [(2, 16, 24, 3), (3, 16, 16, 3), (3, 24, 16, 3), (3, 16, 24, 1), (16, 24, 3)])
def test_another_shape_cannot_be_compared(shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError) as caught:
        compare(CASE, noise(0), noise(0, shape))
    assert str(shape) in str(caught.value) and str(SHAPE) in str(caught.value)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 16, 16, 3), np.uint8),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((2, 16, 16, 4), np.uint8),
        np.zeros((2, SSIM_WINDOW - 1, 16, 3), np.uint8),
        np.full((2, 16, 16, 3), np.nan),
        np.zeros((2, 16, 16, 3), np.float32),
    ],
    ids=["no frames", "no time axis", "four channels", "too small", "NaN", "float"],
)
def test_what_is_no_clip_is_refused_even_where_both_are_equal(frames: np.ndarray[Any, Any]) -> None:
    with pytest.raises(EngineError, match="expected uint8"):
        compare(CASE, frames, frames.copy())


pixels = st.integers(0, 255) | st.sampled_from([0, 1, 254, 255])


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(7, 9), st.integers(7, 9), st.just(3)).flatmap(
        lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=pixels, fill=pixels)] * 2)
    )
)
def test_never_infinite_and_never_nan(pair: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]) -> None:
    reference, candidate = pair
    quality = compare(CASE, reference, candidate)
    metrics = quality.metrics
    assert all(math.isfinite(value) for value in metrics.values())
    assert quality.identical == bool(np.array_equal(reference, candidate))
    assert 0 <= metrics["worst_frame_psnr_db"] <= metrics["psnr_db"] + 1e-9 <= IDENTICAL_DB + 1e-9
    assert -1 <= metrics["cosine_similarity"] <= 1 and -1 <= metrics["ssim"] <= 1
    assert metrics["mae"] <= metrics["rmse"] + 1e-9 <= metrics["max_abs"] + 1e-9 <= 255 + 1e-9
