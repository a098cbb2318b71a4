"""Every Triton kernel compiles for its targets, without spills, on the tensor cores: bench/resources.py, without a GPU.

In a process of its own: TRITON_INTERPRET, which the other tests need without a GPU, replaces the compiler. Triton's
cache holds the results, so that only a changed kernel takes its seconds again.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
BENCH = Path(__file__).parents[1] / "bench"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
KERNELS = Path(__file__).parents[1] / "kernels"
JITTED = re.compile(r"^@triton\.jit.*\ndef (\w+_kernel)\(", re.MULTILINE)


def resources(tmp_path: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, JSON and output of bench/resources.py."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    file = tmp_path / "resources.json"
    command = [sys.executable, str(BENCH / "resources.py"), "--json", str(file), *options]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert file.exists(), run.stderr[-4000:]
    return run.returncode, json.loads(file.read_text()), run.stdout


def check_nvidia(status: int, entries: list[dict[str, Any]], output: str) -> None:
    assert status == 0, output
    assert [entry for entry in entries if entry["spills"]] == []
    assert [entry for entry in entries if entry["contraction"] and not entry["tensor_core"]] == []
    # Two warps a scheduler: one alone leaves it idle at every wait.
    assert [entry for entry in entries if entry["occupancy"] < 8 / 64] == []


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[dict[str, Any]], str, Path]:
    """The quick cases, dumped."""
    folder = tmp_path_factory.mktemp("resources")
    return *resources(folder, "--quick", "--dump", str(folder / "dump")), folder / "dump"


@pytest.mark.slow
def test_quick_cases_compile_without_spills_and_on_the_tensor_cores(quick) -> None:  # type: ignore[no-untyped-def]
    check_nvidia(*quick[:3])
    assert {entry["target"] for entry in quick[1]} == {"cuda:80", "cuda:90", "cuda:100"}


@pytest.mark.slow
def test_every_kernel_of_the_package_is_among_them(quick) -> None:  # type: ignore[no-untyped-def]
    """A kernel that bench/launches.py forgets would be compiled by nobody."""
    names = {name for path in KERNELS.glob("*.py") for name in JITTED.findall(path.read_text())}
    assert names == {entry["kernel"] for entry in quick[1]}


def read_cubin(path: Path) -> tuple[list[tuple[int, int]], str]:
    """(offset, bytes) of each argument, in order, and the kernel's symbol, from the ELF file's .nv.info."""
    text = subprocess.run([TOOLS / "cuobjdump", "-elf", path], capture_output=True, text=True, check=True).stdout
    fields = re.findall(r"Ordinal : 0x([0-9a-f]+)\s+Offset +: 0x([0-9a-f]+)\s+Size +: 0x([0-9a-f]+)", text)
    places = sorted(tuple(int(x, 16) for x in field) for field in fields)
    (symbol,) = set(re.findall(r"\.nv\.info\.(\w+)", text))
    return [(offset, size) for _, offset, size in places], symbol


@pytest.mark.slow
def test_dumped_json_agrees_with_the_code_object(quick) -> None:  # type: ignore[no-untyped-def]
    files = sorted(quick[3].rglob("*.json"))
    assert len(files) == len(quick[1])
    for file in files:
        about = json.loads(file.read_text())
        arguments, launch = about["arguments"], about["launch"]
        places, symbol = read_cubin(file.with_suffix(".cubin"))
        assert symbol == about["symbol"]
        offset, wanted = 0, []
        for argument in arguments:
            offset += -offset % argument["bytes"]  # aligned to its size
            wanted.append((offset, argument["bytes"]))
            offset += argument["bytes"]
        assert places == wanted, file.name
        visible = [argument for argument in arguments if "hidden" not in argument]
        assert list(launch["arguments"]) == [argument["name"] for argument in visible]
        for argument in visible:
            value = launch["arguments"][argument["name"]]
            assert isinstance(value, dict) == argument["type"].startswith("*"), argument
            if argument["multiple_of_16"] and isinstance(value, int):
                assert value % 16 == 0, argument
        assert launch["block"] == [32 * about["warps"], 1, 1] and min(launch["grid"]) >= 1
        assert about["dynamic_shared_bytes"] == about["shared"]


@pytest.mark.slow
def test_the_same_kernels_compile_for_amd(tmp_path: Path) -> None:
    """Spills are reported only; matrix instructions where the hardware has them: RDNA 3 has none for fp32."""
    targets = ("--target", "hip:gfx942", "--target", "hip:gfx1100")
    status, entries, output = resources(tmp_path, "--quick", *targets, "--dump", str(tmp_path / "dump"))
    assert status == 0, output
    for entry in entries:
        if entry["contraction"] and (entry["target"] == "hip:gfx942" or entry["dtype"] == "bf16"):
            assert any(re.match("v_s?[mw]", name) for name in entry["tensor_core"]), entry
    assert len(list((tmp_path / "dump").rglob("*.hsaco"))) == len(entries)


@pytest.mark.exhaustive
def test_every_case_compiles_without_spills_and_on_the_tensor_cores(tmp_path: Path) -> None:
    """Minutes, where Triton's cache holds none of it."""
    check_nvidia(*resources(tmp_path))


def test_occupancy_of_known_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, after the CUDA programming guide: limits by warps, registers and shared memory."""
    monkeypatch.syspath_prepend(str(BENCH))
    h100 = importlib.import_module("resources").MULTIPROCESSORS["cuda:90"]
    assert h100.occupancy(32, 0, 0, 8) == 1.0
    assert h100.occupancy(128, 0, 0, 4) == 0.25
    assert h100.occupancy(129, 0, 0, 4) == 12 / 64  # 136 registers: 3 blocks
    assert h100.occupancy(32, 100 * 1024, 0, 4) == 8 / 64
    assert h100.occupancy(32, 228 * 1024, 0, 4) == 0.0
    assert h100.occupancy(32, 0, 256, 4) == 8 / 64
