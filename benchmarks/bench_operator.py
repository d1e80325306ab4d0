"""How much the emulated operator costs beside native attention: `python benchmarks/bench_operator.py`.

Every repeat times native, fp8, mxfp8 and mxfp4 one after the other in one process, so that other load on the machine
falls on all alike. A ratio is the median over repeats of (this call / the native call of the same repeat). OpenMP
waits passively: with threads that spin, the many small operations pay for another busy process and native does not.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

# Threads that spin at OpenMP's barriers take the cores from each other as soon as anything else runs; to be set first.
os.environ["OMP_WAIT_POLICY"] = "passive"

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fa_tuner.domain.policy import DTYPES, NATIVE
from fa_tuner.operators.attention import quantized_attention

SEED = 0
TARGETS = {"fp8": 4.0, "mxfp4": 6.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--warmup", type=int, default=5)
    arguments = parser.parse_args()

    shape = (1, arguments.tokens, arguments.heads, arguments.head_dim)
    generator = torch.Generator().manual_seed(SEED)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
    seconds = interleaved(contenders(query, key, value), arguments.repeats, arguments.warmup)

    title = f"attention, {' x '.join(map(str, shape))} (batch x tokens x heads x head dim), float32"
    console = Console(width=100)
    console.print(table(title, seconds))
    console.print(
        f"{platform.machine()} CPU, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}, seed {SEED}, {arguments.warmup} warm-ups, {arguments.repeats} repeats"
    )


def contenders(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Native attention first, on the same [batch, tokens, heads, head dim] layout that the operator takes."""

    def native() -> Tensor:
        heads_first = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        return scaled_dot_product_attention(heads_first[0], heads_first[1], heads_first[2]).transpose(1, 2)

    def quantized(dtype: str) -> Callable[[], Tensor]:
        return lambda: quantized_attention(query, key, value, dtype)

    return {NATIVE: native} | {dtype: quantized(dtype) for dtype in DTYPES}


def interleaved(calls: dict[str, Callable[[], Tensor]], repeats: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each call in each repeat."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(warmup + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def table(title: str, seconds: dict[str, list[float]]) -> Table:
    result = Table(title=title)
    for heading in ("operator", "median ms", "quartiles ms", "x native", "quartiles", "target"):
        result.add_column(heading, justify="left" if heading == "operator" else "right")
    for name, own in seconds.items():
        ratios = [mine / native for mine, native in zip(own, seconds[NATIVE], strict=True)]
        low, middle, high = statistics.quantiles([1e3 * s for s in own], n=4)
        low_ratio, ratio, high_ratio = statistics.quantiles(ratios, n=4)
        target = f"<= {TARGETS[name]:.0f}" if name in TARGETS else ""
        result.add_row(
            name,
            f"{middle:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{ratio:.2f}",
            f"{low_ratio:.2f} to {high_ratio:.2f}",
            target,
        )
    return result


if __name__ == "__main__":
    main()
