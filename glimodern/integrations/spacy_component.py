"""The spaCy component "glimodern", which finds entities in Docs with a checkpoint.

    nlp.add_pipe("glimodern", config={"model": "runs/demo/model", "labels": ["person", "city"]})

spaCy finds the component by its entry point and imports this file whenever a pipeline is built. Other modules of this
package are therefore imported only when a component is used. Scores are stored in `span._.score`, and in
`doc.spans[key].attrs["scores"]`, where spaCy's own span categorizer stores its scores.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    """The component's checked settings. `make_component` documents them."""

    model: str
    labels: tuple[str, ...] | Mapping[str, str]
    threshold: float | Mapping[str, float] | Literal["calibrated"]
    flat: bool
    multi_label: bool
    set_ents: bool
    overwrite_ents: bool
    spans_key: str | None
    alignment_mode: str
    dtype: str
    device: str
    revision: str | None
    long_texts: str | None
    window: int | str | None
    context: int | None
    labels_per_prompt: int | None

    def __post_init__(self) -> None:
        from glimodern.inference.checks import check_flag
        from glimodern.inference.request import Search

        from .asking import check_labels_and_threshold

        check_labels_and_threshold(self.labels, self.threshold)
        Search.checked(self.flat, self.multi_label)
        self.reading()
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
                "set_ents: expected flat and not multi_label, because doc.ents cannot overlap, got "
                f"flat={self.flat}, multi_label={self.multi_label}; set set_ents to false and give spans_key a name"
            )

    def reading(self) -> dict[str, Any]:
        """Return the options of long texts and many labels that were given, checked, as `predict` takes them."""
        from .asking import check_reading

        return check_reading(
            {name: getattr(self, name) for name in ("long_texts", "window", "context", "labels_per_prompt")}
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
        "long_texts": None,
        "window": None,
        "context": None,
        "labels_per_prompt": None,
    },
    default_score_weights={"ents_f": 1.0, "ents_p": 0.0, "ents_r": 0.0},
)
def make_component(
    nlp: Language,
    name: str,
    model: str,
    labels: list[str] | dict[str, str],
    threshold: Any,  # checked by ComponentConfig, with a message of one line
    flat: bool,
    multi_label: bool,
    set_ents: bool,
    overwrite_ents: bool,
    spans_key: str | None,
    alignment_mode: str,
    dtype: str,
    device: str,
    revision: str | None,
    long_texts: str | None,
    window: int | str | None,
    context: int | None,
    labels_per_prompt: int | None,
) -> "GLiModernComponent":
    """Create the component.

    model, dtype, device, revision: see `GLiModern.from_pretrained`. flat, multi_label, long_texts, window, context,
    labels_per_prompt: see `predict`; None: its default. labels: a list, or a mapping label -> description. threshold: a
    probability, a mapping label -> probability, in which "*" stands for all other labels, or "calibrated".
    set_ents: write to doc.ents. Existing entities stay; a found entity that overlaps one is left out.
    overwrite_ents: replace existing entities that overlap a found one.
    spans_key: write all entities, overlapping or not, to doc.spans[spans_key].
    alignment_mode: treatment of an entity that begins or ends inside a token, as in spaCy's Doc.char_span: "expand"
    includes the token, "contract" excludes it, "strict" drops the entity.
    """
    config = ComponentConfig(
        model, dict(labels) if isinstance(labels, Mapping) else tuple(labels), threshold, flat, multi_label, set_ents,
        overwrite_ents, spans_key, alignment_mode, dtype, device, revision, long_texts, window, context,
        labels_per_prompt,
    )  # fmt: skip
    return GLiModernComponent(name, config)


class GLiModernComponent(Pipe):
    """Finds entities in batches of Docs by `GLiModern.predict`.

    The checkpoint is loaded on first use: by the first Doc, by nlp.initialize(), or by from_disk. from_disk reads the
    copy that to_disk wrote, so a saved pipeline needs no other file. With nlp.pipe(n_process=...) each process has a
    copy of the model, and a forked process computes in one thread. A single process uses all cores.
    """

    def __init__(self, name: str, config: ComponentConfig, folder: Path | None = None) -> None:
        self.name = name
        self.config = config
        self.folder = folder  # the checkpoint's, None until it is resolved
        self.scorer = get_ner_prf if config.set_ents else None
        self._model: GLiModern | None = None
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        watch_forks()  # nlp.pipe(n_process=...) may fork before the model is loaded
        if not Span.has_extension("score"):
            Span.set_extension("score", default=None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.config, self.folder)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.config.labels)

    def load(self) -> "GLiModern":
        """Return the model, loaded on first use.

        This is a method, because spaCy treats an attribute `model` of a component as one of its own models.
        """
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
        """Annotate a stream of Docs, in order.

        batch_size: Docs that are read at a time; they are computed in batches of a token budget.
        """
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
            [doc.text for doc in docs], config.labels, config.threshold, config.flat, config.multi_label,
            progress=False, **config.reading(),
        )  # fmt: skip
        for doc, entities in zip(docs, results, strict=True):
            scored = []
            for entity in entities:
                bounds, label = (entity["start"], entity["end"]), entity["label"]
                span = doc.char_span(*bounds, label=label, alignment_mode=config.alignment_mode)
                if span is not None:
                    scored.append((span, entity["score"]))
            # Spans of the same words share the extension's value. The best score is written last.
            for span, score in sorted(scored, key=lambda pair: pair[1]):
                span._.score = score
            if len(scored) < len(entities):
                warnings.warn(
                    f"{self.name}: alignment_mode {config.alignment_mode!r} leaves out entities that do not begin and "
                    'end where tokens of spaCy do; "expand" keeps them',
                    stacklevel=2,
                )
            if config.spans_key is not None:
                scores = np.array([score for _, score in scored], dtype=np.float32)
                spans = [span for span, _ in scored]
                doc.spans[config.spans_key] = SpanGroup(
                    doc, name=config.spans_key, spans=spans, attrs={"scores": scores}
                )
            if config.set_ents:
                self._set_ents(doc, [span for span, _ in sorted(scored, key=lambda pair: -pair[1])])

    def _set_ents(self, doc: Doc, found: list[Span]) -> None:
        """Write doc.ents. found: the entities by descending score."""
        existing = list(doc.ents)
        kept: list[Span] = []
        taken: set[int] = set()
        for span in [*found, *existing] if self.config.overwrite_ents else [*existing, *found]:
            tokens = range(span.start, span.end)
            if taken.isdisjoint(tokens):
                taken.update(tokens)
                kept.append(span)
        doc.set_ents(kept, default="outside")
        if any(span not in kept for span in found):
            warnings.warn(
                f"{self.name}: entities that share a token with a better one, or with an existing one, are left out of "
                "doc.ents; doc.spans has all of them if spans_key names a place",
                stacklevel=3,
            )

    # saving and loading

    def initialize(self, get_examples: Callable[[], Iterable[Any]], *, nlp: Language | None = None) -> None:
        """Load the checkpoint. Nothing is trained."""
        self.load()

    def to_disk(self, path: str | os.PathLike[str], *, exclude: Iterable[str] = ()) -> None:
        """Copy the checkpoint from its source to a folder that GLiModern.from_pretrained can load.

        The component's dtype does not affect the copy. Raises FileNotFoundError if the source no longer exists.
        """
        from glimodern.checkpoint.folder import read_checkpoint, write_checkpoint

        stored = read_checkpoint(self._resolved())
        write_checkpoint(
            path, stored.config, stored.state, stored.tokenizer, stored.labels_tokenizer, stored.calibration
        )

    def from_disk(self, path: str | os.PathLike[str], *, exclude: Iterable[str] = ()) -> "GLiModernComponent":
        """Load the checkpoint that to_disk wrote, instead of the one that the config names."""
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
        self._unpacked = unpacked  # kept as long as the component, because to_disk copies from it
        return self.from_disk(unpacked.name)
