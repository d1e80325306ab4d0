"""Whether a workload fits a model: its pipeline, and its size, which the pipeline would round without a word."""

from __future__ import annotations

from typing import Any

import pytest

from fa_tuner.domain.errors import UnsupportedModelError, UsageError
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.fitting import check_pipeline, check_size

TINY = (
    4,
    4,
    (1, 2, 2),
)  # pixels a latent, frames a latent, patch: multiples of 16, which 4 x 2 alone would not ask for
WAN_2_2_5B = (16, 4, (1, 2, 2))


def work(**changes: Any) -> Workload:
    return Workload(
        **{"model": "m", "prompts": ("a cat",), "height": 32, "width": 32, "frames": 5, "steps": 1, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"height": 40}, "height 40 does not fit this model; it must be a multiple of 16, such as 32"),
        ({"height": 47}, "such as 48"),
        ({"width": 33}, "width 33 does not fit this model; it must be a multiple of 16, such as 32"),
        ({"width": 17}, "such as 16"),
        ({"frames": 4}, "4 frames do not fit this model; take a multiple of 4 plus 1, such as 5"),
        ({"frames": 6}, "such as 5"),
        ({"frames": 80}, "such as 81"),
        ({"frames": 2}, "such as 1"),
    ],
    ids=str,
)
def test_a_size_that_does_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_size(work(**changes), *TINY)
    assert said in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"height": 48, "width": 16}, {"frames": 1}, {"frames": 81}], ids=str)
def test_a_size_that_fits(changes: dict[str, Any]) -> None:
    check_size(work(**changes), *TINY)


def test_a_vae_that_compresses_more_asks_for_more() -> None:
    for name in ("height", "width"):
        with pytest.raises(UsageError, match=rf"{name} 48 does not fit .* a multiple of 32, such as 64"):
            check_size(work(**{"height": 64, "width": 64, name: 48}), *WAN_2_2_5B)
    check_size(work(height=64, width=96), *WAN_2_2_5B)


def test_each_side_goes_by_its_own_patch() -> None:
    tall = (16, 4, (1, 4, 1))
    check_size(work(height=64, width=16), *tall)
    with pytest.raises(UsageError, match="height 16 does not fit this model; it must be a multiple of 64, such as 64"):
        check_size(work(height=16, width=64), *tall)


@pytest.mark.parametrize("name", ["FluxPipeline", "CogVideoXPipeline", "WanVACEPipeline", ""])
def test_a_pipeline_that_is_not_driven(name: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        check_pipeline(name, work())
    said = str(caught.value)
    assert f"m is a {name}; fa-tune drives WanPipeline and WanImageToVideoPipeline" in said
    assert "vLLM-Omni publishes no step or layer index for most other pipelines" in said


def test_each_task_has_its_pipeline() -> None:
    i2v = work(task="i2v", image="0" * 64)
    check_pipeline("WanPipeline", work())
    check_pipeline("WanImageToVideoPipeline", i2v)
    with pytest.raises(UsageError, match=r"m is a WanImageToVideoPipeline \(i2v\) and needs --image"):
        check_pipeline("WanImageToVideoPipeline", work())
    with pytest.raises(UsageError, match=r"m is a WanPipeline \(t2v\) and takes no --image"):
        check_pipeline("WanPipeline", i2v)
