"""The model of the embedded demo: a tiny ModernBERT from scratch, with a tokenizer trained on the spot."""

from collections.abc import Iterable, Sequence
from typing import Any

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def train_tokenizer(texts: Iterable[Sequence[str]], labels: Iterable[str], vocab_size: int = 3000) -> Any:
    """A byte-level BPE tokenizer of the given words and labels, as a transformers fast tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join(words) for words in [*texts, *([label] for label in labels)]), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=1024,
    )


def encoder_config(vocab_size: int) -> Any:
    """A ModernBERT of about one million parameters beside its embeddings."""
    from transformers import ModernBertConfig

    options: dict[str, Any] = dict(
        vocab_size=vocab_size,
        hidden_size=160,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=5,
        global_attn_every_n_layers=2,
        local_attention=64,
        max_position_embeddings=1024,
        initializer_range=0.06,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )
    return ModernBertConfig(**options)
