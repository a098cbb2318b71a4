"""What every benchmark shares: the measured ceiling of this machine, and what is recorded of a run."""

import platform
import time
from collections.abc import Callable

import pytest
import torch


def _best_seconds(function: Callable[[], object], rounds: int = 7) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture(scope="session")
def gemm_gflops() -> float:
    """fp32 GFLOP/s of a large matrix product here: the ceiling that shares are given of."""
    x, y = torch.randn(1536, 1536), torch.randn(1536, 1536)
    return 2 * 1536**3 / _best_seconds(lambda: x @ y) / 1e9


@pytest.fixture
def record_flops(benchmark, gemm_gflops):  # type: ignore[no-untyped-def]
    """Call it with the operations of one round, after benchmark(): fills extra_info."""

    def record(flops: float, **info: object) -> None:
        if benchmark.stats is None:  # --benchmark-disable
            return
        rate = flops / benchmark.stats.stats.median / 1e9
        benchmark.extra_info.update(
            gflops=round(rate, 1),
            share_of_gemm=round(rate / gemm_gflops, 3),
            gemm_gflops=round(gemm_gflops, 1),
            threads=torch.get_num_threads(),
            machine=platform.processor() or platform.machine(),
            torch=torch.__version__,
            **info,
        )

    return record
