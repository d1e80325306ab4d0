"""The policy in force on a rank: put there by vLLM-Omni's own methods, and read back; runs inside its worker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from fa_tuner.domain.policy import NATIVE, SkipPolicy


class PolicyInForce:
    """`attention` are all attention modules of the worker with this `config`, `eligible` those that may quantize."""

    def __init__(self, config: Any, attention: Sequence[Any], eligible: Sequence[Any]) -> None:
        self._config, self._attention, self._eligible = config, attention, eligible

    def switch(self, dtype: str, skip_steps: str, skip_layers: str) -> None:
        """Set the configuration's fields and let every attention module take them over by its own method."""
        from vllm_omni.diffusion.data import parse_kv_cache_skip_selector as parsed

        self._put(None if dtype == NATIVE else dtype, skip_steps or None, skip_layers or None,
                  parsed(skip_steps), parsed(skip_layers))  # fmt: skip

    @contextlib.contextmanager
    def instead(self, policy: SkipPolicy) -> Iterator[None]:
        """Another one for a while."""
        held = [getattr(self._config, name) for name in _FIELDS]
        try:
            self.switch(policy.dtype, str(policy.skip_steps), str(policy.skip_layers))
            yield
        finally:
            self._put(*held)

    def read(self) -> dict[str, Any]:
        """The policies found in the eligible modules; one, where all agree."""
        found = {
            (
                m._kv_cache_dtype if m._kv_cache_dtype not in (None, "auto", "float") else NATIVE,
                tuple(sorted(m._kv_cache_skip_steps or ())),
                tuple(sorted(m._kv_cache_skip_layers or ())),
            )
            for m in self._eligible
        }
        return {"policies": sorted(found)}

    def _put(self, *values: Any) -> None:
        for name, value in zip(_FIELDS, values, strict=True):
            setattr(self._config, name, value)
        for module in self._attention:
            module._init_kv_cache_quantization(self._config)


_FIELDS = (
    "diffusion_kv_cache_dtype", "diffusion_kv_cache_skip_steps", "diffusion_kv_cache_skip_layers",
    "diffusion_kv_cache_skip_step_indices", "diffusion_kv_cache_skip_layer_indices",
)  # fmt: skip
