"""Scripts without spaces, from data to entities: a small model learns names inside Chinese, Japanese and Thai texts."""

import itertools
import json
import sys

import pytest
from accelerate.state import AcceleratorState

from glimodern import GLiModern
from glimodern import evaluate as evaluate_command
from glimodern import predict as predict_command
from glimodern.checkpoint.config import read_config, stored_splitter
from glimodern.data import load_dataset
from glimodern.doctor import examine
from glimodern.inspect import __main__ as inspect_command
from glimodern.inspect import inspect
from glimodern.model.sharing import model_card
from glimodern.train.config import parse_train_config
from glimodern.train.demo import train_tokenizer
from glimodern.train.loop import train
from tests.conftest import make_tiny_model

# templates, people and places of each language
LANGUAGES = {
    "zh": (
        ["{person}昨天在{place}见到了老师。", "{person}住在{place}。", "医生{person}从{place}回来了。"],
        ["王小明", "李华", "陈美玲", "张伟"],
        ["北京", "上海", "广州", "南京"],
    ),
    "ja": (
        ["{person}さんは昨日{place}へ行きました。", "{person}さんは{place}に住む。", "医者の{person}は{place}出身。"],
        ["田中太郎", "佐々木ハナ", "鈴木一郎", "ジョン・スミス"],
        ["東京", "大阪", "京都", "ロンドン"],
    ),
    "th": (
        ["{person}เดินทางไป{place}เมื่อวานนี้", "{person}อาศัยอยู่ที่{place}", "หมอ{person}มาจาก{place}"],
        ["สมชาย", "มานี", "วิชัย", "น้ำฝน"],
        ["กรุงเทพ", "เชียงใหม่", "ภูเก็ต", "ลำปาง"],
    ),
}  # fmt: skip
LABELS = ["person", "place"]


def rows(keep):
    """Texts with character offsets; `keep` chooses among all combinations of template, person and place."""
    made = []
    for templates, people, places in LANGUAGES.values():
        for number, (template, person, place) in enumerate(itertools.product(templates, people, places)):
            if keep(number):
                text = template.format(person=person, place=place)
                spans = [(text.index(name), name, label) for name, label in ((person, "person"), (place, "place"))]
                entities = [{"start": at, "end": at + len(name), "label": label} for at, name, label in spans]
                made.append({"text": text, "entities": entities})
    return made


def write(path, items):
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return str(path)


def held_out(number):
    return number % 5 == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run: a tiny model, trained on most combinations with words_splitter_type unicode."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("unspaced")
    data = write(folder / "data.jsonl", rows(lambda number: not held_out(number)))
    test = write(folder / "new.jsonl", rows(held_out))
    words = [example.words for example in load_dataset(data, splitter="unicode")]
    tokenizer = train_tokenizer(words, LABELS, vocab_size=700)
    tokenizer.model_max_length = 128
    make_tiny_model(tokenizer, dropout=0.0, max_width=10, embed_ent_token=False).save_pretrained(folder / "start")
    report = train(
        parse_train_config(
            [
                *("--train-data", data, "--eval-data", test, "--init-from", str(folder / "start")),
                *("--words-splitter-type", "unicode", "--output-dir", str(folder / "run"), "--max-steps", "200"),
                *("--batch-size", "8", "--lr", "5e-3", "--head-lr", "5e-3", "--checkpoint-steps", "0"),
                *("--eval-steps", "0", "--no-progress", "--no-shuffle-types"),
            ]
        )
    )
    return folder, report


def test_training_reads_the_data_with_the_models_splitter(trained):
    folder, report = trained
    assert report["config"]["words_splitter_type"] == "unicode"
    assert report["evaluation"]["new"]["micro"]["f1"] > 0.95
    assert stored_splitter(folder / "run" / "model") == "unicode"
    assert stored_splitter(folder / "start") == "whitespace"


@pytest.mark.parametrize("language", LANGUAGES)
def test_entities_inside_an_unspaced_text(trained, language):
    """In sentences that training did not see, with offsets in characters."""
    model = GLiModern.from_pretrained(trained[0] / "run" / "model")
    templates, people, places = LANGUAGES[language]
    person, place = people[0], places[2]
    text = templates[0].format(person=person, place=place)
    assert text not in (trained[0] / "data.jsonl").read_text(encoding="utf-8")
    (found,) = model.predict([text], LABELS)
    assert [(entity["text"], entity["label"]) for entity in found] == [(person, "person"), (place, "place")]
    assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in found)
    assert inspect(model, text, LABELS).entities == list(found)


def test_the_argument_overrides_the_checkpoint(trained, tmp_path):
    folder = trained[0] / "run" / "model"
    text = "王小明住在广州。"
    other = GLiModern.from_pretrained(folder, splitter="whitespace")
    assert other.config.words_splitter_type == "whitespace"
    assert not any(entity["text"] == "王小明" for entity in other.predict(text, LABELS)[0])
    other.save_pretrained(tmp_path / "other")
    assert read_config(tmp_path / "other").words_splitter_type == "whitespace"
    again = GLiModern.from_pretrained(tmp_path / "other", splitter="unicode")
    assert [entity["text"] for entity in again.predict(text, LABELS)[0]] == ["王小明", "广州"]
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "gliner_config.json").read_text())["words_splitter_type"] == "unicode"
    report = again.check_precision([text], LABELS)
    assert report.agreement == 1.0
    with pytest.raises(ValueError, match="^splitter: expected one of 'whitespace', 'unicode', .*, got 'space'; choose"):
        GLiModern.from_pretrained(folder, splitter="space")


def test_a_fresh_head_has_the_splitter_as_an_option():
    assert make_tiny_model(words_splitter_type="unicode").config.words_splitter_type == "unicode"
    with pytest.raises(ValueError, match="words_splitter_type: expected one of .*, got 'words'"):
        make_tiny_model(words_splitter_type="words")


def test_names_of_the_option(trained):
    with pytest.raises(TypeError, match="words_splitter_type is called splitter here"):
        GLiModern.from_pretrained(trained[0] / "start", words_splitter_type="unicode")
    with pytest.raises(TypeError, match="splitter is called words_splitter_type here"):
        make_tiny_model(splitter="unicode")


def test_the_model_card_says_who_knows_the_splitter():
    model = make_tiny_model(words_splitter_type="unicode")
    assert 'Only glimodern has its splitter (`words_splitter_type` "unicode")' in model_card(
        "you/model", model.config, LABELS, {}
    )


def test_command_lines(trained, tmp_path, capsysbinary):
    folder = trained[0]
    model, plain = str(folder / "run" / "model"), str(folder / "start")
    evaluate_command.main([model, "--data", str(folder / "new.jsonl"), "--json", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())["mean_micro_f1"] > 0.95
    with pytest.raises(ValueError, match='"entities": expected a span of whole words'):  # a checkpoint of "whitespace"
        evaluate_command.main([plain, "--data", str(folder / "new.jsonl")])
    evaluate_command.main([plain, "--data", str(folder / "new.jsonl"), "--splitter", "unicode"])
    capsysbinary.readouterr()
    predict_command.main([model, "李华住在北京。", "--labels", "person,place"])
    assert [entity["text"] for entity in json.loads(capsysbinary.readouterr().out)["entities"]] == ["李华", "北京"]
    predict_command.main([model, "李华住在北京。", "--labels", "person,place", "--splitter", "whitespace"])
    assert json.loads(capsysbinary.readouterr().out)["entities"] == []
    page = str(tmp_path / "i.json")
    inspect_command.main([plain, "李华住在北京。", "--labels", "person", "--splitter", "unicode", "--json", page])
    assert [word["text"] for word in json.loads((tmp_path / "i.json").read_text())["words"]] == list("李华住在北京。")
    report = examine(model)
    assert report.ok and "'unicode'" in next(check.detail for check in report.checks if check.name == "splitter")


def test_the_demo_corpus_has_words_already(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    given = ["--words-splitter-type", "unicode", "--output-dir", str(tmp_path / "run")]
    with pytest.raises(
        ValueError, match="words_splitter_type: expected 'whitespace', .* got 'unicode'; give train_data"
    ):
        train(parse_train_config(given))


def test_readers_split_by_the_splitter(tmp_path):
    """Both formats that have a text; words that the data have stay."""
    question = {"from": "human", "value": "What describes place in the text?"}
    turns = [{"from": "human", "value": "Text: 李华住在北京。"}, {"from": "gpt", "value": "I've read this text."}]
    turns += [question, {"from": "gpt", "value": '["北京"]'}]
    path = write(tmp_path / "pile.json", [{"id": "1", "conversations": turns}])
    assert load_dataset(path)[0].entities == []
    example = load_dataset(path, splitter="unicode")[0]
    assert (example.words, example.entities) == (list("李华住在北京。"), [(4, 5, "place")])
    assert example.offsets == [(at, at + 1) for at in range(7)]
    path = write(tmp_path / "words.jsonl", [{"tokenized_text": ["李华", "住在", "北京"], "ner": [[2, 2, "place"]]}])
    assert load_dataset(path, splitter="unicode")[0].words == ["李华", "住在", "北京"]
    with pytest.raises(ValueError, match="^splitter: expected one of .*, got 'jiebba'"):
        load_dataset(path, splitter="jiebba")


def test_a_missing_package_stops_only_what_needs_it(tmp_path, monkeypatch):
    """A checkpoint of another splitter loads, and reads data that have words."""
    from glimodern.inputs import splitters

    splitters._built.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba3", None)
    path = write(tmp_path / "words.jsonl", [{"tokenized_text": ["李华", "住在", "北京"], "ner": [[2, 2, "place"]]}])
    assert len(load_dataset(path, splitter="jieba")) == 1
    path = write(tmp_path / "text.jsonl", [{"text": "李华住在北京", "entities": []}])
    with pytest.raises(ValueError, match="splitter: expected the package jieba3 for 'jieba'.*pip install jieba3"):
        load_dataset(path, splitter="jieba", skip_bad_rows=True)
    with pytest.raises(ValueError, match="^splitter: expected the package jieba3"):
        GLiModern.from_pretrained(tmp_path, splitter="jieba")
