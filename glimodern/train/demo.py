"""The models of the embedded demo: tiny encoders from scratch, and a tokenizer trained on the corpus."""

from collections.abc import Iterable, Sequence
from typing import Any

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# Each label is repeated in the tokenizer's training texts, as often as a common word, so that it becomes few tokens:
# prompts contain it in every sentence.
_LABEL_COUNT = 30


def train_tokenizer(texts: Iterable[Sequence[str]], labels: Iterable[str], vocab_size: int = 5000) -> Any:
    """Train a byte-level BPE tokenizer on words and labels. Returns a transformers fast tokenizer."""
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
    label_texts = [[label] for label in labels] * _LABEL_COUNT
    tokenizer.train_from_iterator((" ".join(words) for words in [*texts, *label_texts]), trainer)
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


_BERT: dict[str, Any] = dict(
    hidden_size=160,
    intermediate_size=320,
    num_hidden_layers=4,
    num_attention_heads=5,
    max_position_embeddings=1026,
    initializer_range=0.06,
)
# The first layer attends to four tokens on each side, and the rotary base is small. Attention that is initially uniform
# over a whole prompt takes hundreds of steps to find a label or a name's neighbours.
_LAYERS = ["sliding_attention", "full_attention"] * 2
_ROPE = {layer_type: {"rope_type": "default", "rope_theta": 1000.0} for layer_type in _LAYERS}
_T5: dict[str, Any] = dict(d_model=160, d_ff=320, d_kv=32, num_layers=4, num_heads=5)
# name -> (model_type, config fields); all encoders have about the same size
DEMO_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": (
        "modernbert",
        dict(
            _BERT,
            num_attention_heads=10,
            layer_types=_LAYERS,
            local_attention=8,
            rope_parameters=_ROPE,
            max_position_embeddings=1024,
        ),
    ),
    "demo-bert": ("bert", _BERT),
    "demo-roberta": ("roberta", _BERT),
    "demo-electra": ("electra", dict(_BERT, embedding_size=160)),
    "demo-mpnet": ("mpnet", _BERT),
    "demo-deberta-v3": (
        "deberta-v2",
        dict(
            _BERT,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            position_buckets=64,
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            type_vocab_size=0,
        ),
    ),
    "demo-t5": ("t5", _T5),
    "demo-nomic": ("nomic_bert", _BERT),
    "demo-eurobert": ("eurobert", dict(_BERT, mask_token_id=1)),
}


def encoder_config(vocab_size: int, name: str = "demo") -> Any:
    """Build the transformers config of a demo encoder. name: a key of DEMO_ENCODERS.

    The encoder has about one million parameters besides the embeddings.
    """
    from transformers import AutoConfig

    model_type, fields = DEMO_ENCODERS[name]
    special = dict(pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)
    return AutoConfig.for_model(model_type, vocab_size=vocab_size, **special, **fields)
