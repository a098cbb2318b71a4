"""A process that is forked after its parent has used threads answers, on one thread of its own."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

PROGRAM = """
import itertools, logging, os, sys, threading
how, bi = sys.argv[1], sys.argv[2] == "bi"
logging.basicConfig(format="%(message)s")
if "configured" in how:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
import torch
torch.set_num_threads(1 if "one" in how else 2)
from glimodern import GLiModern
from tests.conftest import WORDS
model = GLiModern.from_pretrained(sys.argv[3], dtype="fp32")
text, labels = " ".join(WORDS * 4), ["person", "place"]
stream = None
if "loaded" not in how:
    torch.ones(1000, 1000).sum()  # ATen's own region
    wanted = model.predict([text] * 60, labels, 0.4)
    stream = model.predict(itertools.repeat(text, 60), labels, 0.4, batch_tokens=256)
    next(stream)
if "held" in how and bi:
    model._types._lock.acquire()
child = os.fork()
if child:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if "loaded" not in how and not ("held" in how and bi):
        assert model.predict([text], labels, 0.4) == wanted[:1]
        assert torch.get_num_threads() == (1 if "one" in how else 2)
    sys.exit(code)
try:
    torch.ones(1000, 1000).sum()
    again = GLiModern.from_pretrained(sys.argv[3], trainable=True)  # before anything else asks for threads
    found = model.predict([text] * 60, labels, 0.4)
    assert "loaded" in how or found == wanted
    assert torch.get_num_threads() == 1
    assert stream is None or len(list(stream)) == 59
    again(again.packer.pack([WORDS], [labels], [[(0, 1, "person")]])).backward()
    if bi:
        assert len(model.encode_labels(["another"])) == 1
    thread = threading.Thread(target=model.predict, args=([text] * 30, labels))
    thread.start()
    thread.join()
except BaseException:
    import traceback
    traceback.print_exc()
    os._exit(1)
print("answered", flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from tests.bi_encoder_rows import save_encoder
    from tests.conftest import make_tiny_model
    from tests.test_bi_encoder import make_bi

    folder = tmp_path_factory.mktemp("forks")
    make_tiny_model(hidden_size=96).save_pretrained(folder / "uni")
    save_encoder(folder / "labels", "bert", 48, 330)
    make_bi(folder / "labels").save_pretrained(folder / "bi")
    return folder


@pytest.mark.parametrize(
    ("how", "kind"),
    [("predicted", "uni"), ("held configured", "bi"), ("loaded one thread", "uni")],  # each 5 s: a new interpreter
)
def test_a_forked_process_answers(folders, how, kind):
    environment = {k: v for k, v in os.environ.items() if k not in ("TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS")}
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, kind, str(folders / kind)],
        capture_output=True, text=True, timeout=120, env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert answer.returncode == 0 and answer.stdout.strip() == "answered", answer.stderr
    said = answer.stderr.count("this process was forked from one with a model")
    assert said == (0 if "one thread" in how else 1), answer.stderr


ACCELERATED = """
import os, sys
import torch
torch.set_num_threads(2)
from gliner import GLiNER
from glimodern import accelerate_gliner
model = GLiNER.from_pretrained(sys.argv[1])
texts = ["Ada Lovelace met Charles Babbage in London and wrote about the Analytical Engine."] * 40
with accelerate_gliner(model):
    wanted = model.inference(texts, ["person", "place"], threshold=0.4)
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    found = model.inference(texts, ["person", "place"], threshold=0.4)
    os._exit(0 if [[e["text"] for e in x] for x in found] == [[e["text"] for e in x] for x in wanted] else 1)
"""


def test_a_forked_accelerated_model_answers(shared):
    pytest.importorskip("gliner", reason="needs the extra peers")
    folder = str(shared / "checkpoints" / "gliner-minilm-mix")
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", ACCELERATED, folder]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "it runs on 1 thread, not 2" in ran.stderr
