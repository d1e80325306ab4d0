"""The worker extension on two ranks: each answers for itself, and one that fails takes the others along."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2


class Recorder:
    """Stands for the recorder of one rank."""

    def __init__(self, rank: int, broken: bool) -> None:
        self.rank, self.broken, self.policy = rank, broken, self

    def switch(self, *policy: str) -> None:
        if self.broken and self.rank == 1:
            raise ValueError("this rank cannot")

    def begin(self, *_: Any) -> None: ...

    def read(self) -> dict[str, Any]:
        return {"policies": [("fp8", (self.rank,), ())]}

    def report(self) -> dict[str, Any]:
        return {"calls": [[0, 0, "fp8", self.rank + 2]]}


def on_rank(rank: int, rendezvous: str, broken: bool, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    module = ModuleType("vllm_omni.diffusion.distributed.parallel_state")
    module.get_world_group = lambda: SimpleNamespace(cpu_group=None)  # type: ignore[attr-defined] - the default group
    for name in ("vllm_omni", "vllm_omni.diffusion", "vllm_omni.diffusion.distributed"):
        sys.modules[name] = ModuleType(name)
    sys.modules[module.__name__] = module
    from fa_tuner.engines.vllm_omni.worker import PolicyExtension

    worker = PolicyExtension()
    worker._fa_tune = Recorder(rank, broken)  # type: ignore[assignment]
    try:
        begun = worker.fa_tune_begin(("fp8", "0", ""), "1:a cat", ("native", "fp8/"), "none")
        results[rank] = (begun, worker.fa_tune_report())
    except RuntimeError as error:
        results[rank] = str(error)
    dist.destroy_process_group()


def answers(tmp_path: Path, broken: bool) -> dict[int, Any]:
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(on_rank, args=(str(tmp_path / "rendezvous"), broken, results), nprocs=RANKS)
        return dict(results)


@pytest.mark.slow
def test_every_rank_answers_for_itself(tmp_path: Path) -> None:
    found = answers(tmp_path, broken=False)
    assert found[0] == found[1], "all hold the same list, and vLLM-Omni returns the first rank's"
    begun, reported = found[0]
    assert [answer["policies"] for answer in begun] == [[("fp8", (0,), ())], [("fp8", (1,), ())]]
    assert [answer["calls"] for answer in reported] == [[[0, 0, "fp8", 2]], [[0, 0, "fp8", 3]]]


@pytest.mark.slow
def test_a_rank_that_fails_is_named_and_nobody_waits_for_it(tmp_path: Path) -> None:
    found = answers(tmp_path, broken=True)
    assert found == dict.fromkeys(range(RANKS), "rank 1: ValueError: this rank cannot")


def test_without_a_process_group_there_is_one_answer() -> None:
    from fa_tuner.engines.vllm_omni.worker import PolicyExtension

    worker = PolicyExtension()
    worker._fa_tune = Recorder(0, broken=False)  # type: ignore[assignment]
    assert worker.fa_tune_report() == [{"calls": [[0, 0, "fp8", 2]]}]


def test_the_first_rank_s_own_failure_is_its_own_message() -> None:
    from fa_tuner.engines.vllm_omni.worker import PolicyExtension

    worker = PolicyExtension()
    with pytest.raises(RuntimeError, match=r"^AttributeError: "):
        worker.fa_tune_report()
