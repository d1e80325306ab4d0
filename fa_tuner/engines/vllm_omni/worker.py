"""What runs inside vLLM-Omni's workers: switch the policy, count attention calls, keep and resume prefixes, and ask
for shadows.

`PolicyExtension` is named to vLLM-Omni as `worker_extension_cls`, its public way to add methods to its workers, and
called by `collective_rpc` on every rank. Nothing of vLLM-Omni is patched in its files; attributes of the loaded
modules are wrapped, once.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from fa_tuner.domain.policy import NATIVE, SkipPolicy
from fa_tuner.engines.base import UNPUBLISHED, CellCall, Shadow
from fa_tuner.engines.prefixes import Prefixes, State
from fa_tuner.engines.vllm_omni.in_force import PolicyInForce
from fa_tuner.engines.vllm_omni.inventory import inventory
from fa_tuner.engines.vllm_omni.shadows import can_be_given, shadowing

HEARTBEAT = "FA_TUNE_HEARTBEAT"  # names a file that is touched while denoising goes on
# the method of a backend's implementation that calls the quantized kernel
QUANTIZED_ENTRY = {"FLASH_ATTN": "forward_fa_quant_npu"}


class PolicyExtension:
    """Methods that fa-tune adds to vLLM-Omni's diffusion worker."""

    model_runner: Any

    def fa_tune_install(self, prefix_cache_mb: int) -> list[dict[str, Any]]:
        """Wrap the loaded pipeline and describe it, as plain values; as the other methods, of every rank in order."""

        def install() -> dict[str, Any]:
            self._fa_tune = _Recorder(self.model_runner, prefix_cache_mb * 2**20)
            return self._fa_tune.describe()

        return _of_every_rank(install)

    def fa_tune_begin(
        self,
        policy: tuple[str, str, str] | None,
        case: str,
        rows: Sequence[str],
        prefix: str,
        shadows: Sequence[tuple[int, Sequence[int], str]] = (),
    ) -> list[dict[str, Any]]:
        """Get ready for one generation.

        Args:
            policy: dtype ("native" or a quantized one) and the two selectors, to be put in force; None where the
                right one is in force.
            case: identifies the prompt and seed.
            rows: for each denoising step what its layers run in; two runs share a prefix as far as these are equal.
            prefix: "none", "keep" or "reuse", as in `Engine.generate`.
            shadows: each step, layers and dtype, which must be there; those of steps that are not run stay unanswered.

        Returns:
            What is in force now, read back from every eligible attention module.
        """

        def begin() -> dict[str, Any]:
            if policy is not None:
                self._fa_tune.policy.switch(*policy)
            asked = [Shadow(step, tuple(layers), dtype) for step, layers, dtype in shadows]
            self._fa_tune.begin(case, tuple(rows), prefix, asked)
            return self._fa_tune.policy.read()

        return _of_every_rank(begin)

    def fa_tune_report(self) -> list[dict[str, Any]]:
        """What the generation since `fa_tune_begin` did."""
        return _of_every_rank(lambda: self._fa_tune.report())


def _of_every_rank(act: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """`act` on this rank, and what it gave on all of them, in their order. vLLM-Omni runs a collective_rpc on every
    rank and answers with the first one's value alone, so the ranks exchange theirs; one that fails must do so, too,
    or the others would wait for it.

    Raises:
        RuntimeError: it failed on some rank.
    """
    import torch.distributed as dist

    try:
        mine: Any = act()
    except Exception as error:
        mine = f"{type(error).__name__}: {error}"
    everyone = [mine]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        from vllm_omni.diffusion.distributed.parallel_state import get_world_group

        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine, group=get_world_group().cpu_group)
    for rank, answer in enumerate(everyone):
        if isinstance(answer, str):
            raise RuntimeError(answer if rank == 0 else f"rank {rank}: {answer}")
    return everyone


@dataclass
class _Run:
    """One generation as it goes. `aside_seconds` is what shadows took, which no other time counts."""

    case: str = ""
    rows: tuple[str, ...] = ()
    keep: bool = False
    shadows: Sequence[Shadow] = ()
    resumed: State | None = None
    start: int = 0
    step_began: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    calls: Counter[CellCall] = field(default_factory=Counter)
    cross_attention_quantized: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    answers: dict[Shadow, float] = field(default_factory=dict)
    aside_seconds: float = 0.0

    def set_aside(self, seconds: float) -> None:
        self.aside_seconds += seconds
        self.step_began += seconds

    @property
    def calls_so_far(self) -> Counter[CellCall]:
        return self.calls + (self.resumed.calls if self.resumed is not None else Counter())


class _Recorder:
    def __init__(self, runner: Any, prefix_bytes: int) -> None:
        from vllm_omni.diffusion.attention.layer import Attention

        self.config, self.pipeline = runner.od_config, runner.pipeline
        self.run = _Run()
        self.prefixes = Prefixes(prefix_bytes)
        self.modules = [m for m in self.pipeline.modules() if isinstance(m, Attention)]
        self.eligible = [m for m in self.modules if not m._disable_kv_quant and getattr(m, "role", "self") != "cross"]
        self.policy = PolicyInForce(self.config, self.modules, self.eligible)
        self.layers = tuple(sorted({m.layer_idx for m in self.eligible if m.layer_idx is not None}))
        for module in self.modules:
            self._count_calls(module)
        self.resumable = self._watch_steps()
        self.shadowable = can_be_given(self.pipeline)
        if self.shadowable:
            predict = self.pipeline.predict_noise_maybe_with_cfg
            self.pipeline.predict_noise_maybe_with_cfg = shadowing(predict, self, _now)

    def describe(self) -> dict[str, Any]:
        found = inventory(self.config, self.pipeline, self.eligible, self.modules)
        return {**found, **self.policy.read(), "resumable": self.resumable, "shadows": self.shadowable}

    @contextlib.contextmanager
    def aside(self, policy: SkipPolicy) -> Iterator[_Run]:
        """Another policy in force, and another run to count in."""
        run, self.run = self.run, _Run()
        try:
            with self.policy.instead(policy):
                yield self.run
        finally:
            self.run = run

    @property
    def step(self) -> int | None:
        """The denoising step that the pipeline has published."""
        from vllm_omni.diffusion.forward_context import get_forward_context, is_forward_context_available

        return get_forward_context().denoise_step_idx if is_forward_context_available() else None

    def begin(self, case: str, rows: tuple[str, ...], prefix: str, shadows: Sequence[Shadow]) -> None:
        self.run = _Run(case, rows, keep=self.resumable and prefix != "none", shadows=shadows)
        if self.resumable and prefix == "reuse" and (found := self.prefixes.longest(case, rows)) is not None:
            self.run.start, self.run.resumed = found

    def report(self) -> dict[str, Any]:
        run, self.run = self.run, _Run()
        return {
            "calls": [[*cell, count] for cell, count in run.calls.items()],
            "reused_calls": [[*cell, count] for cell, count in run.resumed.calls.items()] if run.resumed else [],
            "start": run.start,
            "step_seconds": run.step_seconds,
            "cross_attention_quantized": run.cross_attention_quantized,
            "ignored": dict(run.ignored),
            "shadows": [[*astuple(shadow), value] for shadow, value in run.answers.items()],
            "shadow_seconds": run.aside_seconds,
        }

    def _count_calls(self, module: Any) -> None:
        """Wrap the point through which every local attention call of a layer goes, whatever the backend.

        A call counts as quantized where the layer asks the backend for a quantized dtype and the backend then enters
        its quantized kernel: asking alone proves nothing, for a backend may ignore it.
        """
        original = module._run_local_attention
        backend = module.attn_backend.get_name() if module.attn_backend is not None else "custom"
        eligible = any(module is m for m in self.eligible)
        entered = [False]
        if (entry := QUANTIZED_ENTRY.get(backend)) and hasattr(module.attention, entry):
            setattr(module.attention, entry, _noting(getattr(module.attention, entry), entered))

        def counted(query: Any, key: Any, value: Any, attn_metadata: Any) -> Any:
            _beat()
            entered[0] = False
            output = original(query, key, value, attn_metadata)
            asked = attn_metadata.extra.get("kv_cache_dtype") if attn_metadata is not None else None
            dtype = NATIVE if asked in (None, "auto", "float") else asked
            if dtype != NATIVE and not entered[0]:
                self.run.ignored[backend] += 1
                dtype = NATIVE
            if not eligible:
                self.run.cross_attention_quantized += dtype != NATIVE
                return output
            step, layer = self.step, module.layer_idx
            self.run.calls[UNPUBLISHED if step is None else step, UNPUBLISHED if layer is None else layer, dtype] += 1
            return output

        module._run_local_attention = counted

    def _watch_steps(self) -> bool:
        """Wrap what the pipeline's denoising loop calls, to time its steps; whether it can be resumed as well."""
        pipeline = self.pipeline
        if hasattr(pipeline, "scheduler_step_maybe_with_cfg"):
            pipeline.scheduler_step_maybe_with_cfg = self._finishing(pipeline.scheduler_step_maybe_with_cfg)
        if not hasattr(pipeline, "diffuse"):
            return False
        signature = inspect.signature(pipeline.diffuse)
        resumable = (
            {"latents", "timesteps"} <= set(signature.parameters)
            and hasattr(pipeline, "scheduler_step_maybe_with_cfg")
            and hasattr(pipeline, "record_denoise_step")
            # a distilled sampler draws new noise at each step: its generator would have to be kept, too
            and not getattr(pipeline, "is_dmd", False)
            # ranks that went on from different steps would wait for each other for ever
            and self.config.parallel_config.world_size == 1
        )
        if resumable:
            pipeline.record_denoise_step = self._publishing(pipeline.record_denoise_step)
        pipeline.diffuse = self._resuming(pipeline.diffuse, signature)
        return bool(resumable)

    def _publishing(self, publish: Callable[..., Any]) -> Callable[..., Any]:
        """The loop of a resumed run counts from 0; its steps do not."""

        def published(step_idx: Any, *args: Any, **kwargs: Any) -> Any:
            return publish(None if step_idx is None else step_idx + self.run.start, *args, **kwargs)

        return published

    def _finishing(self, finish: Callable[..., Any]) -> Callable[..., Any]:
        def finished(*args: Any, **kwargs: Any) -> Any:
            latents = finish(*args, **kwargs)
            run, now = self.run, _now()
            run.step_seconds.append(now - run.step_began)
            done = run.start + len(run.step_seconds)
            if run.keep and done < len(run.rows):
                self.prefixes.keep(run.case, run.rows[:done], (latents, self.pipeline.scheduler), run.calls_so_far)
            run.step_began = _now()
            return latents

        return finished

    def _resuming(self, diffuse: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
        def resumed(*args: Any, **kwargs: Any) -> Any:
            run = self.run
            if run.resumed is not None:
                bound = signature.bind(*args, **kwargs)
                timesteps = bound.arguments["timesteps"]
                if len(timesteps) != len(run.rows):
                    raise RuntimeError(f"the scheduler makes {len(timesteps)} steps, not {len(run.rows)}")
                latents, self.pipeline.scheduler = run.resumed.restored()
                bound.arguments.update(latents=latents, timesteps=timesteps[run.start :])
                args, kwargs = bound.args, bound.kwargs
            run.step_began = _now()
            return diffuse(*args, **kwargs)

        return resumed


def _noting(entry: Callable[..., Any], entered: list[bool]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        output = entry(*args, **kwargs)
        entered[0] = True
        return output

    return noted


_last_beat = 0.0


def _beat() -> None:
    """Tell the watchdog, at most once a second, that denoising goes on."""
    global _last_beat
    now = time.monotonic()
    if (path := os.environ.get(HEARTBEAT)) and now - _last_beat >= 1.0:
        _last_beat = now
        os.utime(path)


def _now() -> float:
    from vllm_omni.platforms import current_omni_platform as platform

    platform.synchronize()
    return time.perf_counter()
