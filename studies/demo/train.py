"""Train the demo model: a tiny Wan2.2-style text-to-video pipeline on moving digits.

    python studies/demo/train.py --out studies/demo/model

Three stages, each kept in `--work` so that a killed run goes on where it was:
1. the VAE (AutoencoderKLWan, 4x in space, 4x in time) on pixels;
2. one transformer for all noise levels, with the text encoder, on the VAE's latents (flow matching);
3. two copies of it, each trained on its own share of the noise: `transformer` above `boundary_ratio`,
   `transformer_2` below, as in Wan2.2 A14B.

Weights are stored in float16. Losses go to `train_log.csv` beside this script's model folder.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from pathlib import Path
from typing import Any

import digits
import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

SEED = 20261121
FLOW_SHIFT = 3.0
BOUNDARY_RATIO = 0.875
TEXT_TOKENS = 8  # the longest caption has 5 words and an end mark
PIPELINE_TOKENS = 512  # to which WanPipeline pads a prompt's embeddings with zeros
LATENTS = 6000
LATENT_NOISE = 0.1  # added while the VAE trains, so that its decoder bears small errors

TRANSFORMER: dict[str, Any] = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=64, in_channels=8, out_channels=8,
    text_dim=32, freq_dim=64, ffn_dim=384, num_layers=8, cross_attn_norm=True, eps=1e-6, rope_max_seq_len=128,
)  # fmt: skip
VAE: dict[str, Any] = dict(
    base_dim=8, decoder_base_dim=12, z_dim=8, dim_mult=[1, 2, 4], num_res_blocks=1, attn_scales=[],
    temperal_downsample=[True, True], latents_mean=[0.0] * 8, latents_std=[1.0] * 8,
    scale_factor_temporal=4, scale_factor_spatial=4,
)  # fmt: skip


class Log:
    """Losses as rows of stage, step, loss, seconds since the start of the stage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.write_text("stage,step,loss,seconds\n")

    def add(self, stage: str, step: int, loss: float, seconds: float) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([stage, step, f"{loss:.5f}", f"{seconds:.1f}"])
        print(f"{stage} {step} {loss:.5f} {seconds:.0f}s", flush=True)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the captions, lower-cased; every other word is `<unk>`; an end mark as in T5."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *digits.WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def batch_of_clips(rng: np.random.Generator, pool: list[Any], size: int) -> tuple[list[str], Tensor]:
    """`size` random clips: captions, and frames [size, 3, frames, height, width] in [-1, 1]."""
    clips = [digits.sample(rng, pool) for _ in range(size)]
    return [clip.prompt for clip in clips], torch.from_numpy(np.stack([clip.frames for clip in clips]))


def learning_rate(peak: float, step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth of the peak."""
    return float(peak * min(1.0, step / warmup) * (0.02 + 0.49 * (1 + np.cos(np.pi * step / steps))))


def decode_unclamped(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """`vae.decode` without its last step, the clamp to [-1, 1]: on a black canvas that has no gradient."""
    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    parts = []
    for index in range(hidden.shape[2]):
        vae._conv_idx = [0]
        part = hidden[:, :, index : index + 1]
        parts.append(vae.decoder(part, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0))
    vae.clear_cache()
    return torch.cat(parts, dim=2)


def train_vae(work: Path, log: Log, pool: list[Any], steps: int) -> AutoencoderKLWan:
    """Stage 1: a plain autoencoder (the posterior's mode), mean squared plus absolute error."""
    vae = AutoencoderKLWan(**VAE)
    path = work / "vae.pt"
    if path.exists():
        vae.load_state_dict(torch.load(path))
        return vae
    rng = np.random.default_rng(SEED)
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=4e-3, weight_decay=1e-4)
    start, running = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(4e-3, step, steps, warmup=30)
        _, frames = batch_of_clips(rng, pool, 2)
        latents = vae.encode(frames).latent_dist.mode()
        noise = LATENT_NOISE * torch.randn(latents.shape, generator=generator)
        error = decode_unclamped(vae, latents + noise) - frames
        loss = error.square().mean() + 0.2 * error.abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        running += float(loss.detach())
        if step % 50 == 0:
            log.add("vae", step, running / 50, time.monotonic() - start)
            running = 0.0
    torch.save(vae.state_dict(), path)
    return vae


@torch.no_grad()
def encode_dataset(work: Path, vae: AutoencoderKLWan, pool: list[Any]) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Captions, normalised latents [n, z, t, h, w], and the mean and spread by channel that normalised them."""
    path = work / "latents.pt"
    if not path.exists():
        rng = np.random.default_rng(SEED + 1)
        prompts: list[str] = []
        latents: list[Tensor] = []
        while len(prompts) < LATENTS:
            words, frames = batch_of_clips(rng, pool, 20)
            prompts += words
            latents.append(vae.encode(frames).latent_dist.mode())
        stacked = torch.cat(latents)
        torch.save({"prompts": prompts, "latents": stacked}, path)
    kept = torch.load(path)
    latents_all: Tensor = kept["latents"]
    mean = latents_all.mean(dim=(0, 2, 3, 4))
    std = latents_all.std(dim=(0, 2, 3, 4))
    shape = (1, -1, 1, 1, 1)
    return kept["prompts"], (latents_all - mean.view(shape)) / std.view(shape), mean, std


class PaddedCrossAttention(WanAttnProcessor):
    """Cross-attention in which the last text token stands for all the zero padding of the pipeline.

    WanPipeline pads a prompt to 512 embeddings with zeros, which all become the same key and value; one of
    them with log(number of pads) added to its score gives the same sum at a fraction of the cost.
    """

    bias: Tensor | None = None  # [batch, 1, 1, tokens], set before each forward

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, rotary_emb: Any = None) -> Tensor:  # fmt: skip
        if encoder_hidden_states is not None:
            attention_mask = PaddedCrossAttention.bias
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)


class Trainer:
    """Flow matching on latents: the model predicts noise - data at sigma; captions dropped one time in ten."""

    def __init__(self, prompts: list[str], latents: Tensor, tokenizer: PreTrainedTokenizerFast,
                 text_encoder: UMT5EncoderModel, log: Log) -> None:  # fmt: skip
        self.latents, self.text_encoder, self.log = latents, text_encoder, log
        encode = lambda texts: tokenizer(texts, padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt")  # noqa: E731
        words = encode(prompts)
        self.tokens, self.mask = words["input_ids"], words["attention_mask"]
        empty = encode([""])
        self.empty_tokens, self.empty_mask = empty["input_ids"][0], empty["attention_mask"][0]

    def loss(self, model: nn.Module, batch: int, low: float, high: float, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(self.latents), (batch,), generator=generator)
        clean, tokens, mask = self.latents[index], self.tokens[index].clone(), self.mask[index].clone()
        dropped = torch.rand(batch, generator=generator) < 0.1
        tokens[dropped], mask[dropped] = self.empty_tokens, self.empty_mask

        embedded = self.text_encoder(tokens, mask).last_hidden_state * mask.unsqueeze(-1)
        embedded = torch.cat([embedded, torch.zeros_like(embedded[:, :1])], dim=1)
        pads = PIPELINE_TOKENS - mask.sum(dim=1, keepdim=True)
        bias = torch.cat([torch.where(mask.bool(), 0.0, -1e4), pads.float().log()], dim=1)
        PaddedCrossAttention.bias = bias[:, None, None, :]

        # uniform in the sampler's own (shifted) schedule, restricted to this expert's share of it
        unshift = lambda s: s / (FLOW_SHIFT - (FLOW_SHIFT - 1) * s)  # noqa: E731
        u = unshift(low) + (unshift(high) - unshift(low)) * torch.rand(batch, generator=generator)
        sigma = FLOW_SHIFT * u / (1 + (FLOW_SHIFT - 1) * u)
        noise = torch.randn(clean.shape, generator=generator)
        view = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - view) * clean + view * noise
        velocity = model(hidden_states=noisy, timestep=sigma * 1000, encoder_hidden_states=embedded,
                         return_dict=False)[0]  # fmt: skip
        return F.mse_loss(velocity, noise - clean)

    def train(self, stage: str, model: WanTransformer3DModel, steps: int, peak: float, low: float, high: float,
              batch: int, train_text: bool) -> WanTransformer3DModel:  # fmt: skip
        """Train in place; returns the exponential moving average of the weights."""
        for block in model.blocks:
            block.attn2.set_processor(PaddedCrossAttention())
        generator = torch.Generator().manual_seed(SEED + sum(map(ord, stage)))
        parameters = list(model.parameters()) + (list(self.text_encoder.parameters()) if train_text else [])
        self.text_encoder.requires_grad_(train_text)
        optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
        average = copy.deepcopy(model).requires_grad_(False)
        start, running = time.monotonic(), 0.0
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(peak, step, steps, warmup=100)
            loss = self.loss(model, batch, low, high, generator)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            with torch.no_grad():
                keep = min(0.998, (1 + step) / (10 + step))
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 1 - keep)
            running += float(loss.detach())
            if step % 50 == 0:
                self.log.add(stage, step, running / 50, time.monotonic() - start)
                running = 0.0
        return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--work", type=Path, default=Path("/tmp/fa-tune-demo"))
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--base-steps", type=int, default=4000)
    parser.add_argument("--expert-steps", type=int, default=600, help="for each of the two experts")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    log = Log(args.work / "train_log.csv")

    pool = digits.exemplars(per_digit=20)
    vae = train_vae(args.work, log, pool, args.vae_steps)
    prompts, latents, mean, std = encode_dataset(args.work, vae, pool)

    tokenizer = make_tokenizer()
    torch.manual_seed(SEED)
    text_encoder = UMT5EncoderModel(UMT5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
        dropout_rate=0.0, pad_token_id=0, eos_token_id=1, tie_word_embeddings=True,
    ))  # fmt: skip
    trainer = Trainer(prompts, latents, tokenizer, text_encoder, log)
    base = WanTransformer3DModel(**TRANSFORMER)
    base_path = args.work / "base.pt"
    if base_path.exists():
        kept = torch.load(base_path)
        base.load_state_dict(kept["transformer"])
        text_encoder.load_state_dict(kept["text_encoder"])
    else:
        base = trainer.train("base", base, args.base_steps, 1.5e-3, 0.0, 1.0, args.batch, train_text=True)
        torch.save({"transformer": base.state_dict(), "text_encoder": text_encoder.state_dict()}, base_path)
    experts = [
        trainer.train(name, copy.deepcopy(base).requires_grad_(True), args.expert_steps, 4e-4, low, high,
                      args.batch, train_text=False)
        for name, low, high in (("transformer", BOUNDARY_RATIO, 1.0), ("transformer_2", 0.0, BOUNDARY_RATIO))
    ]  # fmt: skip
    for expert in experts:
        for block in expert.blocks:
            block.attn2.set_processor(WanAttnProcessor())

    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)
    pipeline = WanPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder.half(), vae=vae.half(), scheduler=scheduler,
        transformer=experts[0].half(), transformer_2=experts[1].half(), boundary_ratio=BOUNDARY_RATIO,
    )  # fmt: skip
    pipeline.save_pretrained(args.out, safe_serialization=True)
    (args.out.parent / "train_log.csv").write_text(log.path.read_text())
    size = sum(path.stat().st_size for path in args.out.rglob("*.safetensors"))
    print(f"saved {args.out}: {size / 1e6:.2f} MB of weights")


if __name__ == "__main__":
    main()
