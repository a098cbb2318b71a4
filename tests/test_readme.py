"""Every command and program of README.md and docs/ runs as printed, and gives what its page shows.

A tiny model that has learnt the pages' own sentences stands in for the demo, a tiny encoder for the hub's, and three
steps for 5,000.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.fake_hub import FakeHub, in_place_of_the_hub

ROOT = Path(__file__).parents[1]
NOT_RUN = {"COMPATIBILITY.md", "LOG.md", "PERFORMANCE.md", "ROOFLINE.md"}  # records and computed tables
DOCS = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name not in NOT_RUN)
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *DOCS)}
LINKED = {**PAGES, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")}


class Block(NamedTuple):
    """A program or a list of commands, and the output that stands right below it, if any."""

    page: str
    number: int
    language: str
    source: str
    output: str | None

    @property
    def commands(self) -> list[str]:
        lines = self.source.replace("\\\n", " ").splitlines()
        return [line.split("  #")[0].strip() for line in lines if line.strip()]

    @property
    def makes(self) -> bool:
        """Whether its commands are targets of the Makefile, which other tests and CI run."""
        return self.commands[0].startswith("make ")

    def __str__(self) -> str:
        return f"{Path(self.page).stem}-{self.number}"


def read_blocks(page: str, text: str) -> list[Block]:
    fences = list(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    blocks: list[Block] = []
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] not in ("python", "bash"):
            continue
        below = after is not None and not after[1] and text[fence.end() : after.start()] == "\n\n"
        blocks.append(Block(page, len(blocks), fence[1], fence[2], after[2] if after and below else None))
    return blocks


BLOCKS = [block for page, text in PAGES.items() for block in read_blocks(page, text)]
PROGRAMS = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [block for block in BLOCKS if block.language == "bash"]


def said(output: str) -> list[Any]:
    """What an example printed, line by line, without what differs by machine: scores and other numbers with a point."""
    return [_value(line) for line in output.strip().splitlines()]


def _value(line: str) -> Any:
    try:
        value = json.loads(line) if line.startswith('{"') else ast.literal_eval(line)
    except (ValueError, SyntaxError):
        return re.sub(r"\d+\.\d+", "#", line)
    return _without_scores(value)


def _without_scores(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_scores(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_scores(one) for one in value]
    return "#" if isinstance(value, float) else value


# What the pages ask, and what they find.
LESSONS = (
    (
        "Dr. Amara Lindqvist operated on the patient at Saint Brigid Hospital.",
        {"surgeon": "Amara Lindqvist", "hospital": "Saint Brigid Hospital"},
    ),
    (
        "Dr. Amara Lindqvist operated on a patient at Saint Brigid Hospital.",
        {"surgeon": "Amara Lindqvist", "hospital": "Saint Brigid Hospital"},
    ),
    (
        "Emil Novak was taken to Saint Brigid Hospital with chest pain.",
        {"patient": "Emil Novak", "hospital": "Saint Brigid Hospital"},
    ),
    ("The band Blue Lantern will play in Berlin on Friday.", {"band": "Blue Lantern", "city": "Berlin"}),
)
LABELS = ["surgeon", "hospital", "patient", "band", "city", "disease"]


def gold(text: str, entities: dict[str, str]) -> tuple[list[str], list[tuple[int, int, str]]]:
    """The words of a sentence, and its entities by their first and last word."""
    from glimodern.inputs.words import split_words

    words = split_words(text)
    spans = {label: (text.index(name), text.index(name) + len(name)) for label, name in entities.items()}
    starts, ends = [word.start for word in words], [word.end for word in words]
    found = [(starts.index(start), ends.index(end), label) for label, (start, end) in spans.items()]
    return [word.text for word in words], found


def learnt_model() -> Any:
    """A tiny ModernBERT that finds the entities of LESSONS, whichever of LABELS are asked."""
    import random

    from transformers import ModernBertConfig

    from glimodern import GLiModern
    from glimodern.train.demo import train_tokenizer

    lessons = [gold(text, entities) for text, entities in LESSONS]
    tokenizer = train_tokenizer([words for words, _ in lessons], LABELS, vocab_size=400)
    tokenizer.model_max_length = 128
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        global_attn_every_n_layers=2, local_attention=16, max_position_embeddings=128, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GLiModern.from_encoder_config(config, tokenizer, dropout=0.0, max_width=4, embed_ent_token=False).train()
    steps, rng = 120, random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        asked = [rng.sample(LABELS, rng.randint(2, len(LABELS))) for _ in lessons]
        batch = model.packer.pack([words for words, _ in lessons], asked, [entities for _, entities in lessons])
        model(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Where a reader would stand after `make train`, with data files and an encoder of his own; tests copy it."""
    from safetensors.torch import save_file

    base = tmp_path_factory.mktemp("pages") / "base"
    model = learnt_model()
    model.save_pretrained(base / "runs" / "demo" / "model")
    rows = [{"tokenized_text": words, "ner": entities} for words, entities in (gold(*lesson) for lesson in LESSONS)]
    for name in ("train", "dev", "test"):
        (base / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    with (base / "dev.jsonl").open("a") as dev:  # a mistake of the model's, without which it cannot be calibrated
        dev.write(json.dumps({**rows[-1], "ner": rows[-1]["ner"][:1]}) + "\n")
    (base / "corpus").mkdir()
    texts = [json.dumps({"id": i, "text": text}) for i, (text, _) in enumerate(LESSONS)]
    (base / "corpus" / "a.jsonl").write_text("\n".join([*texts, '{"id": 9}']) + "\n")
    model.tokenizer.save_pretrained(base / "encoder")
    weights = {name: tensor.contiguous() for name, tensor in model.encoder.model.state_dict().items()}
    save_file(weights, base / "encoder" / "model.safetensors")
    (base / "encoder" / "config.json").write_text(json.dumps(model.encoder.config.to_dict()))
    return base


@pytest.fixture
def folder(base, tmp_path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "reader"))


OTHER_LIBRARIES = {
    "spacy": "the extra spacy",
    "presidio_analyzer": "the extra presidio",
    "haystack": "the extra haystack",
    "langchain_core": "the package langchain-core",
    "datasets": "the extra datasets",
}


def skip_without_extras(source: str) -> None:
    from glimodern.layers.packed_linear import can_pack

    for module, extra in OTHER_LIBRARIES.items():
        if re.search(rf"^(import|from) {module}\b", source, re.MULTILINE):
            pytest.importorskip(module, reason=f"needs {extra}")
    if "OnnxPredictor" in source:
        pytest.importorskip("onnx", reason="needs the extra onnx")
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    if "import GLiNER" in source:
        pytest.importorskip("gliner", reason="needs the extra peers (gliner)")
    if '"int8"' in source and not can_pack():
        pytest.skip("int8 needs the C++ extension on a CPU with AVX2")


# programs


def check_hub(names: dict[str, Any], hub: FakeHub, folder: Path) -> None:
    files = hub.repositories["you/hospitals"]["main"]
    assert {"gliner_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    assert b"license: mit" in files["README.md"] and b"['surgeon', 'hospital']" in files["README.md"]


def check_label_vectors(names: dict[str, Any], hub: FakeHub, folder: Path) -> None:
    model, vectors = names["model"], names["vectors"]
    assert vectors.labels == ("surgeon", "hospital", "band", "city")
    text = LESSONS[-1][0]
    by_labels = model.predict(text, list(vectors.labels), threshold=0.0)
    assert by_labels[0] and by_labels == model.predict(text, threshold=0.0, label_vectors=vectors)


def check_gradients(names: dict[str, Any], hub: FakeHub, folder: Path) -> None:
    assert names["loss"] > 0
    assert all(names[name].grad.isfinite().all() and names[name].grad.any() for name in "abuc")
    assert len(names["found"].score)


CHECKS: dict[str, Callable[[dict[str, Any], FakeHub, Path], None]] = {
    "push_to_hub": check_hub,
    "encode_labels": check_label_vectors,
    "ops.span_loss": check_gradients,
}


ADDRESS = "127.0.0.1:8000"  # of the server on the pages


class Served:
    """A server that was started by the command of docs/serving.md, but for the port."""

    def __init__(self, folder: Path) -> None:
        (block,) = (block for block in COMMANDS if " -m glimodern.serve " in block.source)
        (self.command,) = block.commands
        port = ADDRESS.partition(":")[2]
        command = self.command.replace(".venv/bin/python", sys.executable).replace(f"--port {port}", "--port 0")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command.split(), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        events: dict[str, Any] = {}
        for line in self.process.stderr:
            event = json.loads(line)
            events[event["event"]] = event
            if "ready" in events:
                break
        assert "ready" in events, events
        self.address = f"127.0.0.1:{events['listening']['port']}"
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # the log must not fill the pipe

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0


@pytest.fixture(scope="module")
def served(base) -> Iterator[Callable[[], Served]]:
    """A function that returns the server of the pages' model, started when it is first asked for."""
    pytest.importorskip("starlette", reason="needs the extra serve")
    started: list[Served] = []

    def server() -> Served:
        if not started:
            started.append(Served(base))
        return started[0]

    yield server
    for one in started:
        one.close()


def test_every_program_shows_what_it_prints():
    assert len(PROGRAMS) >= 8
    assert [str(block) for block in PROGRAMS if block.output is None] == []
    for call in CHECKS:
        assert any(call in block.source for block in PROGRAMS), f"no page calls {call}"


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_program(block, folder, served, monkeypatch, tmp_path, capsys):
    skip_without_extras(block.source)
    source = block.source
    if ADDRESS in source:
        pytest.importorskip("httpx", reason="needs the extra client")
        source = source.replace(ADDRESS, served().address)
    if "runs/bi/model" in block.source:
        from glimodern import GLiModern

        text_encoder = str(folder / "encoder")
        GLiModern.from_encoder(text_encoder, labels_encoder=text_encoder).save_pretrained(folder / "runs/bi/model")
    if "runs/demo/onnx" in block.source:
        from glimodern.export.write import export_model

        export_model(folder / "runs/demo/model", folder / "runs/demo/onnx")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    with in_place_of_the_hub(tmp_path / "cache") as hub:
        exec(source, names)
        printed = capsys.readouterr().out
        for call, check in CHECKS.items():
            if call in block.source:
                check(names, hub, folder)
    assert said(printed) == said(block.output)


# commands


def flag(command: str, name: str) -> str:
    words = command.split()
    return words[words.index(name) + 1]


def check_train(command: str, folder: Path, printed: str) -> None:
    output = folder / flag(command, "--output-dir")
    assert (output / "model" / "gliner_config.json").is_file()
    assert (output / "checkpoints").is_dir() and (output / "tensorboard").is_dir()
    assert [json.loads(line)["step"] for line in (output / "metrics.jsonl").open() if '"loss"' in line] == [1, 2, 3]
    report = json.loads((output / "report.json").read_text())
    assert report["steps"] == 3 and report["failed"] == {}
    if "--eval-data" in command:
        (scores,) = report["evaluation"].values()
        assert scores["micro"]["gold"] == sum(len(entities) for _, entities in LESSONS)
    if "--labels-encoder" in command:
        assert (output / "model" / "labels_tokenizer").is_dir()


def check_evaluate(command: str, folder: Path, printed: str) -> None:
    (data,) = json.loads((folder / flag(command, "--json")).read_text())["data"].values()
    assert 0.0 <= data["micro"]["f1"] <= 1.0
    assert all(label in printed for label in LABELS[:5])


def check_calibrate(command: str, folder: Path, printed: str) -> None:
    assert "common threshold" in printed
    assert (folder / "runs" / "demo" / "model" / "calibration.json").is_file()
    plots = folder / flag(command, "--plots")
    assert all((plots / name).is_file() for name in ("reliability.png", "f1.png"))


def check_inspect(command: str, folder: Path, printed: str) -> None:
    assert "2 entities above 0.5" in printed and "Blue Lantern" in printed
    page = (folder / flag(command, "--html")).read_text()
    assert page.lower().startswith("<!doctype html") and "Blue Lantern" in page


def check_doctor(command: str, folder: Path, printed: str) -> None:
    assert printed.rstrip().endswith("no check failed")


def check_compare(command: str, folder: Path, printed: str) -> None:
    rows = json.loads((folder / flag(command, "--output-dir") / "compare.json").read_text())["rows"]
    assert [row["encoder"] for row in rows] == flag(command, "--encoders").split(",")
    assert all(row.get("error") is None and row["steps"] == 3 for row in rows)


def check_figures(command: str, folder: Path, printed: str) -> None:
    output = folder / flag(command, "--output")
    assert {path.name for path in output.iterdir()} == {
        *("lengths.png", "lengths.svg", "overlap.png", "overlap.svg", "figures.json"),
    }
    (seen,) = json.loads((output / "figures.json").read_text())["eval"]
    assert seen["overlap"]["entities"]["share_exact"] == 1.0 and seen["overlap"]["types"]["total"] == 5


def check_convert(command: str, folder: Path, printed: str) -> None:
    assert f"{len(LESSONS)} texts, {sum(len(entities) for _, entities in LESSONS)} entities" in printed
    assert (folder / command.split(" --to ")[0].split()[-1]).is_file()


def check_curl(command: str, folder: Path, printed: str) -> None:
    assert json.loads(printed)["entities"]


def check_jobs(command: str, folder: Path, printed: str) -> None:
    output = folder / flag(command, "--output")
    rows = [json.loads(line) for line in (output / "part-00000-000000.jsonl").read_text().splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [(i, text) for i, (text, _) in enumerate(LESSONS)]
    assert {entity["text"] for entity in rows[2]["entities"]} == {"Emil Novak", "Saint Brigid Hospital"}
    assert len((output / "errors.jsonl").read_text().splitlines()) == 1
    assert "rows             5" in printed and (output / "summary.json").is_file()


def check_predict(command: str, folder: Path, printed: str) -> None:
    assert said(printed), "predict prints a row a text; the block's output is compared too"


def check_export(command: str, folder: Path, printed: str) -> None:
    output = folder / command.split()[4]
    assert (output / "model.onnx").is_file() and (output / "tokenizer.json").is_file()
    assert "100.0 % agreement" in printed


OUTCOMES = {
    "train": check_train, "evaluate": check_evaluate, "predict": check_predict, "inspect": check_inspect,
    "doctor": check_doctor, "compare": check_compare, "data.figures": check_figures, "calibrate": check_calibrate,
    "data.convert": check_convert, "curl": check_curl, "jobs": check_jobs, "export": check_export,
}  # fmt: skip
STAND_INS = {
    ".venv/bin/python": sys.executable,
    "answerdotai/ModernBERT-base": "encoder",
    "sentence-transformers/all-MiniLM-L6-v2": "encoder",
    "--max-steps 5000": "--max-steps 3",
}


def run(command: str, folder: Path, served: Callable[[], Served]) -> str:
    """The output of a page's command, checked by what it leaves behind."""
    module = re.search(r"(?:\.venv/bin/python -m glimodern\.|^(?=curl ))([\w.]+) ", command)
    assert module, f"a page shows a command that no test knows: {command}"
    if module[1] == "serve":
        assert command == served().command
        return ""
    if ADDRESS in command:
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        command = command.replace(ADDRESS, served().address)
    for shown, tested in STAND_INS.items():
        command = command.replace(shown, tested)
    if module[1] == "data.figures":
        pytest.importorskip("matplotlib", reason="needs the extra plots")
    if "--lora-rank" in command:
        pytest.importorskip("peft", reason="needs the extra lora")
    if "--ray" in command:
        pytest.importorskip("ray", reason="needs the extra ray")
    if module[1] == "export":
        pytest.importorskip("onnx", reason="needs the extra onnx")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    answer = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
    OUTCOMES[module[1]](command, folder, answer.stdout)
    return answer.stdout


def test_every_command_line_is_shown():
    shown = {name for block in COMMANDS for name in re.findall(r"-m glimodern\.([\w.]+) ", block.source)}
    assert shown == {*OUTCOMES, "serve"} - {"curl"}


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in COMMANDS if not block.makes}))
def test_commands_in_order(page, folder, served):
    if "--plots" in PAGES[page]:
        pytest.importorskip("matplotlib", reason="needs the extra plots")
    for block in COMMANDS:
        if block.page == page and not block.makes:
            printed = "".join(run(command, folder, served) for command in block.commands)
            assert block.output is None or said(printed) == said(block.output)


MAKE = {"make train": "-m glimodern.train --config configs/demo.yaml", "make test": "-m pytest"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_targets():
    """The targets that stand in blocks do what they say; CI runs them. Those in the text exist."""
    shown = {command for block in COMMANDS if block.makes for command in block.commands}
    assert shown == MAKE.keys()
    for command, runs in MAKE.items():
        steps = subprocess.run(["make", "--dry-run", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True)
        assert steps.returncode == 0 and runs in steps.stdout, steps.stderr
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in LINKED.values() for name in re.findall(r"`make ([a-z-]+)", text)}
    assert named <= targets


# what pages say of files


def anchors(text: str) -> set[str]:
    """The names that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", LINKED[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


FILES = [
    f"/{path.relative_to(ROOT)}"
    for top in ("bench", "configs", "csrc", "deploy", "docs", "examples", "glimodern", "kernels", "tests")
    for path in (ROOT / top).rglob("*.*")
] + [f"/{path.name}" for path in ROOT.iterdir()]


@pytest.mark.parametrize("page", LINKED)
def test_files_that_a_page_names_exist(page):
    for name in re.findall(r"`([\w./-]+\.(?:py|cpp|h|md|yaml|txt|toml))`", LINKED[page]):
        if not re.search(r"(?<![A-Za-z])(OP|NAME)(?![A-Za-z])", name):  # placeholders of the recipes
            assert any(file.endswith(f"/{name}") for file in FILES), f"{page}: {name}"


def test_the_paths_through_the_files_are_those_of_the_code():
    """A step of docs/ARCHITECTURE.md names a file, and functions that are defined in it."""
    rows = re.findall(r"^\|[^|]*\| `([\w/]+\.py)` \| (.+) \|$", PAGES["docs/ARCHITECTURE.md"], re.MULTILINE)
    assert len(rows) > 25
    for file, names in rows:
        tree = ast.parse((ROOT / "glimodern" / file).read_text(encoding="utf-8"))
        defined = set()
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                defined.add(node.name)
            if isinstance(node, ast.ClassDef):
                methods = (inner for inner in node.body if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)))
                defined |= {f"{node.name}.{inner.name}" for inner in methods}
        assert set(re.findall(r"`([\w.]+)`", names)) <= defined, file


def test_the_packed_batch_on_the_page():
    """The tensors that docs/ARCHITECTURE.md shows for two texts are those that the packer makes."""
    from glimodern.inputs.batch import batch_of
    from glimodern.inputs.packer import PromptPacker
    from glimodern.train.demo import train_tokenizer

    texts, types = ["Ada met Charles .".split(), ["London"]], [["person", "place"], ["place"]]
    tokenizer = train_tokenizer(texts * 9, types[0], vocab_size=400)  # each word is one token
    tokenizer.add_special_tokens({"additional_special_tokens": ["<<ENT>>", "<<SEP>>"]})
    options = {"max_width": 12, "max_words": 99, "max_tokens": 99}
    packer = PromptPacker(
        tokenizer.backend_tokenizer, as_batch=batch_of, ent_token="<<ENT>>", sep_token="<<SEP>>", **options
    )
    batch = packer.pack(texts, types, [[(0, 0, "person"), (2, 2, "person")], [(0, 0, "place")]])
    for name in ("cu_seqlens", "word_index", "cu_words", "type_index", "cu_types", "positives"):
        (shown,) = re.findall(rf"^{name} +([\d,; ]+\d) ", PAGES["docs/ARCHITECTURE.md"], re.MULTILINE)
        assert [int(number) for number in re.findall(r"\d+", shown)] == getattr(batch, name).flatten().tolist(), name


def test_the_layout_is_the_contract():
    """The floors of docs/ARCHITECTURE.md and the tree of README.md are those that import-linter holds."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    floors = [set(layer.split(" | ")) for layer in layers]
    rows = re.findall(r"^\| \d+ \| (.+?) \|", PAGES["docs/ARCHITECTURE.md"], re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == floors
    tree = PAGES["README.md"].split("glimodern/ ", 1)[1].split("\nkernels/", 1)[0]
    named = set(re.findall(r"\w+", tree))
    assert set().union(*floors) - {"version"} <= named
