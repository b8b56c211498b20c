"""Small models of every family, with similar tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizer, PreTrainedTokenizerFast

from interp_plugin.huggingface import HuggingFaceModel

TEXTS = [
    "The film was not bad , it was good and funny .",
    "A dull story with a bold and wonderful ending !",
    "I watched it twice : the actors were believable, the music unbelievable.",
    "New York is a city ; nobody knows why the good films are made there .",
]
VOCABULARY = 420
LIMIT = 40  # most tokens a model with learned positions takes
DEPTH = 2  # blocks; of a decoder beside an encoder, one more


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def _template(tokenizer: Tokenizer, single: str, pair: str) -> None:
    marks = {word for word in f"{single} {pair}".replace(":1", "").split() if not word.startswith("$")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in marks]
    )


@cache
def wordpiece() -> Tokenizer:
    """As BERT's: lower case, ``##`` before what continues a word."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=90, special_tokens=marks, show_progress=False))
    tokenizer.decoder = decoders.WordPiece()
    _template(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    return tokenizer


@cache
def byte_level(marks: tuple[str, ...], single: str = "", pair: str = "", trim: bool = True) -> Tokenizer:
    """As GPT-2's and RoBERTa's: every byte is a token at least."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _trained(
        tokenizer,
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=list(marks), initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.decoder = decoders.ByteLevel()
    if single:
        ends = [(mark, tokenizer.token_to_id(mark)) for mark in ("</s>", "<s>")]
        tokenizer.post_processor = processors.RobertaProcessing(
            *ends, trim_offsets=trim, add_prefix_space=False
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    return tokenizer


@cache
def unigram(marks: tuple[str, ...], single: str, pair: str) -> Tokenizer:
    """As T5's and XLM-R's: ``▁`` before what begins a word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    _trained(
        tokenizer,
        trainers.UnigramTrainer(
            vocab_size=120, special_tokens=list(marks), unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.decoder = decoders.Metaspace()
    _template(tokenizer, single, pair)
    return tokenizer


@cache
def byte_fallback(begin: str) -> Tokenizer:
    """As Llama's and Gemma's: ``▁`` for a space, bytes for what is not in the vocabulary."""
    marks = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    if begin:
        steps.insert(0, normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    _trained(tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=marks, show_progress=False))
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*pieces, decoders.Strip(" ", 1, 0)] if begin else pieces)
    _template(tokenizer, "<s> $A", "<s> $A $B:1")
    return tokenizer


def _fast(tokenizer: Tokenizer, inputs: list[str] | None = None, **marks: str) -> PreTrainedTokenizerFast:
    copy = Tokenizer.from_str(tokenizer.to_str())  # tokenizers keep state: padding, truncation
    return PreTrainedTokenizerFast(
        tokenizer_object=copy, model_input_names=inputs or ["input_ids", "attention_mask"], **marks
    )


def bert_tokenizer() -> PreTrainedTokenizerFast:
    return _fast(
        wordpiece(), ["input_ids", "token_type_ids", "attention_mask"], pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", model_max_length=512,
    )  # fmt: skip


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    marks = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    return _fast(
        byte_level(marks, "<s> $A </s>"), bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", mask_token="<mask>", cls_token="<s>", sep_token="</s>",
    )  # fmt: skip


def gpt2_tokenizer(trim: bool = True) -> PreTrainedTokenizerFast:
    """Without a padding token, as the real one."""
    end = "<|endoftext|>"
    return _fast(byte_level((end,), trim=trim), bos_token=end, eos_token=end, unk_token=end)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    words = unigram(("<pad>", "</s>", "<unk>"), "$A </s>", "$A </s> $B </s>")
    return _fast(words, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def xlmr_tokenizer() -> PreTrainedTokenizerFast:
    marks = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    words = unigram(marks, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    return _fast(
        words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
        cls_token="<s>", sep_token="</s>",
    )  # fmt: skip


def llama_tokenizer() -> PreTrainedTokenizerFast:
    return _fast(byte_fallback("▁"), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    return _fast(
        byte_fallback(""), bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        padding_side="left",
    )  # fmt: skip


class SlowTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """Written in Python, so without offsets: lower case, accents dropped, words cut to 4 letters and ``##``."""

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")

    def __init__(self, **settings: Any) -> None:
        letters = [chr(code) for code in range(33, 127)]
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
        words += ["the", "film", "un", "##be", "##liev", "##able", "good", "was"]
        self.words = {word: index for index, word in enumerate(words)}
        super().__init__(
            pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", **settings
        )

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.words)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        plain = normalizers.BertNormalizer(lowercase=True).normalize_str(text)
        return [piece for word in plain.split() for piece in self._cut(word)]

    def _cut(self, word: str) -> list[str]:
        pieces = []
        while word:
            mark = "##" if pieces else ""
            size = next((n for n in range(len(word), 0, -1) if mark + word[:n] in self.words), 0)
            pieces.append(mark + word[:size] if size else "[UNK]")
            word = word[max(size, 1) :]
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        return self.words.get(token, self.words["[UNK]"])

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.words)[index]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        begin, end = [self.words["[CLS]"]], [self.words["[SEP]"]]
        return begin + token_ids_0 + end + (token_ids_1 + end if token_ids_1 is not None else [])

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [0] * (len(token_ids_0) + 2) + [1] * (len(token_ids_1) + 1 if token_ids_1 is not None else 0)


@dataclass(frozen=True)
class Family:
    """An architecture: its configuration, its tokenizer, the classes to try."""

    kind: str
    settings: dict[str, Any]
    tokenizer: Callable[[], Any]
    classes: tuple[str, ...]
    final_norm: bool = False  # the last of hidden_states is the last block's output, normalised once more
    heads: tuple[int, int] = (2, 8)
    more: dict[str, Any] = field(default_factory=dict)


_ENCODER = {
    "hidden_size": 16, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": LIMIT,
}  # fmt: skip
_DECODER = {**_ENCODER, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
_ROBERTA = {**_ENCODER, "max_position_embeddings": LIMIT + 2, "pad_token_id": 1, "type_vocab_size": 1}
_T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": DEPTH, "num_decoder_layers": DEPTH + 1, "num_heads": 2,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_BART = {
    "d_model": 16, "encoder_layers": DEPTH, "decoder_layers": DEPTH + 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": LIMIT,
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    "forced_bos_token_id": None, "scale_embedding": True,
}  # fmt: skip


def _encoders(name: str, masked: str = "ForMaskedLM") -> tuple[str, ...]:
    return tuple(
        name + end for end in ("Model", "ForSequenceClassification", "ForTokenClassification", masked)
    )


def _decoders(name: str) -> tuple[str, ...]:
    return tuple(name + end for end in ("Model", "ForCausalLM", "ForSequenceClassification"))


FAMILIES = {
    "bert": Family("bert", _ENCODER, bert_tokenizer, _encoders("Bert")),
    "roberta": Family("roberta", _ROBERTA, roberta_tokenizer, _encoders("Roberta")),
    "xlm-roberta": Family("xlm-roberta", _ROBERTA, xlmr_tokenizer, _encoders("XLMRoberta")),
    "distilbert": Family(
        "distilbert",
        {"dim": 16, "n_layers": DEPTH, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": LIMIT},
        bert_tokenizer,
        _encoders("DistilBert"),
    ),
    "electra": Family(
        "electra", {**_ENCODER, "embedding_size": 8}, bert_tokenizer, _encoders("Electra")
    ),
    "deberta-v2": Family(
        "deberta-v2",
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
         "position_biased_input": False, "type_vocab_size": 0},
        bert_tokenizer,
        _encoders("DebertaV2"),
    ),
    "albert": Family(
        "albert", {**_ENCODER, "embedding_size": 8}, bert_tokenizer, _encoders("Albert")
    ),
    "modernbert": Family(
        "modernbert",
        {**_ENCODER, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2,
         "sep_token_id": 3, "local_attention": 8, "global_attn_every_n_layers": 2},
        bert_tokenizer,
        _encoders("ModernBert"),
        final_norm=True,
    ),
    "t5": Family(
        "t5", _T5, t5_tokenizer,
        ("T5Model", "T5ForConditionalGeneration", "T5ForSequenceClassification", "T5EncoderModel"),
        final_norm=True,
    ),
    "bart": Family(
        "bart", _BART, roberta_tokenizer,
        ("BartModel", "BartForConditionalGeneration", "BartForSequenceClassification"),
    ),
    "gpt2": Family(
        "gpt2",
        {"n_embd": 16, "n_layer": DEPTH, "n_head": 2, "n_positions": LIMIT, "bos_token_id": 0, "eos_token_id": 0},
        gpt2_tokenizer,
        ("GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2ForTokenClassification"),
        final_norm=True,
    ),
    "llama": Family("llama", _DECODER, llama_tokenizer, _decoders("Llama"), True),
    "qwen2": Family("qwen2", _DECODER, gpt2_tokenizer, _decoders("Qwen2"), True),
    "qwen3": Family("qwen3", _DECODER, gpt2_tokenizer, _decoders("Qwen3"), True),
    "gemma": Family("gemma", _DECODER, gemma_tokenizer, _decoders("Gemma"), True),
    "gemma2": Family("gemma2", {**_DECODER, "sliding_window": 6}, gemma_tokenizer, _decoders("Gemma2"), True),
    "gemma3": Family(
        "gemma3_text", {**_DECODER, "sliding_window": 6}, gemma_tokenizer,
        ("Gemma3TextModel", "Gemma3ForCausalLM"), True,
    ),
    "mistral": Family(
        "mistral", {**_DECODER, "sliding_window": 6}, llama_tokenizer, _decoders("Mistral"), True
    ),
}  # fmt: skip
CASES = [(family, name) for family, entry in FAMILIES.items() for name in entry.classes]


def exists(name: str) -> bool:
    """Whether this version of transformers has a class of this name."""
    return hasattr(transformers, name)


def model_of(family: str, name: str, **settings: Any) -> PreTrainedModel:
    """A model with random weights, the same each time."""
    torch.manual_seed(0)
    entry = FAMILIES[family]
    config = AutoConfig.for_model(entry.kind, **{"vocab_size": VOCABULARY, **entry.settings, **settings})
    return getattr(transformers, name)(config).eval()


def tiny(family: str, name: str, **settings: Any) -> HuggingFaceModel:
    """A model of this family and class with its tokenizer."""
    return HuggingFaceModel(model_of(family, name, **settings), FAMILIES[family].tokenizer())
