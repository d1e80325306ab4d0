"""A folder like site-packages, with a vLLM-Omni in it that has only what is looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

from fa_tuner.engines.vllm_omni.machine import Installed, Machine
from fa_tuner.engines.vllm_omni.npu import Devices
from fa_tuner.engines.vllm_omni.stack import Stack

FLASH_ATTN = """
    class FlashAttentionBackend:
        @staticmethod
        def get_supported_head_sizes() -> list[int]:
            return [64, 96, 128]

    class FlashAttentionImpl:
        _supported_kv_cache_dtypes = {"npu": {DTYPES}}

        def forward_fa_quant_npu(self, query):
            import torch_npu
            IMPORTS
"""
RAINFUSION = """
    class RainFusionAttentionImpl:
        _supported_kv_cache_dtypes: dict[str, set[str]] = {"npu": {"mxfp4", "fp8"}}
"""
BACKENDS = """
    class DiffusionAttentionBackendEnum(Enum):
        FLASH_ATTN = "vllm_omni.diffusion.attention.backends.flash_attn.FlashAttentionBackend"
        RAINFUSION_ATTN = "vllm_omni.diffusion.attention.backends.rainfusion_attn.RainFusionAttentionBackend"
        TORCH_SDPA = "vllm_omni.diffusion.attention.backends.sdpa.SDPABackend"
"""
REGISTRY = """
    _DIFFUSION_MODELS = {
        "WanPipeline": ("wan", "pipeline_wan", "Wan22Pipeline"),
        "QwenImagePipeline": ("qwen", "pipeline_qwen", "QwenImagePipeline"),
    }
"""
WAN_PIPELINE = """
    from .wan_transformer import make_transformer

    class Wan22Pipeline(DenoiseProgressMixin):
        def __init__(self):
            self.transformer = make_transformer()

        def diffuse(self, timesteps):
            for index, t in enumerate(timesteps):
                self.record_denoise_step(index, t)
"""
WAN_TRANSFORMER = """
    from vllm_omni.diffusion.attention.layer import Attention

    def make_transformer():
        return Transformer()

    class Transformer:
        def __init__(self):
            self.blocks = make_layers(40, lambda prefix: Block(prefix), prefix="blocks")

    class Block:
        def __init__(self, prefix):
            self.attn1 = SelfAttention(prefix=f"{prefix}.attn1")
            self.attn2 = CrossAttention(prefix=f"{prefix}.attn2")

    class SelfAttention:
        def __init__(self, prefix):
            self.attn = Attention(num_heads=2, prefix=prefix)

    class CrossAttention:
        def __init__(self, prefix):
            self.attn = Attention(num_heads=2, prefix=prefix, disable_kv_quant=True)

    class NobodysAttention:
        def __init__(self):
            self.attn = Attention(num_heads=2)
"""
QWEN_PIPELINE = """
    from vllm_omni.diffusion.attention import Attention as Joint

    class QwenImagePipeline:
        def __init__(self):
            self.attn = Joint(num_heads=2)
            set_forward_context_denoise_step_idx(None)
"""


@dataclass
class SitePackages:
    """Distributions and modules are added one by one; `stack` reads them."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    devices: Devices = field(default_factory=lambda: Devices(("Ascend950PR_9589",)))

    def distribution(self, name: str, version: str, requires: str = "", plugin: str = "") -> None:
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        demands = "".join(f"Requires-Dist: {one}\n" for one in requires.splitlines())
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{demands}")
        if plugin:
            (info / "entry_points.txt").write_text(f"[vllm_omni.platform_plugins]\n{plugin} = {plugin}:activate\n")

    def module(self, name: str, source: str = "") -> None:
        *above, last = name.split(".")
        folder = self.folder
        for part in above:
            folder /= part
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        (folder / f"{last}.py").write_text(dedent(source))

    def omni(self, version: str, dtypes: str = '"mxfp8", "fp8"', imports: str = "pass") -> SitePackages:
        """vLLM-Omni; `imports` is what its quantized attention imports."""
        self.distribution("vllm-omni", version)
        below = "vllm_omni.diffusion"
        flash = FLASH_ATTN.replace("DTYPES", dtypes).replace("IMPORTS", imports)
        self.module(f"{below}.attention.backends.flash_attn", flash)
        self.module(f"{below}.attention.backends.rainfusion_attn", RAINFUSION)
        self.module(f"{below}.attention.backends.sdpa", "class SDPAImpl: ...")
        self.module(f"{below}.attention.backends.registry", BACKENDS)
        self.module(f"{below}.registry", REGISTRY)
        self.module(f"{below}.data", 'asked = os.environ.get("DIFFUSION_ATTENTION_BACKEND")')
        self.module(f"{below}.models.wan.pipeline_wan", WAN_PIPELINE)
        self.module(f"{below}.models.wan.wan_transformer", WAN_TRANSFORMER)
        self.module(f"{below}.models.qwen.pipeline_qwen", QWEN_PIPELINE)
        return self

    def new_omni(self) -> SitePackages:
        return self.omni("0.30.0", imports="from mindiesd import quant_attention")

    def old_omni(self) -> SitePackages:
        self.omni("0.28.0", dtypes='"fp8"')
        self.module(
            "vllm_omni.platforms.npu.quant.kv_quant_npu",
            """
            import torch
            from functools import lru_cache

            def _load_quant_ops():
                import torch_npu
                from mindiesd.layers.quant.block_quant import fa_block_quant_preprocess
                from msmodelslim.processor.quarot import create_rot
            """,
        )
        return self

    def complete(self) -> SitePackages:
        """Everything that FP8 attention needs on an NPU."""
        self.new_omni()
        for name, version in (("vllm", "0.30.0"), ("vllm-ascend", "0.30.0rc1"), ("torch", "2.13.0"),
                              ("torch-npu", "2.13.0.post1"), ("mindie-sd", "3.2.0"), ("diffusers", "0.40.0"),
                              ("transformers", "5.14.1")):  # fmt: skip
            self.distribution(name, version)
        self.module("mindiesd.__init__", "from .attention import quant_attention")
        self.module("torch_npu.__init__")
        (self.folder / "cann" / "aarch64-linux").mkdir(parents=True)
        (self.folder / "cann" / "aarch64-linux" / "ascend_toolkit_install.info").write_text("version=8.5.0\n")
        return self

    @property
    def machine(self) -> Machine:
        places: dict[str, Any] = {"ascend": self.folder, "nodes": self.folder}
        return Machine(Installed([self.folder]), self.environment, ask_devices=lambda: self.devices, **places)

    @property
    def stack(self) -> Stack:
        return Stack(self.machine)
