"""Short waits where other processes share the cores: the rule, and the further team that brings them about."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import WORDS, make_tiny_model

from glimodern import GLiModern
from glimodern.ops import PackedWeight, linear_packed

extension = pytest.importorskip("glimodern._C", reason="the C++ extension is not built")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not extension.openmp(), reason="needs Linux and an OpenMP build"
)

MS = 1_000_000


@pytest.fixture
def long_waits():
    """The usual state, before and after."""
    extension.set_short_waits(False, 2)
    yield
    extension.set_short_waits(False, 2)


@pytest.mark.parametrize(
    ("before", "ran", "waited", "shared"),
    [
        (False, 197 * MS, 6 * MS, False),  # idle cores, prediction
        (False, 197 * MS, 34 * MS, False),  # idle cores, training
        (False, 124 * MS, 78 * MS, True),  # one neighbour on two cores
        (False, 97 * MS, 111 * MS, True),  # two
        (True, 101 * MS, 72 * MS, True),  # one, with short waits
        (True, 160 * MS, 29 * MS, True),  # in between: as it was
        (False, 160 * MS, 29 * MS, False),
        (True, 160 * MS, 3 * MS, False),  # the neighbour has gone
        (True, 0, 0, False),
    ],
)
def test_the_rule(before, ran, waited, shared):
    assert extension.cores_are_shared(before, ran, waited) is shared


def test_the_further_team_makes_more_threads_than_cpus_and_goes_again():
    """In a process of its own: here threads of an earlier team may still be ending while they are counted."""
    script = (
        "import os, torch\n"
        "from glimodern import _C as extension\n"
        "threads = lambda: len(os.listdir('/proc/self/task'))\n"
        "working, before = torch.get_num_threads(), threads()\n"
        "assert extension.set_short_waits(True, working) and extension.short_waits()\n"
        "more = threads() - before\n"
        "# the thread that holds the team takes its own place in it\n"
        "assert more >= 2 and working + more - 1 > len(os.sched_getaffinity(0)), more\n"
        "assert extension.set_short_waits(True, working) and threads() - before == more  # there already\n"
        "assert not extension.set_short_waits(False, working) and not extension.short_waits()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("rows", [1, 45, 700])
def test_products_have_the_same_bits(long_waits, dtype, rows):
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, 96, generator=generator) for n in (rows, 200))
    packed = PackedWeight.pack(weight, dtype=dtype)
    usual = linear_packed(x, packed)
    extension.set_short_waits(True, torch.get_num_threads())
    assert torch.equal(linear_packed(x, packed), usual)


@pytest.fixture(scope="module", params=["modernbert", "minilm"])
def packed_model(request, tmp_path_factory):
    """One whose encoder runs as a chain: with rotary tables and windows, and without."""
    if request.param == "minilm":
        torch.manual_seed(0)
        model = GLiModern.from_encoder(request.getfixturevalue("minilm"), hidden_size=64)
    else:
        model = make_tiny_model()
    folder = tmp_path_factory.mktemp("contention") / request.param
    model.save_pretrained(folder)
    return GLiModern.from_pretrained(folder, dtype="fp32")


@pytest.mark.parametrize("words_only", [True, False])
def test_a_chain_by_texts_has_the_same_bits(long_waits, packed_model, words_only):
    """Threads take texts through all steps; rows are kept in any order."""
    texts = [WORDS * 3, WORDS[:1], WORDS, *(WORDS[i : i + 5] for i in range(12)), *([word] for word in WORDS * 4)]
    batch = packed_model.packer.pack(texts, [["person", "place"]] * len(texts))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(batch.input_ids), generator=generator)[:100] if words_only else None

    def hidden() -> torch.Tensor:
        with torch.inference_mode():
            return packed_model.encoder(batch.input_ids, batch.cu_seqlens, batch.max_seqlen, rows)

    usual = hidden()
    extension.set_short_waits(True, torch.get_num_threads())
    before = torch.get_num_threads()
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(hidden(), usual)
    finally:
        torch.set_num_threads(before)


def test_a_forked_child_starts_with_long_waits(long_waits):
    extension.set_short_waits(True, 2)
    child = os.fork()
    if child == 0:
        os._exit(int(extension.short_waits()) + 2 * int(not extension.set_short_waits(True, 1)))
    assert os.waitpid(child, 0)[1] == 0
    assert extension.short_waits()


def test_where_no_more_threads_can_be_started_waits_stay_long():
    """libgomp ends a process that asks it for a team and may not start a thread."""
    code = """
import os, resource
from glimodern import _C
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * os.sysconf("SC_PAGE_SIZE") + (4 << 20)  # no room for a thread's stack
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(_C.set_short_waits(True, 2), _C.short_waits())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("False False\n", 0), done.stderr


def test_texts_of_very_unequal_lengths_are_not_taken_one_a_thread(long_waits, packed_model):
    """The same bits, whichever way the chain chooses for a long text beside short ones, and for texts of no tokens."""
    encoder, generator = packed_model.encoder, torch.Generator().manual_seed(0)
    before = torch.get_num_threads()
    try:
        for lengths in ([100, 1, 1], [0, 90, 0, 0, 3], [0, 0, 30, 30, 0, 30, 30, 0]):
            cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
            ids = torch.randint(5, 100, (int(cu[-1]),), generator=generator)
            found = []
            for threads, short in ((1, False), (2, True), (6, True)):
                torch.set_num_threads(threads)
                extension.set_short_waits(short, threads)
                with torch.inference_mode():
                    found.append(encoder(ids, cu, max(lengths)))
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    finally:
        torch.set_num_threads(before)
