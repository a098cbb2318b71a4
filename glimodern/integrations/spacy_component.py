"""The spaCy component "glimodern": a checkpoint finds entities in Docs.

    nlp.add_pipe("glimodern", config={"model": "runs/demo/model", "labels": ["person", "city"]})

spaCy finds it by its entry point and imports this file whenever a pipeline is made, so nothing else of this package is
imported before a component exists. A score stands in `span._.score`, and in `doc.spans[key].attrs["scores"]`, where
spaCy's own span categorizer puts its.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import srsly
from spacy.language import Language
from spacy.pipeline import Pipe
from spacy.scorer import get_ner_prf
from spacy.tokens import Doc, Span, SpanGroup
from spacy.util import minibatch

from glimodern.runtime.forks import watch_forks

if TYPE_CHECKING:
    from glimodern.model.glimodern import GLiModern

_ALIGNMENTS = ("expand", "contract", "strict")


@dataclass(frozen=True)
class ComponentConfig:
    """The component's settings, checked; what each means, `make_component` says."""

    model: str
    labels: tuple[str, ...] | Mapping[str, str]
    threshold: float
    flat: bool
    multi_label: bool
    set_ents: bool
    overwrite_ents: bool
    spans_key: str | None
    alignment_mode: str
    dtype: str
    device: str
    revision: str | None

    def __post_init__(self) -> None:
        from glimodern.inference.request import Search, check_flag, check_labels

        if not check_labels(self.labels):
            raise ValueError("labels: expected at least one, such as ['person'], got none")
        Search.checked(self.threshold, self.flat, self.multi_label)
        check_flag("set_ents", self.set_ents)
        check_flag("overwrite_ents", self.overwrite_ents)
        if self.alignment_mode not in _ALIGNMENTS:
            raise ValueError(f"alignment_mode: expected one of {_ALIGNMENTS}, got {self.alignment_mode!r}")
        if not self.set_ents and self.spans_key is None:
            raise ValueError(
                "set_ents, spans_key: expected a place for the entities, got neither; give spans_key a name"
            )
        if self.set_ents and (self.multi_label or not self.flat):
            raise ValueError(
                f"set_ents: doc.ents cannot overlap, got flat={self.flat}, multi_label={self.multi_label}; set "
                "set_ents to false and give spans_key a name"
            )


@Language.factory(
    "glimodern",
    assigns=["doc.ents", "token.ent_iob", "token.ent_type", "doc.spans"],
    default_config={
        "threshold": 0.5,
        "flat": True,
        "multi_label": False,
        "set_ents": True,
        "overwrite_ents": False,
        "spans_key": None,
        "alignment_mode": "expand",
        "dtype": "auto",
        "device": "cpu",
        "revision": None,
    },
    default_score_weights={"ents_f": 1.0, "ents_p": 0.0, "ents_r": 0.0},
)
def make_component(
    nlp: Language,
    name: str,
    model: str,
    labels: list[str] | dict[str, str],
    threshold: float,
    flat: bool,
    multi_label: bool,
    set_ents: bool,
    overwrite_ents: bool,
    spans_key: str | None,
    alignment_mode: str,
    dtype: str,
    device: str,
    revision: str | None,
) -> "GLiModernComponent":
    """model, dtype, device, revision: as of GLiModern.from_pretrained; threshold, flat, multi_label: as of predict.
    labels: a list, or a mapping label -> description.

    set_ents: write to doc.ents; entities that stand there stay, and where one overlaps, ours is left out, or with
    overwrite_ents the one that stands there. spans_key: write to doc.spans[spans_key], overlapping or not.
    alignment_mode: of an entity that begins or ends inside a token: "expand" takes the token in, "contract" leaves it
    out, "strict" the entity (spaCy's Doc.char_span).
    """
    config = ComponentConfig(
        model, dict(labels) if isinstance(labels, Mapping) else tuple(labels), threshold, flat, multi_label, set_ents,
        overwrite_ents, spans_key, alignment_mode, dtype, device, revision,
    )  # fmt: skip
    return GLiModernComponent(name, config)


class GLiModernComponent(Pipe):
    """Finds entities in Docs, batches of them by way of `GLiModern.predict`.

    The checkpoint is loaded when it is first needed: by the first Doc, by nlp.initialize(), or by from_disk, which
    reads the copy that to_disk wrote, so a saved pipeline needs no other file. nlp.pipe(n_process=...) gives each
    process a copy of the model and, where processes are forked, one thread; one process uses all cores by itself.
    """

    def __init__(self, name: str, config: ComponentConfig, folder: Path | None = None) -> None:
        self.name = name
        self.config = config
        self.folder = folder  # of the checkpoint, once it is known
        self.scorer = get_ner_prf if config.set_ents else None
        self._model: GLiModern | None = None
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        watch_forks()  # a component without its model is forked too, by nlp.pipe(n_process=...)
        if not Span.has_extension("score"):
            Span.set_extension("score", default=None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.config, self.folder)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.config.labels)

    def load(self) -> "GLiModern":
        """The model; a method, as spaCy looks for an attribute `model` of any component when it links them."""
        if self._model is None:
            from glimodern.model.glimodern import GLiModern

            folder = self._resolved()
            self._model = GLiModern.from_pretrained(folder, dtype=self.config.dtype, device=self.config.device)
        return self._model

    def _resolved(self) -> Path:
        if self.folder is None:
            from glimodern.files.hub import HubAccess, resolve_folder

            self.folder = resolve_folder(self.config.model, HubAccess(self.config.revision)).absolute()
        return self.folder

    def __call__(self, doc: Doc) -> Doc:
        self._annotate([doc])
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Docs in order; batch_size of them are taken at a time and then computed in batches of a token budget."""
        handle_error = self.get_error_handler()
        for docs in minibatch(stream, size=batch_size):
            try:
                self._annotate(docs)
            except Exception as error:
                handle_error(self.name, self, docs, error)
            else:
                yield from docs

    def _annotate(self, docs: Sequence[Doc]) -> None:
        config = self.config
        results = self.load().predict(
            [doc.text for doc in docs], config.labels, config.threshold, config.flat, config.multi_label, progress=False
        )
        for doc, entities in zip(docs, results, strict=True):
            found = []
            for entity in entities:
                place, label = (entity["start"], entity["end"]), entity["label"]
                span = doc.char_span(*place, label=label, alignment_mode=config.alignment_mode)
                if span is not None:
                    found.append((span, entity["score"]))
            for span, score in sorted(found, key=lambda pair: pair[1]):  # of the same words under two labels, the best
                span._.score = score
            if len(found) < len(entities):
                warnings.warn(
                    f"{self.name}: alignment_mode {config.alignment_mode!r} leaves out entities that do not begin and "
                    'end where tokens of spaCy do; "expand" keeps them',
                    stacklevel=2,
                )
            if config.spans_key is not None:
                scores = np.array([score for _, score in found], dtype=np.float32)
                spans = [span for span, _ in found]
                doc.spans[config.spans_key] = SpanGroup(
                    doc, name=config.spans_key, spans=spans, attrs={"scores": scores}
                )
            if config.set_ents:
                self._set_ents(doc, [span for span, _ in sorted(found, key=lambda pair: -pair[1])])

    def _set_ents(self, doc: Doc, found: list[Span]) -> None:
        """found: by falling score."""
        standing = list(doc.ents)
        kept: list[Span] = []
        taken: set[int] = set()
        for span in [*found, *standing] if self.config.overwrite_ents else [*standing, *found]:
            tokens = range(span.start, span.end)
            if taken.isdisjoint(tokens):
                taken.update(tokens)
                kept.append(span)
        doc.set_ents(kept, default="outside")
        if any(span not in kept for span in found):
            warnings.warn(
                f"{self.name}: entities that share a token with a better one, or with one that stood in doc.ents, are "
                "left out of doc.ents; doc.spans has all of them where spans_key names a place",
                stacklevel=3,
            )

    # saving and loading

    def initialize(self, get_examples: Callable[[], Iterable[Any]], *, nlp: Language | None = None) -> None:
        """Load the checkpoint; there is nothing to learn."""
        self.load()

    def to_disk(self, path: str | os.PathLike[str], *, exclude: Iterable[str] = ()) -> None:
        """Write the checkpoint, as it was read whatever the dtype, to a folder that GLiModern.from_pretrained loads.

        It is copied from where it was read. Raises FileNotFoundError if it is there no longer.
        """
        from glimodern.checkpoint.folder import read_checkpoint, write_checkpoint

        stored = read_checkpoint(self._resolved())
        write_checkpoint(path, stored.config, stored.state, stored.tokenizer, stored.labels_tokenizer)

    def from_disk(self, path: str | os.PathLike[str], *, exclude: Iterable[str] = ()) -> "GLiModernComponent":
        """Load the checkpoint that to_disk wrote, in place of the one that the config names."""
        from glimodern.files.atomic import user_path

        self.folder, self._model = user_path(path).absolute(), None
        self.load()
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        with tempfile.TemporaryDirectory(prefix="glimodern-") as scratch:
            folder = Path(scratch) / "model"
            self.to_disk(folder)
            files = {
                file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
            }
        packed: bytes = srsly.msgpack_dumps(files)
        return packed

    def from_bytes(self, data: bytes, *, exclude: Iterable[str] = ()) -> "GLiModernComponent":
        unpacked = tempfile.TemporaryDirectory(prefix="glimodern-")
        for name, content in srsly.msgpack_loads(data).items():
            file = Path(unpacked.name) / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
        self._unpacked = unpacked  # lives as long as the component, which may be saved again
        return self.from_disk(unpacked.name)
