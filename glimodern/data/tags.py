"""Natural-language labels for CoNLL tags: "B-programlang" becomes "programming language".

A zero-shot model reads the label, so a tag without spaces or an abbreviation lowers accuracy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

# The tags of CrossNER's five domains (Liu et al. 2020, https://arxiv.org/abs/2012.04373), natural ones included.
CROSSNER_LABELS: dict[str, str] = {
    "academicjournal": "academic journal",
    "album": "album",
    "algorithm": "algorithm",
    "astronomicalobject": "astronomical object",
    "award": "award",
    "band": "band",
    "book": "book",
    "chemicalcompound": "chemical compound",
    "chemicalelement": "chemical element",
    "conference": "conference",
    "country": "country",
    "discipline": "discipline",
    "election": "election",
    "enzyme": "enzyme",
    "event": "event",
    "field": "field",
    "literarygenre": "literary genre",
    "location": "location",
    "magazine": "magazine",
    "metrics": "metrics",
    "misc": "miscellaneous",
    "musicalartist": "musical artist",
    "musicalinstrument": "musical instrument",
    "musicgenre": "music genre",
    "organisation": "organisation",
    "person": "person",
    "poem": "poem",
    "politicalparty": "political party",
    "politician": "politician",
    "product": "product",
    "programlang": "programming language",
    "protein": "protein",
    "researcher": "researcher",
    "scientist": "scientist",
    "song": "song",
    "task": "task",
    "theory": "theory",
    "university": "university",
    "writer": "writer",
}

# Abbreviations of CoNLL-2003 and OntoNotes; keys in lower case.
_ABBREVIATIONS: dict[str, str] = {
    "per": "person",
    "pers": "person",
    "loc": "location",
    "org": "organization",
    "gpe": "geopolitical entity",
    "norp": "nationality, religious or political group",
    "fac": "facility",
}

_WORD_EDGE = re.compile(r"[-_/\s]+|(?<=[a-z0-9])(?=[A-Z])")


@cache
def _built_in(tag: str) -> str:
    known = CROSSNER_LABELS.get(tag.lower()) or _ABBREVIATIONS.get(tag.lower())
    if known is not None:
        return known
    return " ".join(part for part in _WORD_EDGE.split(tag) if part).lower() or tag


def natural_label(tag: str, names: Mapping[str, str] | None = None) -> str:
    """Return the natural-language label of a tag without its prefix ("B-", "I-").

    Looks the tag up in `names` (tag -> label, exact match), then, ignoring case, in CrossNER's tags and the common
    abbreviations. Any other tag is split at "-", "_", "/" and inner capitals and lower-cased: "creative-work" and
    "CreativeWork" give "creative work".
    """
    if names is not None and tag in names:
        return names[tag]
    return _built_in(tag)
