"""vLLM-Omni's source, read without importing it: other shapes than the usual, and what pipelines publish."""

from __future__ import annotations

from pathlib import Path

import pytest

from fa_tuner.engines.vllm_omni.published import Published, published
from fa_tuner.engines.vllm_omni.source import OmniSource, provides
from tests.support.site_packages import SitePackages


@pytest.fixture
def site(tmp_path: Path) -> SitePackages:
    return SitePackages(tmp_path).new_omni()


@pytest.fixture
def source(site: SitePackages) -> OmniSource:
    return OmniSource(site.folder / "vllm_omni")


# --- does a package have a name? ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("def wanted(): ...", True),
        ("class wanted: ...", True),
        ("wanted = None", True),
        ("from .deep import other as wanted", True),
        ("try:\n    from .native import wanted\nexcept ImportError:\n    pass", True),
        ("try:\n    import fast\nexcept ImportError:\n    wanted = None", True),
        ("if True:\n    pass\nelse:\n    def wanted(): ...", True),
        ("def other():\n    wanted = 1", False),
        ("from .deep import wanted as other", False),
        ("__all__ = ['wanted']", False),
        ("from .deep import *", None),
        ("def __getattr__(name): ...", None),
        ("def (", None),
    ],
)
def test_a_name_in_a_module(site: SitePackages, text: str, answer: bool | None) -> None:
    site.module("kernels.deep", text)
    assert provides(site.machine.installed, "kernels.deep", "wanted") is answer
    site.module("kernels.deep.__init__", text)
    assert provides(site.machine.installed, "kernels.deep", "wanted") is answer


def test_a_module_that_is_compiled_or_missing(site: SitePackages) -> None:
    installed = site.machine.installed
    assert provides(installed, "kernels.deep", "wanted") is False
    site.module("kernels.__init__")
    assert provides(installed, "kernels.deep", "wanted") is False
    (site.folder / "kernels" / "deep.cpython-311-x86_64-linux-gnu.so").touch()
    assert provides(installed, "kernels.deep", "wanted") is None


# --- the package as a whole -----------------------------------------------------------------------------------------


def test_what_is_read_of_it(source: OmniSource) -> None:
    assert list(source.backends()) == ["FLASH_ATTN", "RAINFUSION_ATTN", "TORCH_SDPA"]
    assert source.dtypes("TORCH_SDPA") == ()
    assert source.dtypes("NO_SUCH") is None
    assert source.head_sizes("FLASH_ATTN") == (64, 96, 128)
    assert source.head_sizes("TORCH_SDPA") is None
    assert source.quantizer_needs() == (("mindiesd", "quant_attention"),)
    assert (source.pipelines() or {})["WanPipeline"] == ("diffusion.models.wan.pipeline_wan", "Wan22Pipeline")


@pytest.mark.parametrize(
    "text", ["_DIFFUSION_MODELS = load()", "_DIFFUSION_MODELS = {'A': ('b', 'c')}", "", "_DIFFUSION_MODELS = ['A']"]
)
def test_a_registry_of_another_shape(site: SitePackages, source: OmniSource, text: str) -> None:
    site.module("vllm_omni.diffusion.registry", text)
    assert source.pipelines() is None


def test_head_sizes_of_another_shape(site: SitePackages, source: OmniSource) -> None:
    text = "class B:\n    def get_supported_head_sizes():\n        return [x for x in range(9)]"
    site.module("vllm_omni.diffusion.attention.backends.flash_attn", text)
    assert source.head_sizes("FLASH_ATTN") is None


# --- what a pipeline publishes --------------------------------------------------------------------------------------


def read(source: OmniSource, name: str) -> Published:
    return published(source, *(source.pipelines() or {})[name])


def test_a_pipeline_that_publishes_both(source: OmniSource) -> None:
    found = read(source, "WanPipeline")
    assert found.steps == ("diffusion/models/wan/pipeline_wan.py:10",)
    assert [(call.owner, call.has_prefix, call.opts_out) for call in found.attention] == [
        ("SelfAttention", True, False),
        ("CrossAttention", True, True),
    ]
    assert [call.owner for call in found.eligible] == ["SelfAttention"]
    assert found.without_layer == ()
    assert found.blocks == ("blocks",)


def test_a_pipeline_that_publishes_neither(source: OmniSource) -> None:
    found = read(source, "QwenImagePipeline")
    assert found.steps == ()
    assert [call.owner for call in found.without_layer] == ["QwenImagePipeline"]


@pytest.mark.parametrize(
    ("pipeline", "steps"),
    [
        ("class P:\n    def run(self):\n        set_forward_context_denoise_step_idx(1)", 1),
        ("class P:\n    def run(self):\n        set_forward_context_denoise_step_idx(None)", 0),
        ("def helper():\n    x.record_denoise_step(i, t)\nclass P:\n    ...", 0),
        ("def helper():\n    x.record_denoise_step(i, t)\nclass P:\n    run = helper", 1),
        ("class Base:\n    def run(self):\n        self.record_denoise_step(i, t)\nclass P(Base):\n    ...", 1),
        ("from vllm_omni.diffusion.models.wan import Wan22Pipeline\nclass P(Wan22Pipeline):\n    ...", 1),
        ("from ..wan.pipeline_wan import Wan22Pipeline as Base\nclass P(Base):\n    ...", 1),
        ("class P:\n    def run(self):\n        from ..wan import Wan22Pipeline\n        Wan22Pipeline()", 1),
        ("from vllm_omni.elsewhere import Base\nclass P(Base):\n    ...", 0),
        ("RUNNERS = {'a': Runner}\nclass Runner:\n    def run(self):\n        self.record_denoise_step(1, t)\n"
         "class P:\n    runners = RUNNERS", 1),
        ("class P:\n    def run(self):\n        return P()", 0),
        ("class (", 0),
    ],
)  # fmt: skip
def test_how_the_step_is_found(site: SitePackages, source: OmniSource, pipeline: str, steps: int) -> None:
    site.module("vllm_omni.diffusion.models.wan.__init__", "from .pipeline_wan import Wan22Pipeline")
    site.module("vllm_omni.diffusion.models.mine.pipeline", pipeline)
    assert len(published(source, "diffusion.models.mine.pipeline", "P").steps) == steps


@pytest.mark.parametrize(
    ("call", "has_prefix", "opts_out"),
    [
        ("Attention(num_heads=2)", False, False),
        ("Attention(prefix='')", False, False),
        ("Attention(prefix=f'{prefix}.attn' if prefix else '')", True, False),
        ("Attention(**arguments)", True, False),
        ("Attention(prefix=prefix, disable_kv_quant=True)", True, True),
        ("Attention(disable_kv_quant=given)", False, False),
    ],
)
def test_how_an_attention_module_is_made(
    site: SitePackages, source: OmniSource, call: str, has_prefix: bool, opts_out: bool
) -> None:
    text = f"from vllm_omni.diffusion.attention.layer import Attention\nclass P:\n    attn = {call}"
    site.module("vllm_omni.diffusion.models.mine.pipeline", text)
    (found,) = published(source, "diffusion.models.mine.pipeline", "P").attention
    assert (found.has_prefix, found.opts_out) == (has_prefix, opts_out)


def test_an_attention_of_somebody_else_does_not_count(site: SitePackages, source: OmniSource) -> None:
    text = "from diffusers.models.attention import Attention\nclass P:\n    attn = Attention()"
    site.module("vllm_omni.diffusion.models.mine.pipeline", text)
    assert published(source, "diffusion.models.mine.pipeline", "P").attention == ()


def test_names_that_block_indices_follow(site: SitePackages, source: OmniSource) -> None:
    text = """
    class P:
        def __init__(self):
            self.blocks = make_layers(2, lambda prefix: Block(prefix), prefix="blocks")
            self.vace = [Block(prefix=f"vace_blocks.{i}") for i in range(2)]
            self.out = Linear(prefix="proj_out")
            self.inner = Linear(prefix=f"{prefix}.to_q")
    """
    site.module("vllm_omni.diffusion.models.mine.pipeline", text)
    assert published(source, "diffusion.models.mine.pipeline", "P").blocks == ("blocks", "vace_blocks")
