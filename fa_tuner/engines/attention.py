"""Quantized self-attention inside diffusers' Wan transformers, with vLLM-Omni's selector semantics."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from fa_tuner.domain.policy import NATIVE, SkipPolicy
from fa_tuner.engines.base import CellCall
from fa_tuner.operators.attention import quantized_attention


class Switchboard:
    """The policy in force and the step being run, shared by every attention layer; counts what really ran."""

    def __init__(self) -> None:
        self.policy = SkipPolicy()
        self.step = 0
        self.calls: Counter[CellCall] = Counter()
        self.cross_attention_quantized = 0

    def begin(self, policy: SkipPolicy) -> None:
        self.policy = policy
        self.step = 0
        self.calls = Counter()
        self.cross_attention_quantized = 0

    @contextlib.contextmanager
    def aside(self, policy: SkipPolicy) -> Iterator[None]:
        """Run something under another policy and count nothing of it."""
        before = vars(self).copy()
        self.policy, self.calls = policy, Counter()
        try:
            yield
        finally:
            vars(self).update(before)


class SelectiveProcessor:
    """Runs a layer's own processor, or the emulated operator where the policy quantizes this step and layer.

    Both experts of Wan2.2 get the same layer indices, and both guidance branches pass through here.
    """

    def __init__(self, layer: int, native: Any, switchboard: Switchboard) -> None:
        self.layer = layer
        self.native = native
        self.switchboard = switchboard

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        board = self.switchboard
        if not board.policy.quantizes(board.step, self.layer):
            board.calls[board.step, self.layer, NATIVE] += 1
            result: Tensor = self.native(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return result
        if attention_mask is not None:
            raise NotImplementedError("vLLM-Omni's quantized attention takes no mask; this layer was given one")
        query, key, value = _project(attn, hidden_states, rotary_emb)
        mixed = quantized_attention(query, key, value, board.policy.dtype)
        board.calls[board.step, self.layer, board.policy.dtype] += 1
        if encoder_hidden_states is not None:
            board.cross_attention_quantized += 1
        output: Tensor = attn.to_out[1](attn.to_out[0](mixed.flatten(2, 3)))
        return output


def _project(attn: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value as [batch, tokens, heads, head dim], normalised and with rotary positions, as in
    diffusers' WanAttnProcessor."""
    if attn.fused_projections:
        query, key, value = attn.to_qkv(hidden).chunk(3, dim=-1)
    else:
        query, key, value = attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)
    query, key = attn.norm_q(query), attn.norm_k(key)
    query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
    if rotary is not None:
        query, key = _rotate(query, *rotary), _rotate(key, *rotary)
    return query, key, value


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cosines[..., 0::2], sines[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)


def install(transformers: Iterable[Any], switchboard: Switchboard) -> None:
    """Put a selective processor on every self-attention (`attn1`) of the transformers' blocks."""
    for transformer in transformers:
        for layer, block in enumerate(transformer.blocks):
            native = block.attn1.processor
            if not isinstance(native, WanAttnProcessor):
                raise TypeError(f"layer {layer} has a {type(native).__name__}; expected WanAttnProcessor")
            block.attn1.set_processor(SelectiveProcessor(layer, native, switchboard))
