"""What the engine's process asks of vLLM-Omni, on an `Omni` that answers as it does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fa_tuner.domain.errors import NotFoundError
from fa_tuner.engines.vllm_omni import worker
from fa_tuner.engines.vllm_omni.host import EXTENSION, Host

SAMPLING = {"height": 4, "width": 4, "seed": 7, "guidance_scale": 3.0, "guidance_scale_provided": True}
REQUEST: dict[str, Any] = {
    "policy": ("fp8", "0", ""), "rows": ("native", "fp8/"), "prefix": "keep", "prompt": "a cat",
    "negative_prompt": "grey", "sampling": SAMPLING, "shadows": [(1, (0,), "fp8")],
}  # fmt: skip


@dataclass
class Sampling:
    """Up to 0.24 without the field that says that a scale was given."""

    height: int
    width: int
    seed: int
    guidance_scale: float


@dataclass
class NewSampling(Sampling):
    guidance_scale_provided: bool = False


@dataclass
class Omni:
    """`calls` is what it was asked, in order."""

    options: dict[str, Any]
    calls: list[tuple[str, Any]] = field(default_factory=list)
    ranks: Any = field(default_factory=lambda: [[{"rank": 0}, {"rank": 1}]])
    images: list[Any] = field(default_factory=lambda: [[np.zeros((2, 4, 4, 3))]])

    @property
    def engine(self) -> Omni:
        return self

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[Any]:
        self.calls.append((method, kwargs))
        return [self.ranks]

    def generate(self, request: Any, sampling: Any, use_tqdm: bool) -> list[Any]:
        assert use_tqdm is False
        self.calls.append(("generate", (request, sampling)))
        durations = {"WanPipeline.diffuse": 1.0}
        return [SimpleNamespace(images=self.images, stage_durations=durations, peak_memory_mb=5.0)]

    def close(self) -> None:
        self.calls.append(("close", None))


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of a package `vllm_omni` that holds the sampling parameters."""
    modules = {
        name: ModuleType(f"vllm_omni{name}")
        for name in ("", ".entrypoints", ".entrypoints.omni", ".inputs", ".inputs.data")
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"vllm_omni{name}", module)
    modules[".entrypoints.omni"].Omni = lambda **options: Omni(options)  # type: ignore[attr-defined]
    modules[".inputs.data"].OmniDiffusionSamplingParams = NewSampling  # type: ignore[attr-defined]
    yield modules[".inputs.data"]


@pytest.fixture
def host(sampling: ModuleType) -> Host:
    made = Host()
    assert made.open("/model", {"dtype": "float32"}, None, 5) == [{"rank": 0}, {"rank": 1}]
    return made


def test_it_starts_with_our_extension(host: Host) -> None:
    assert host._omni.options == {
        "model": "/model", "worker_extension_cls": EXTENSION, "enable_diffusion_pipeline_profiler": True,
        "dtype": "float32",
    }  # fmt: skip
    assert host._omni.calls == [("fa_tune_install", {"prefix_cache_mb": 5})]


def test_the_extension_is_where_it_says() -> None:
    module, _, name = EXTENSION.rpartition(".")
    assert module == worker.__name__ and hasattr(getattr(worker, name), "fa_tune_install")


def test_one_generation(host: Host) -> None:
    host._omni.calls.clear()
    answer = host.generate(**REQUEST)
    begin, generate, report = host._omni.calls
    assert begin == (
        "fa_tune_begin",
        {
            "policy": ("fp8", "0", ""), "case": "7:a cat", "rows": ("native", "fp8/"), "prefix": "keep",
            "shadows": [(1, (0,), "fp8")],
        },
    )  # fmt: skip
    assert generate == ("generate", ({"prompt": "a cat", "negative_prompt": "grey"}, NewSampling(4, 4, 7, 3.0, True)))
    assert report == ("fa_tune_report", {})
    assert answer["frames"].shape == (2, 4, 4, 3) and answer["frames"].dtype == np.uint8
    assert answer["durations"] == {"WanPipeline.diffuse": 1.0} and answer["peak_memory_mb"] == 5.0
    assert answer["seconds"] > 0 and answer["begun"] == answer["reports"] == [{"rank": 0}, {"rank": 1}]


def test_a_version_that_needs_not_be_told_that_a_scale_is_given(host: Host, sampling: ModuleType) -> None:
    sampling.OmniDiffusionSamplingParams = Sampling  # type: ignore[attr-defined]
    host.generate(**REQUEST)
    assert host._omni.calls[-2][1][1] == Sampling(4, 4, 7, 3.0)


def test_any_other_parameter_that_it_does_not_know_is_no_small_matter(host: Host) -> None:
    with pytest.raises(TypeError, match="boundary_ratio"):
        host.generate(**{**REQUEST, "sampling": {**SAMPLING, "boundary_ratio": 0.5}})


def test_a_picture_goes_with_each_request(host: Host, tmp_path: Path) -> None:
    Image.new("RGBA", (4, 6), "red").save(tmp_path / "p.png")
    host.open("/model", {}, str(tmp_path / "p.png"), 0)
    for _ in range(2):
        host.generate(**REQUEST)
        picture = host._omni.calls[-2][1][0]["multi_modal_data"]["image"]
        assert (picture.mode, picture.size) == ("RGB", (4, 6))
    with pytest.raises(NotFoundError):
        host.open("/model", {}, str(tmp_path / "none.png"), 0)


def test_a_run_without_frames(host: Host) -> None:
    host._omni.images = []
    with pytest.raises(RuntimeError, match="returned no frames"):
        host.generate(**REQUEST)


def test_an_error_in_a_worker_is_one_here(host: Host) -> None:
    """It comes back as a value."""
    host._omni.ranks = {"supported": False, "error": "rank 1: ValueError: no kernel"}
    with pytest.raises(RuntimeError, match=r"^rank 1: ValueError: no kernel$"):
        host.generate(**REQUEST)
    assert [name for name, _ in host._omni.calls] == ["fa_tune_install", "fa_tune_begin"], "nothing is generated then"


def test_it_closes_what_it_opened(host: Host) -> None:
    host.close()
    assert host._omni.calls[-1] == ("close", None)
    Host().close()
