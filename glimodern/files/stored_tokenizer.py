"""Tokenizers that are read from their two files without transformers.

transformers takes seconds to import, and for many tokenizers it returns what `tokenizer.json` says. It changes others:
by classes of their own, by special tokens that the file lacks, by files of older versions. `read_stored_tokenizer`
knows the first kind, and leaves every other tokenizer to transformers.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"

_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")  # their backend is what the file says
# Files and fields by which transformers chooses another class, changes the backend or reads a template for chats.
_OTHER_FILES = (
    *("config.json", "added_tokens.json", "special_tokens_map.json"),
    *("chat_template.jinja", "additional_chat_templates"),
)
_OTHER_FIELDS = ("auto_map", "fast_tokenizer_files", "tokenizer_file", "max_len", "add_bos_token", "add_eos_token")
_OTHER_IF_SET = ("split_special_tokens", "bos_token", "eos_token")
_LISTS = ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens")
_SIDES = ("padding_side", "truncation_side")
_MISTRAL_SIZE = 100_000  # transformers looks for a wrong pattern of Mistral's in larger vocabularies
_NO_LIMIT = int(1e30)  # transformers' model_max_length of a tokenizer without a limit


class StoredTokenizer:
    """The Rust tokenizer of a folder, with the part of transformers' interface that prediction needs.

    backend_tokenizer: the Rust tokenizer. model_max_length: maximum tokens of a text; 1e30: no limit.
    """

    def __init__(self, backend: "Tokenizer", fields: dict[str, Any], folder: Path) -> None:
        self.backend_tokenizer = backend
        self.model_max_length = fields.get("model_max_length", _NO_LIMIT)
        self._fields, self._folder = fields, folder
        self._loaded: dict[str, Any] = {}

    def __len__(self) -> int:
        size: int = self.backend_tokenizer.get_vocab_size()
        return size

    @property
    def unk_token_id(self) -> int | None:
        """Id of the token for unknown words; None: there is none."""
        unknown = self._fields.get("unk_token")
        return None if unknown is None else self.backend_tokenizer.token_to_id(_text(unknown))

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a token; of an unknown one `unk_token_id`."""
        index: int | None = self.backend_tokenizer.token_to_id(token)
        return self.unk_token_id if index is None else index

    def whole(self) -> Any:
        """Return transformers' tokenizer of what was read, wherever the folder's files are now.

        It is loaded at the first call. All callers, in any thread, get the same one.
        """
        if not self._loaded:
            self._loaded.setdefault("whole", self._load())  # setdefault: of two threads, the first decides
        return self._loaded["whole"]

    def _load(self) -> Any:
        with tempfile.TemporaryDirectory() as name:
            self.backend_tokenizer.save(str(Path(name, TOKENIZER)))
            Path(name, TOKENIZER_CONFIG).write_text(json.dumps(self._fields), encoding="utf-8")
            tokenizer = load_tokenizer(name, local_files_only=True)
        tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = str(self._folder)
        return tokenizer


def whole_tokenizer(tokenizer: Any) -> Any:
    """Return transformers' tokenizer of a StoredTokenizer; any other tokenizer as it is."""
    return tokenizer.whole() if isinstance(tokenizer, StoredTokenizer) else tokenizer


def folder_tokenizer(folder: Path, *, add_bos_eos: bool = True) -> Any:
    """Read a folder's tokenizer, as a StoredTokenizer or by transformers. add_bos_eos: see `load_tokenizer`."""
    stored = read_stored_tokenizer(folder)
    return load_tokenizer(str(folder), add_bos_eos=add_bos_eos, local_files_only=True) if stored is None else stored


def read_stored_tokenizer(folder: Path) -> StoredTokenizer | None:
    """Read a folder's tokenizer as `load_tokenizer` does; None if transformers might read it otherwise.

    Raises ValueError for a tokenizer_config.json that is not JSON, and what tokenizers raises for a tokenizer.json that
    it cannot read.
    """
    if not all((folder / name).is_file() for name in (TOKENIZER, TOKENIZER_CONFIG)):
        return None
    if any((folder / name).exists() for name in _OTHER_FILES):
        return None
    fields = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    if not isinstance(fields, dict) or fields.get("tokenizer_class") not in _PLAIN_CLASSES:
        return None
    if any(name in fields for name in _OTHER_FIELDS):
        return None
    if any(fields.get(name) not in (None, False) for name in _OTHER_IF_SET):
        return None
    if any(fields.get(name, "right") not in ("right", "left") for name in _SIDES):
        return None
    if not isinstance(fields.get("model_max_length", 0), int):
        return None
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / TOKENIZER))
    plain = backend.post_processor is not None and backend.get_vocab_size() <= _MISTRAL_SIZE
    return StoredTokenizer(backend, fields, folder) if plain and _has_special_tokens(backend, fields) else None


def _has_special_tokens(backend: "Tokenizer", fields: dict[str, Any]) -> bool:
    """Whether the tokenizer file has all tokens that the config lists and names, flagged as the config says."""
    known = {str(index): _flags(token) for index, token in backend.get_added_tokens_decoder().items()}
    listed = fields.get("added_tokens_decoder", known)
    special = {token["content"] for token in known.values() if token["special"]}
    special &= {_text(token) for token in listed.values()}
    same = all(known.get(index) == token for index, token in listed.items())
    padding = backend.padding or {}  # names the padding token if the config does not
    named = fields if "pad_token" in fields else {**fields, "pad_token": padding.get("pad_token")}
    return same and all(token in special for token in _named_tokens(named))


def _named_tokens(fields: dict[str, Any]) -> Iterator[str]:
    """Yield the tokens that the fields name; a value of another type is yielded as a text that no token has."""
    for name, value in fields.items():
        if name.endswith("_token") and value is not None:
            yield _text(value)
        elif name in _LISTS:
            values = value.values() if isinstance(value, dict) else value
            yield from (_text(token) for token in values) if isinstance(value, (dict, list)) else (repr(value),)


def _text(token: Any) -> str:
    return str(token.get("content") if isinstance(token, dict) else token)


def _flags(token: Any) -> dict[str, Any]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: getattr(token, name) for name in names}
