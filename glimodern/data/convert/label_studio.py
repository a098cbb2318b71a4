"""Label Studio: its label config, its tasks with annotations, and its regions. For entities in plain text.

A project's XML config names Text tags and the Labels tags that mark them:

    <View><Labels name="label" toName="text"><Label value="person"/></Labels><Text name="text" value="$text"/></View>

Two JSON exports are read. JSON: {"data": {"text": ...}, "annotations": [{"result": [region, ...]}]}, with regions
{"from_name", "to_name", "type": "labels", "value": {"start", "end", "text", "labels": [...]}}. JSON-MIN: {"text": ...,
"label": [{"start", "end", "text", "labels": [...]}], "annotation_id": ...}.

- Of several annotations of a task, the first that was not cancelled is read. Tasks without one are left out.
- Predictions are no gold, and are not read.
- Offsets count characters (code points). Label Studio wrote UTF-16 units until 2021
  (https://github.com/HumanSignal/label-studio/issues/1347). Regions repeat their text, so a task whose regions fit
  in UTF-16 units only is converted, and counted.
- The field of "data" with the text is "text", or else the only one that is a string, or `text_key`.

Sources: https://labelstud.io/guide/export, https://labelstud.io/guide/task_format
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from glimodern.display import short

from ..fields import BadRowError, LeftOutError

FROM_NAME, TO_NAME, TEXT_KEY = "label", "text", "text"  # of the tasks and configs that we write
_CONFIG = '<Labels toName="..."> with a <Label value="..."/> each, and the <Text value="$..."/> that it names'
_NO_ENTITIES = ("choices", "datetime", "number", "pairwise", "ranker", "rating", "relation", "taxonomy", "textarea")
"""Types of results that may stand beside entities and are none."""


# --- the label config --------------------------------------------------------------------------------------------


class Control(NamedTuple):
    """A Labels tag and the Text tag that it marks.

    from_name, to_name: the tags' names. key: the field of a task's "data" with the text. labels: what results have
    (a label's alias, if it has one) -> what the model reads (its hint, if it has one, else its value).
    """

    from_name: str
    to_name: str
    key: str
    labels: dict[str, str]


def read_config(xml: Any) -> list[Control]:
    """Return the controls of a label config that mark plain text. Raises TypeError, and ValueError for none."""
    if not isinstance(xml, str):
        raise TypeError(f"label_config: expected the XML of a label config, got {type(xml).__name__}")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ValueError(f"label_config: expected the XML of a label config, got {short(xml)} ({error})") from error
    texts = {tag.get("name"): tag for tag in root.iter("Text")}
    controls = []
    for tag in root.iter("Labels"):
        labels = {}
        for label in tag.iter("Label"):
            name = label.get("alias") or label.get("value") or ""
            if not name.strip():
                raise ValueError(f'label_config: expected a value="..." in each Label of {tag.get("name")!r}, got none')
            labels[name] = label.get("hint") or label.get("value") or name
        for name in (tag.get("toName") or "").split(","):
            text = texts.get(name.strip())
            if text is None or not labels:
                continue
            value = text.get("value") or ""
            if not value.startswith("$") or len(value) == 1 or text.get("valueType") == "url":
                raise ValueError(
                    f'label_config: expected value="$FIELD" in the Text {name.strip()!r}, with the text itself in the '
                    f"task, got {dict(text.attrib)}; import the texts into the tasks"
                )
            controls.append(Control(tag.get("name") or "", name.strip(), value[1:], labels))
    if not controls:
        raise ValueError(f"label_config: expected {_CONFIG}, got none in {short(xml)}; only plain text is read")
    return controls


def make_config(labels: Sequence[str]) -> str:
    """Return the XML of a label config for `task_of`. labels: the entity types."""
    root = ElementTree.Element("View")
    control = ElementTree.SubElement(root, "Labels", name=FROM_NAME, toName=TO_NAME)
    for label in labels:
        ElementTree.SubElement(control, "Label", value=label)
    ElementTree.SubElement(root, "Text", name=TO_NAME, value=f"${TEXT_KEY}")
    return ElementTree.tostring(root, encoding="unicode")


# --- writing -----------------------------------------------------------------------------------------------------


def region(
    text: str, span: tuple[int, int, str], number: int, names: tuple[str, str] = (FROM_NAME, TO_NAME)
) -> dict[str, Any]:
    """Return the region of an entity.

    span: (start, end, label) in characters. number: of the region in its annotation, which gives its id. names: of the
    Labels tag and of the Text tag.
    """
    start, end, label = span
    return {
        "id": f"entity-{number}",
        "from_name": names[0],
        "to_name": names[1],
        "type": "labels",
        "value": {"start": start, "end": end, "text": text[start:end], "labels": [label]},
    }


def task_of(text: str, spans: Sequence[tuple[int, int, str]]) -> dict[str, Any]:
    """Return a task with one annotation, for a project with the config of `make_config`. spans: as in `region`."""
    return {
        "data": {TEXT_KEY: text},
        "annotations": [{"result": [region(text, span, number) for number, span in enumerate(spans)]}],
    }


# --- reading -----------------------------------------------------------------------------------------------------


def is_label_studio(row: dict[str, Any]) -> bool:
    """Return whether the keys of a row are those of a task, or of JSON-MIN, and not those of a format with spans."""
    if "entities" in row or "spans" in row:
        return False
    if isinstance(row.get("data"), dict):
        return "text" not in row
    return "annotation_id" in row or any(_is_regions(value) for value in row.values())


def _is_regions(value: Any) -> bool:
    """Return whether a value of JSON-MIN is a list of regions."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(entry, dict) and {"start", "end", "labels"} <= entry.keys() for entry in value)
    )


def to_spans(row: dict[str, Any], notes: Counter[str], text_key: str | None, seen: set[Hashable]) -> dict[str, Any]:
    """Return a task in the format "spans".

    notes: counts what is not read or was converted. text_key: the field with the text. seen: the tasks of JSON-MIN that
    were read; that format has a row for each annotation. Raises BadRowError and LeftOutError.
    """
    if not isinstance(row.get("data"), dict):
        return _of_json_min(row, notes, text_key, seen)
    annotations = row.get("annotations", row.get("completions"))
    if annotations is not None and not (
        isinstance(annotations, list) and all(isinstance(one, dict) for one in annotations)
    ):
        raise BadRowError(f'"annotations": expected a list of objects, got {short(annotations)}')
    if not annotations:
        raise LeftOutError("not annotated")
    completed = [one for one in annotations if not one.get("was_cancelled")]
    if not completed:
        raise LeftOutError("annotation cancelled")
    if len(completed) > 1:
        notes["tasks with several annotations, of which the first is read"] += 1
    results = completed[0].get("result")
    if not isinstance(results, list):
        raise BadRowError(f'"result": expected a list of regions, [] for no entity, got {short(results)}')
    regions = []
    for result in results:
        kind = result.get("type") if isinstance(result, dict) else None
        if kind in _NO_ENTITIES:
            notes[f"results of the type {kind}, not read"] += 1
        elif kind == "labels" and isinstance(result.get("value"), dict):
            regions.append(result["value"])
        else:
            raise BadRowError(f'"result": expected regions of the type "labels", in plain text, got {short(result)}')
    text = _text_of(row["data"], text_key)
    return {"text": text, "entities": _entities(text, regions, notes)}


def _of_json_min(row: dict[str, Any], notes: Counter[str], text_key: str | None, seen: set[Hashable]) -> dict[str, Any]:
    task = row.get("id")
    if isinstance(task, (int, str)):
        if task in seen:
            raise LeftOutError("further annotation of a task")
        seen.add(task)
    regions = [entry for value in row.values() if _is_regions(value) for entry in value]
    text = _text_of(row, text_key)
    return {"text": text, "entities": _entities(text, regions, notes)}


def _text_of(data: Mapping[str, Any], text_key: str | None) -> str:
    key = text_key or (TEXT_KEY if TEXT_KEY in data else None)
    if key is None:
        strings = [name for name, value in data.items() if isinstance(value, str)]
        if len(strings) != 1:
            raise BadRowError(f'"data": expected a field "{TEXT_KEY}" or one string, got {strings}; name it (text_key)')
        key = strings[0]
    text = data.get(key)
    if not isinstance(text, str):
        raise BadRowError(f'"{key}": expected the text of the task, got {short(text)}; name its field (text_key)')
    return text


def _entities(text: str, regions: list[dict[str, Any]], notes: Counter[str]) -> list[dict[str, Any]]:
    """Return the regions as entities with offsets in characters; each label of a region is one."""
    for entry in regions:
        labels = entry.get("labels")
        if not isinstance(labels, list) or not labels:
            raise BadRowError(f'"labels": expected a label for each region, got {short(entry)}; label it, or delete it')
        if type(entry.get("start")) is not int or type(entry.get("end")) is not int:
            raise BadRowError(f'"value": expected whole character offsets, got {short(entry)}')
    spans = [(entry["start"], entry["end"]) for entry in regions]
    if not all(map(_fits, [text] * len(spans), spans, regions)):
        characters = _character_offsets(text)
        converted = [(characters.get(start, -1), characters.get(end, -1)) for start, end in spans]
        if all(map(_fits, [text] * len(spans), converted, regions)):
            notes["tasks whose offsets count UTF-16 units, converted to characters"] += 1
            spans = converted
        else:
            wrong = next(entry for entry, span in zip(regions, spans, strict=True) if not _fits(text, span, entry))
            raise BadRowError(
                f'"value": expected the text at its offsets, {short(text[wrong["start"] : wrong["end"]])}, got '
                f"{short(wrong)}, in characters or UTF-16 units",
                out_of_range=not 0 <= wrong["start"] < wrong["end"] <= len(text),
            )
    return [
        {"start": start, "end": end, "label": label}
        for (start, end), entry in zip(spans, regions, strict=True)
        for label in entry["labels"]
    ]


def _fits(text: str, span: tuple[int, int], entry: dict[str, Any]) -> bool:
    """Return whether the text at a span is that of its region, white space aside, if the region has one."""
    start, end = span
    recorded = entry.get("text")
    if not 0 <= start < end <= len(text):
        return False
    return not isinstance(recorded, str) or "".join(text[start:end].split()) == "".join(recorded.split())


def _character_offsets(text: str) -> dict[int, int]:
    """Return {offset in UTF-16 units: offset in characters} of the characters' edges."""
    offsets, units = {0: 0}, 0
    for index, character in enumerate(text):
        units += 2 if character > "\uffff" else 1
        offsets[units] = index + 1
    return offsets
