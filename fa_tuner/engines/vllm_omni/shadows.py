"""Shadows beside a generation, inside vLLM-Omni's workers: a step's velocity once more, under another policy.

The pipeline's `predict_noise_maybe_with_cfg` is what they repeat. In all versions from 0.22 on every rank holds the
whole guided velocity that it returns, under CFG, sequence and tensor parallelism, too; and every rank repeats it, for
all were asked for the same shadows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fa_tuner.domain.policy import NATIVE, Grid
from fa_tuner.engines.base import CellCall, Shadow

if TYPE_CHECKING:
    from fa_tuner.engines.vllm_omni.worker import _Recorder, _Run


def can_be_given(pipeline: Any) -> bool:
    """Whether this pipeline has the method to repeat, and noise levels to weigh its answers by."""
    return (
        hasattr(pipeline, "predict_noise_maybe_with_cfg")
        and hasattr(getattr(pipeline, "scheduler", None), "sigmas")
        # a distilled sampler noises a clean picture anew at each step: its errors go on otherwise
        and not getattr(pipeline, "is_dmd", False)
    )


def shadowing(predict: Callable[..., Any], recorder: _Recorder, now: Callable[[], float]) -> Callable[..., Any]:
    """`predict_noise_maybe_with_cfg` with the shadows of the step behind it; `now` is a clock in seconds."""

    def shadowed(*args: Any, **kwargs: Any) -> Any:
        run, step = recorder.run, recorder.step
        asked = [shadow for shadow in run.shadows if shadow.step == step]
        stride = _stride(recorder.pipeline.scheduler, asked[0].step, len(run.rows)) if asked else None
        if stride is None:
            return predict(*args, **kwargs)
        before = run.calls.copy()
        velocity = predict(*args, **kwargs)
        made = run.calls - before
        began = now()
        for shadow in asked:
            try:
                with recorder.aside(shadow.policy(Grid(len(run.rows), recorder.layers))) as beside:
                    other = predict(*args, **kwargs)
            except Exception as error:
                if recorder.config.parallel_config.world_size == 1:
                    continue  # a dtype that cannot run here: the native run has nothing to do with it
                # the other ranks would go on, and wait for this one
                raise RuntimeError(f"the shadow probe of step {step} in {shadow.dtype} failed: {error}") from error
            if _ran_as_asked(shadow, beside, made):
                run.answers[shadow] = float((other.float() - velocity.float()).square().mean()) * stride**2
        run.set_aside(now() - began)
        return velocity

    return shadowed


def _stride(scheduler: Any, step: int, steps: int) -> float | None:
    """Of the noise level in a step; None where the scheduler counts otherwise, as one of second order."""
    sigmas = scheduler.sigmas
    return float(sigmas[step + 1] - sigmas[step]) if len(sigmas) == steps + 1 else None


def _ran_as_asked(shadow: Shadow, beside: _Run, made: Counter[CellCall]) -> bool:
    """Whether it made the calls that the step itself `made`, its layers' quantized and no others. One that ran
    something else would have an answer, too: 0 where it ran native."""
    expected: Counter[CellCall] = Counter()
    for (step, layer, _), count in made.items():
        expected[step, layer, shadow.dtype if layer in shadow.layers else NATIVE] += count
    everywhere = set(shadow.layers) <= {layer for _, layer, _ in made}
    return beside.calls == expected and everywhere and not beside.cross_attention_quantized
