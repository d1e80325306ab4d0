"""Two ranks of vLLM-Omni's own worker, over gloo and without its executor, which hangs on a CPU: what each rank reports
of one generation, with shadows and without."""

from __future__ import annotations

import os
import socket
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from fa_tuner.domain.policy import Grid
from fa_tuner.engines.base import Shadow
from fa_tuner.search.shadows import worth_asking
from fa_tuner.search.space import Space

from .conftest import DEMO, VLLM_WARNS, WORKLOAD

pytestmark = [pytest.mark.timeout(300), *VLLM_WARNS]
GRID = Grid(WORKLOAD.steps, tuple(range(8)))
SHADOWS = worth_asking(Space(GRID, ("fp8",)))
POLICY = ("fp8", "0-2", "1")


def on_rank(rank: int, parallel: dict[str, int], port: int, folder: str) -> None:
    """Write the latents and reports of three generations: native, the same with shadows, and then a policy."""
    from vllm_omni.diffusion.data import DiffusionParallelConfig, OmniDiffusionConfig
    from vllm_omni.diffusion.request import OmniDiffusionRequest
    from vllm_omni.diffusion.worker.diffusion_worker import DiffusionWorker, WorkerWrapperBase
    from vllm_omni.inputs.data import OmniDiffusionSamplingParams

    from fa_tuner.engines.vllm_omni.host import EXTENSION

    os.environ["OMP_NUM_THREADS"] = "1"
    config = OmniDiffusionConfig(
        model=str(DEMO), dtype=torch.float32, flow_shift=3.0, boundary_ratio=0.875,
        parallel_config=DiffusionParallelConfig(**parallel), enable_diffusion_pipeline_profiler=True,
    )  # fmt: skip
    config.enrich_config()
    config.num_gpus, config.master_port = config.parallel_config.world_size, port
    worker = WorkerWrapperBase(rank, config, DiffusionWorker, worker_extension_cls=EXTENSION)
    (first, *_) = worker.execute_method("fa_tune_install", 0)
    assert first["shadows"] and first["world_size"] == config.num_gpus
    told = []
    for policy, shadows in ((("native", "", ""), ()), (("native", "", ""), SHADOWS), (POLICY, ())):
        asked = [astuple(shadow) for shadow in shadows]
        worker.execute_method("fa_tune_begin", policy, "1:x", ("x",) * GRID.steps, "none", asked)
        request = OmniDiffusionRequest(
            prompt={"prompt": WORKLOAD.prompts[0], "negative_prompt": ""},
            sampling_params=OmniDiffusionSamplingParams(
                height=48, width=48, num_frames=13, num_inference_steps=GRID.steps, guidance_scale=3.0,
                guidance_scale_provided=True, seed=1, output_type="latent",
            ),
            request_id="x",
        )  # fmt: skip
        latents = torch.as_tensor(worker.execute_model(request, config).output)
        told.append((latents.clone(), worker.execute_method("fa_tune_report")))
    torch.save(told, Path(folder, f"{rank}.pt"))
    os._exit(0)  # vLLM may leave threads that never end


def told_by_ranks(folder: Path, **parallel: int) -> list[list[Any]]:
    ranks = max(parallel.values(), default=1)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.spawn(on_rank, (parallel, port, str(folder)), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def answers(report: dict[str, Any]) -> dict[Shadow, float]:
    return {Shadow(step, tuple(layers), dtype): value for step, layers, dtype, value in report["shadows"]}


def cells(report: dict[str, Any]) -> dict[tuple[int, int, str], int]:
    return {(step, layer, dtype): count for step, layer, dtype, count in report["calls"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What a single rank tells."""
    (told,) = told_by_ranks(tmp_path_factory.mktemp("alone"))
    return told


@pytest.mark.parametrize(
    ("mode", "each", "close"),
    [("cfg_parallel_size", 1, 1e-4), ("ulysses_degree", 2, 1e-4), ("tensor_parallel_size", 2, 0.2)],
)
def test_every_rank_runs_and_answers_alike(
    alone: list[Any], tmp_path: Path, mode: str, each: int, close: float
) -> None:
    """Tensor parallelism adds up in another order, which moves values at the edge of two fp8 codes."""
    ranks = told_by_ranks(tmp_path, **{mode: 2})
    quantized = {(step, layer) for step in (3, 4, 5) for layer in GRID.layers if layer != 1}
    for native, shadowed, policy in ranks:
        assert torch.equal(native[0], shadowed[0]), "shadows change nothing"
        assert not torch.equal(native[0], policy[0])
        assert len(native[1]) == len(shadowed[1]) == 2, "each rank holds what all have told"
        for plain, beside, after in zip(native[1], shadowed[1], policy[1], strict=True):
            assert cells(plain) == cells(beside) == {(s, n, "native"): each for s in range(6) for n in GRID.layers}
            assert {(s, n) for s, n, dtype in cells(after) if dtype == "fp8"} == quantized
            assert set(cells(after).values()) == {each} and answers(plain) == {} == answers(after)
            assert answers(beside) == answers(shadowed[1][0]), "all hold the same velocity"
    expected = answers(alone[1][1][0])
    assert set(expected) == set(SHADOWS)
    assert answers(ranks[0][1][1][0]) == pytest.approx(expected, rel=close)
