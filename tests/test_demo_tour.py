"""The tour of the demo model: ten sentences outside the corpus, and what is told of each."""

import io

from rich.console import Console

from glimodern.data.demo import words
from glimodern.data.demo.kinds import FREQUENT_TYPES, RARE_TYPES
from glimodern.train.tour import TOUR, take_tour, tour_table


class Answers:
    """In the place of a model: for the first sentence one right entity and one wrong one, for the others nothing."""

    def predict(self, texts, labels, threshold):
        self.asked = labels
        start, end, label = TOUR[0].entities[0]
        right = {"start": start, "end": end, "text": texts[0][start:end], "label": label, "score": 0.9}
        wrong = {"start": 0, "end": 5, "text": texts[0][:5], "label": "award", "score": 0.6}
        return [[right, wrong], *([] for _ in texts[1:])]


def test_the_sentences_and_their_entities():
    known = {*FREQUENT_TYPES, *words.COARSE, *(label for labels in RARE_TYPES.values() for label in labels)}
    assert len(TOUR) == 10 and len({sentence.text for sentence in TOUR}) == 10
    for sentence in TOUR:
        assert not set("[]()") & set(sentence.text)
        assert sentence.entities
        for start, end, label in sentence.entities:
            assert sentence.text[start:end].strip() == sentence.text[start:end] != ""
            assert label in sentence.asked
        assert set(sentence.asked) <= known  # labels of training: the tour asks what the model could know
        assert len(sentence.asked) > len({label for *_, label in sentence.entities})


def test_what_is_told_of_each_sentence():
    model = Answers()
    rows = take_tour(model)
    assert model.asked == [list(sentence.asked) for sentence in TOUR]
    first = rows[0]
    assert first["text"] == TOUR[0].text
    assert first["found"] == [{"text": "Marie Curie", "label": "scientist", "score": 0.9}]
    assert first["spurious"] == [{"text": "Marie", "label": "award", "score": 0.6}]
    assert first["missed"] == [{"text": "Warsaw", "label": "city"}, {"text": "Paris", "label": "city"}]
    assert all(not row["found"] and not row["spurious"] and row["missed"] for row in rows[1:])


def test_the_table_holds_every_sentence():
    console = Console(width=200, record=True, file=io.StringIO())
    rows = take_tour(Answers())
    console.print(tour_table(rows))
    text = console.export_text()
    total = sum(len(sentence.entities) for sentence in TOUR)
    assert f"1 found, {total - 1} missed, 1 spurious" in text
    assert "Marie Curie (scientist)" in text and "Moby Dick (novel)" in text
