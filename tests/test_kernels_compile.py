"""Every Triton kernel compiles to machine code for sm_80, sm_90 and sm_100, on a machine without a GPU.

About a minute on two cores; a few seconds once Triton's cache holds the results.

In a process of its own: TRITON_INTERPRET, which the other tests need without a GPU, replaces the compiler.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.slow
KERNELS = {
    "scores_kernel": 1, "loss_kernel": 2, "word_grads_kernel": 2, "type_grads_kernel": 1,
    "entities_kernel": 2, "vectors_kernel": 1, "hidden_kernel": 1, "hidden_grads_kernel": 2,
}  # fmt: skip
WITHOUT_PRODUCTS = {"hidden_kernel", "hidden_grads_kernel"}


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def test_every_kernel_and_variant_compiles(compiled: list[dict[str, Any]]) -> None:
    for dtype in ("fp32", "fp16", "bf16"):
        for dropout in (0.0, 0.3):
            for target in ("sm_80", "sm_90", "sm_100"):
                wanted = {"dtype": dtype, "dropout": dropout, "target": target, "shape": "usual"}
                names = [entry["kernel"] for entry in compiled if wanted.items() <= entry.items()]
                assert {name: names.count(name) for name in names} == KERNELS, wanted


def test_no_kernel_spills(compiled: list[dict[str, Any]]) -> None:
    assert [entry for entry in compiled if entry["stack"]] == []


def test_every_product_uses_the_tensor_cores(compiled: list[dict[str, Any]]) -> None:
    without = [entry for entry in compiled if not entry["tensor_core"]]
    assert [entry for entry in without if entry["kernel"] not in WITHOUT_PRODUCTS] == []


def test_shared_memory_lets_two_programs_run_on_a_multiprocessor(compiled: list[dict[str, Any]]) -> None:
    """sm_80, the smallest of the targets, has 164 KiB a multiprocessor; each program takes 1 KiB more."""
    assert [entry for entry in compiled if entry["shared"] > 81 * 1024] == []
