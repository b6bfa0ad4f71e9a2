"""Constructed sequences that show what a head does, and which tokens they and texts are made of."""

from __future__ import annotations

import string
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis.documents import Documents
from analysis.tokens import Encoder, decoded
from kernels.errors import DataError

KINDS = ("repeated", "permuted", "needle")
REFERENCES = 256  # tokens that an attended token's logit is ranked among
NEEDLE, CUE = 8, 2  # tokens of a needle, and how many of them are given to find it by
SHORTEST = 16  # tokens of a constructed sequence, at least


@dataclass(frozen=True, eq=False)
class Probe:
    """A constructed sequence of ordinary tokens.

    `ids` [T]; `rows` [R]: those of the second copy, of a needle those that predict its tokens;
    `references` [V]: tokens that are not in it (of a tiny vocabulary, any), to set the logits of
    its own against.
    """

    kind: str
    ids: torch.Tensor
    rows: torch.Tensor
    references: torch.Tensor


def make_probes(
    vocabulary: Sequence[int],
    *,
    start: Sequence[int],
    length: int,
    reach: int,
    each: int,
    seed: int,
) -> list[Probe]:
    """`each` sequences of every kind in KINDS, all of `length` tokens and led in by `start`.

    "repeated": random tokens among which one stretch comes twice; "permuted": the second time in
    random order; "needle": a short stretch comes again at the end. The distance between the two
    differs from sequence to sequence, so that no fixed offset finds the match, and is less than
    `reach`. Tokens are drawn from `vocabulary` without replacement where it is large enough.
    """
    rng = np.random.default_rng(seed)
    return [
        _probe(kind, rng, np.asarray(vocabulary), list(start), length, reach)
        for kind in KINDS
        for _ in range(each)
    ]


def _probe(
    kind: str,
    rng: np.random.Generator,
    vocabulary: np.ndarray,
    start: list[int],
    length: int,
    reach: int,
) -> Probe:
    room = length - len(start)
    body = rng.choice(vocabulary, room, replace=len(vocabulary) < room)
    reach = min(reach, room)
    if kind == "needle":
        size = min(NEEDLE, reach // 2)
        distance = int(rng.integers(max(size, reach // 2), max(size, reach - size) + 1))
        second = room - size
        first, rows = second - distance, range(second + CUE - 1, room - 1)
    else:
        distance = int(rng.integers(max(2, reach // 4), reach // 2 + 1))
        size = int(rng.integers((distance + 1) // 2, distance + 1))
        first = int(rng.integers(0, room - distance - size + 1))
        second = first + distance
        rows = range(second, second + size)
    copy = body[first : first + size]
    body[second : second + size] = rng.permutation(copy) if kind == "permuted" else copy
    others = np.setdiff1d(vocabulary, body)
    others = rng.permutation(others if len(others) else vocabulary)[:REFERENCES]
    ids = torch.tensor([*start, *body.tolist()])
    return Probe(kind, ids, torch.tensor(rows) + len(start), torch.from_numpy(others).long())


# ---------------------------------------------------------------- tokens


def start_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text, such as a start token; none without one."""
    return [] if tokenizer is None else Encoder(tokenizer).around[0]


def special_tokens(config: Any, tokenizer: Any) -> set[int]:
    """Ids that are no ordinary text: the tokenizer's special and added ones, the config's own."""
    special: set[int] = set()
    for which in ("bos", "eos", "pad"):
        ids = getattr(config, f"{which}_token_id", None)
        special.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    if tokenizer is not None:
        special |= set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return special


def ordinary_tokens(config: Any, tokenizer: Any) -> list[int]:
    """Ids of the model's vocabulary that ordinary text is made of."""
    size = config.vocab_size if tokenizer is None else min(config.vocab_size, len(tokenizer))
    special = special_tokens(config, tokenizer)
    found = [token for token in range(size) if token not in special]
    if len(found) < 2 * SHORTEST:
        raise DataError(
            f"the vocabulary has {len(found)} ordinary tokens; head roles need {2 * SHORTEST}"
        )
    return found


def delimiter_tokens(docs: Documents) -> torch.Tensor | None:
    """Ids of the documents' tokens that are punctuation or white space alone; None if unknown."""
    if docs.tokenizer is None:
        warnings.warn(
            f"{docs.name} has no tokenizer, so delimiters are not known and their column is NaN; "
            "give texts, or a model that has its tokenizer beside it",
            stacklevel=2,
        )
        return None
    special = set(docs.tokenizer.all_special_ids)
    present = torch.unique(torch.cat([item.ids for item in docs])).tolist()
    texts = {token: decoded(docs.tokenizer, [token]) for token in present if token not in special}
    return torch.tensor([token for token, text in texts.items() if all(map(_delimits, text))])


def _delimits(character: str) -> bool:
    return (
        character.isspace()
        or character in string.punctuation
        or unicodedata.category(character)[0] in "PZ"
    )
