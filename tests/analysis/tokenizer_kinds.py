"""Tokenizers of the kinds that models come with, each trained here on a few sentences.

The settings are those of the published tokenizers that are named.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

SENTENCES = [
    "total = sum(values) / len(values)",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "What is 17 + 25? It is 42.\n\nWhat is the capital of France? It is Paris.",
    "naïve café, 你好 world; \U0001f600 smiles at \U0001f680\n",
    "if x != 0:\n\tprint(x)  # a comment",
] * 4
SIZE = 420
LLAMA3 = (  # the published split
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _trained(made: Tokenizer, trainer: Any, text: Callable[[str], str] = str) -> Tokenizer:
    made.train_from_iterator([text(sentence) for sentence in SENTENCES], trainer)
    return made


def _around(made: Tokenizer, template: str) -> None:
    names = [name for name in template.split() if name != "$A"]
    special = [(name, made.token_to_id(name)) for name in names]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)


def _bytes_bpe(prefix: bool = False, start: bool = False, split: bool = False) -> Any:
    """GPT-2's, RoBERTa's (`prefix`: a space before every text) and Llama 3's (`split`)."""
    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not split)
    cut = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, level]) if split else level
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _trained(
        made,
        trainers.BpeTrainer(
            vocab_size=SIZE, initial_alphabet=sorted(alphabet), special_tokens=["<|end|>", "<s>"],
            show_progress=False,
        ),
    )  # fmt: skip
    trims = processors.ByteLevel(trim_offsets=True)
    made.post_processor = trims
    if start:
        _around(made, "<s> $A")
        made.post_processor = processors.Sequence([trims, made.post_processor])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<|end|>")


def _llama2() -> Any:
    """Llama 2's: a space put before every text by the normaliser, bytes for what is unknown."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * SIZE, special_tokens=special, limit_alphabet=40, show_progress=False
    )
    # Trained on words, as SentencePiece is: no token spans two.
    made.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    _trained(made, trainer)
    made.pre_tokenizer = None
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    _around(made, "<s> $A")
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def _mistral() -> Any:
    """Mistral's: the same by a Metaspace pre-tokenizer, at the first word alone."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    _trained(
        made,
        trainers.BpeTrainer(
            vocab_size=2 * SIZE, special_tokens=special, limit_alphabet=40, show_progress=False
        ),
    )
    _around(made, "<s> $A")
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def _t5() -> Any:
    """T5's: a unigram model of NFKC text, with an end token after every text and no start."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    _trained(made, trainer)
    _around(made, "$A </s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def _bert() -> Any:
    """BERT's: words cut into pieces, between [CLS] and [SEP]."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=SIZE, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    _trained(made, trainer)
    _around(made, "[CLS] $A [SEP]")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


KINDS: dict[str, Callable[[], Any]] = {
    "llama2": _llama2,
    "mistral": _mistral,
    "gpt2": _bytes_bpe,
    "prefix-space": lambda: _bytes_bpe(prefix=True),
    "llama3": lambda: _bytes_bpe(start=True, split=True),
    "wordpiece": _bert,
    "t5": _t5,
    "slow": ByT5Tokenizer,
}


@lru_cache
def tokenizer_of(kind: str) -> Any:
    """A tokenizer of the kind."""
    return KINDS[kind]()
