"""Errors for unknown keyword arguments."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# gliner's and transformers' names of our options; a head's option, and the argument that overrides it
_OTHER_NAMES = {
    "map_location": "device",
    "torch_dtype": "dtype",
    "words_splitter_type": "splitter",
    "splitter": "words_splitter_type",
}


def refuse_keywords(function: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise TypeError for the first keyword argument that is not in `known`, with the most similar known name."""
    for name in given:
        if name in known:
            continue
        similar = [_OTHER_NAMES[name]] if name in _OTHER_NAMES else difflib.get_close_matches(name, known, 1)
        remedy = f"; {name} is called {similar[0]} here" if similar else ""
        raise TypeError(f"{function}: unexpected keyword argument {name!r}: expected {', '.join(known)}{remedy}")
