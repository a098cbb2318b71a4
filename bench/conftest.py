"""The fixture `compare` of all benchmarks: it checks, then times, all sides of one problem.

A bench function is one comparison. All its sides first compute the bench's input, which warms them up, and must satisfy
the rule of tests/accuracy.py (peers a wider one). They are then timed in turns, one call per side and round
(measure.in_turns), so that a slow phase of the machine affects all sides equally. Ratios are those of the medians of
one run. pytest-benchmark itself would time benches one after the other. It therefore gets the seconds of our side from
a clock that replays them. Its JSON contains every side in `extra_info`, from which bench/report.py makes tables and
plots. --benchmark-max-time limits the seconds of a comparison; --benchmark-min-rounds takes precedence.

extra_info: op, case, direction, dtype, shape, sweep. sides: name, ours, seconds (median, fastest), rounds, GFLOP/s,
GB/s and share of the ceiling for the operator's minimum work (bench/roofline.py), peak MiB, relative error. skipped:
reasons. others_cores: cores that other processes kept busy meanwhile. expected: goals. Also the ceilings measured in
this session, device, machine, threads, versions and commit.
"""

import time
from collections.abc import Iterator, Sequence
from statistics import median

import pytest
from accuracy import assert_accurate
from measure import DTYPE_NAMES, copy_gbs, fma_gflops, gemm_gflops, in_turns, others_seconds, peak_mib, session_info
from roofline import Cost
from sides import Problem, Wanted
from torch import Tensor

# Allowed error of peers, as a multiple of eager's. Peers have to compute the same function, but need not round as well:
# Inductor sums the gradient of c over 6,000 spans one by one in fp32, with 39 times eager's error.
PEERS_FACTOR = 64.0


class Clock:
    """The timer of pytest-benchmark in these benches, which replays the seconds that were measured in turns."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def replay(self, seconds: Iterator[float]) -> None:
        self.now += next(seconds)


CLOCK = Clock()


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if "compare" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))


def pytest_benchmark_update_json(config, output_json):  # type: ignore[no-untyped-def]
    output_json["command"] = " ".join(["pytest", *map(str, config.invocation_params.args)])


def _relative_error(got: Tensor, truth: Tensor) -> float:
    """RMS of the error divided by the RMS of the truth, over finite values of the truth."""
    finite = truth.isfinite()
    error = (got.double() - truth)[finite]
    return float(error.norm() / truth[finite].norm().clamp(min=1e-300))


def _rates(cost: Cost, ceilings: dict[str, float | None], seconds: float) -> dict[str, float]:
    """Rates of the minimum work: GFLOP/s (of matrix products, if there are any), GB/s, and the ceilings' share.

    The share is the minimum time that the ceilings allow, divided by the measured seconds.
    """
    flops = cost.matrix_flops or cost.vector_flops
    peak = ceilings["fma_gflops"] or ceilings["gemm_gflops"]
    least = max(cost.matrix_flops / peak, cost.bytes_moved / ceilings["copy_gbs"]) / 1e9
    return {
        "gflops": flops / seconds / 1e9,
        "gbs": cost.bytes_moved / seconds / 1e9,
        "share": least / seconds,
    }


@pytest.fixture
def compare(benchmark, request):  # type: ignore[no-untyped-def]
    """Return a function to call once per bench: compare(problem, direction, wanted=goals)."""

    def compare(problem: Problem, direction: str, wanted: Sequence[Wanted] = ()) -> None:
        sides = problem.sides()
        skipped = {name: why for name, why in sides.items() if isinstance(why, str)}
        calls = {name: problem.call(f, direction) for name, f in sides.items() if not isinstance(f, str)}
        truth, plain = problem.truth(direction), calls["eager"]()
        errors = {}
        for name, call in calls.items():
            results = list(zip(plain if name == "eager" else call(), truth, plain, strict=True))
            for n, values in enumerate(results):
                c = 2.0 if name == problem.our_name else PEERS_FACTOR
                assert_accurate(*values, c=c, what=f"{name}, {direction}, tensor {n}")
            errors[name] = max(_relative_error(got, true) for got, true, _ in results)
            del results
        del truth, plain
        if benchmark.disabled:
            benchmark(calls[problem.our_name])
            return
        option = request.config.getoption
        began, others = time.perf_counter(), others_seconds()
        seconds = in_turns(calls, float(option("benchmark_max_time")), option("benchmark_min_rounds"))
        others = (others_seconds() - others) / (time.perf_counter() - began)
        cost, dtype = problem.cost[direction], problem.floats[0].dtype
        ceilings = {"fma_gflops": fma_gflops(), "gemm_gflops": gemm_gflops(dtype), "copy_gbs": copy_gbs()}
        benchmark.group = f"{problem.op} {direction}"
        benchmark.extra_info.update(
            op=problem.op,
            case=problem.case,
            direction=direction,
            dtype=DTYPE_NAMES[dtype],
            shape=[list(x.shape) for x in problem.floats],
            sweep=problem.sweep,
            intensity=(cost.matrix_flops or cost.vector_flops) / cost.bytes_moved,
            sides=[
                {
                    "name": name,
                    "ours": name == problem.our_name,
                    "median_seconds": median(times),
                    "fastest_seconds": min(times),
                    "rounds": len(times),
                    **_rates(cost, ceilings, median(times)),
                    "peak_mib": peak_mib(calls[name]),
                    "error": errors[name],
                }
                for name, times in seconds.items()
            ],
            skipped=skipped,
            others_cores=max(others, 0.0),
            expected=[goal._asdict() for goal in wanted],
            ceilings=ceilings,
            **session_info(),
        )
        ours = seconds[problem.our_name]
        benchmark.pedantic(CLOCK.replay, args=(iter(ours),), rounds=len(ours))

    return compare
