"""A Wan checkpoint with random weights, small enough to generate in a fraction of a second on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

Z = 4  # latent channels
WORDS = ("red", "green", "blue", "digit", "moving", "left", "right")


def make_tiny_wan(
    folder: Path, *, layers: int = 2, heads: int = 1, head_dim: int = 64, two_experts: bool = True, i2v: bool = False,
    seed: int = 0,
) -> Path:  # fmt: skip
    """Save a `WanPipeline`, or with `i2v` a `WanImageToVideoPipeline` that takes its picture through the latents
    (no image encoder, as Wan2.2 I2V A14B). Sizes are multiples of 16 pixels and 4n+1 frames, such as 32x32x5.

    Returns `folder`. The same arguments give the same weights.
    """
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanImageToVideoPipeline,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts = [
            WanTransformer3DModel(
                patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=head_dim, ffn_dim=64,
                in_channels=2 * Z + 4 if i2v else Z, out_channels=Z, text_dim=16, freq_dim=32, num_layers=layers,
                cross_attn_norm=True, rope_max_seq_len=64,
            )
            for _ in range(2 if two_experts else 1)
        ]  # fmt: skip
        vae = AutoencoderKLWan(
            base_dim=4, decoder_base_dim=4, z_dim=Z, dim_mult=[1, 2, 2], num_res_blocks=1, attn_scales=[],
            temperal_downsample=[True, True], latents_mean=[0.0] * Z, latents_std=[1.0] * Z,
            scale_factor_temporal=4, scale_factor_spatial=4,
        )  # fmt: skip
        text_encoder = UMT5EncoderModel(UMT5Config(
            vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
            pad_token_id=0, eos_token_id=1, tie_word_embeddings=True,
        ))  # fmt: skip
        for module in (*experts, vae, text_encoder):
            _enlarge(module)

    parts: dict[str, Any] = dict(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=experts[0],
        transformer_2=experts[1] if two_experts else None, boundary_ratio=0.875 if two_experts else None,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )  # fmt: skip
    if i2v:
        pipeline = WanImageToVideoPipeline(**parts, image_encoder=None, image_processor=None)
    else:
        pipeline = WanPipeline(**parts)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _enlarge(module: nn.Module) -> None:
    """Random weights as deep-learning libraries draw them let every picture fade to one grey."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1 and "norm" not in name and "modulation" not in name:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, 1.5 / max(1, fan_in) ** 0.5)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
