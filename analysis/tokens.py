"""Texts and tasks as token ids: one way for all, that of `tokenizer(text)`.

A task's prompt and answer are tokenized together and parted where the answer's first character
stands, so that the model reads what it would read of the whole text. An end token that the
tokenizer appends is taken off; where it puts a start token, exactly one stands at the start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from analysis.rows import Row
from kernels.errors import DataError
from kernels.reading import in_one_line, said

BOS = ("first", "every", "none")
PROBES = ("a", "1", "the")  # texts that a tokenizer is asked for, to see what it puts around them


@dataclass(frozen=True)
class Placed:
    """A task's ids, and where its answer begins among them.

    `inside`: whether the answer's first token begins in the prompt; `empty`: whether the answer has
    no token.
    """

    ids: list[int]
    answer: int
    inside: bool = False
    empty: bool = False


class Encoder:
    """A tokenizer, and which windows begin with its start token.

    bos: "first", the first window of each document, where the tokenizer adds a start token;
    "every", every window, with the tokenizer's start token even where it adds none of itself;
    "none", no window, even where it would.
    """

    def __init__(self, tokenizer: Any, bos: str = "first") -> None:
        self.tokenizer, self.bos = tokenizer, bos

    # ------------------------------------------------ what the tokenizer puts around a text

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """What it puts before every text, and after."""
        begin, end = (getattr(self.tokenizer, f"{name}_token_id", None) for name in ("bos", "eos"))
        for probe in PROBES:
            (plain,), (whole,) = self._call([probe], special=False), self._call([probe])
            # Some put their tokens whatever they are asked.
            plain = plain[1:] if len(plain) > 1 and plain[0] == begin else plain
            plain = plain[:-1] if len(plain) > 1 and plain[-1] == end else plain
            size = len(plain)
            for at in range(len(whole) - size + 1 if plain else 0):
                if whole[at : at + size] == plain:
                    return whole[:at], whole[at + size :]
        return [], []

    @cached_property
    def start(self) -> list[int]:
        """What stands for a start: what the tokenizer puts before a text, or its `bos_token`."""
        known = getattr(self.tokenizer, "bos_token_id", None)
        start = self.around[0] or ([] if known is None else [known])
        if self.bos == "every" and not start:
            raise DataError(
                "this tokenizer has no start token (bos_token), so windows cannot begin with one; "
                'leave bos="first"'
            )
        return start

    def _call(self, texts: list[str], special: bool = True) -> list[list[int]]:
        if not texts:
            return []
        # Windows are cut later: nothing is truncated here, and nothing is too long to warn about.
        with in_one_line(_unread):
            found = self.tokenizer(
                texts,
                add_special_tokens=special,
                truncation=False,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            return [list(ids) for ids in found]

    def _bodies(self, texts: list[str]) -> list[list[int]]:
        """The ids of the texts alone."""
        before, after = self.around
        bodies = []
        for ids in self._call(texts):
            if before and ids[: len(before)] == before:
                ids = ids[len(before) :]
            if after and ids[-len(after) :] == after:
                ids = ids[: -len(after)]
            bodies.append(ids)
        return bodies

    def begun(self, body: list[int]) -> tuple[list[int], int]:
        """The ids of a text with its start as asked for, and how far that moved them.

        A text that begins with the start token itself, as a chat template's does, gets no other.
        """
        start, own = self.start, 0
        while start and body[own : own + len(start)] == start:
            own += len(start)
        lead = start if self.bos == "every" or own else self.around[0]
        lead = [] if self.bos == "none" else lead
        return lead + body[own:], len(lead) - own

    # ------------------------------------------------ texts and tasks

    def texts(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text."""
        return [self.begun(body)[0] for body in self._bodies(texts)]

    def tasks(self, pairs: Sequence[tuple[str, str]]) -> list[Placed]:
        """The ids of prompt and answer together, and where the answer's begin.

        A token that spans the boundary is the answer's.
        """
        wholes = [prompt + answer for prompt, answer in pairs]
        bodies = self._bodies(wholes)
        offsets = self._offsets(wholes, bodies)
        slow = [at for at, spans in enumerate(offsets) if spans is None]
        alone = dict(zip(slow, self._bodies([pairs[at][0] for at in slow]), strict=True))
        placed = []
        for at, ((prompt, _), body, spans) in enumerate(zip(pairs, bodies, offsets, strict=True)):
            if spans is None:
                answer = _common(body, alone[at])
                inside = answer < len(alone[at])
            else:
                answer = next((i for i, (_, e) in enumerate(spans) if e > len(prompt)), len(body))
                inside = answer < len(body) and spans[answer][0] < len(prompt)
            answer = answer if prompt else 0
            ids, moved = self.begun(body)
            # Without a prompt or a start token the first token is given: nothing predicts it.
            first = max(1, answer + moved)
            placed.append(Placed(ids, first, bool(prompt) and inside, answer >= len(body)))
        return placed

    def _offsets(
        self, texts: list[str], bodies: list[list[int]]
    ) -> list[list[tuple[int, int]] | None]:
        """First and last character (exclusive) of each token; None where they are not known."""
        backend = self._backend
        if backend is None or not texts:
            return [None] * len(texts)
        with in_one_line(_unread):
            found = backend.encode_batch(texts, add_special_tokens=False)
        return [
            list(one.offsets) if list(one.ids) == body else None
            for one, body in zip(found, bodies, strict=True)
        ]

    @cached_property
    def _backend(self) -> Any:
        """The fast tokenizer without its post-processor, which may trim offsets; None if slow."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or not hasattr(backend, "get_added_tokens_decoder"):
            return None
        from tokenizers import Tokenizer

        with in_one_line(_unread):
            bare = Tokenizer(backend.model)  # shared, not copied
            if backend.normalizer is not None:
                bare.normalizer = backend.normalizer
            if backend.pre_tokenizer is not None:
                bare.pre_tokenizer = backend.pre_tokenizer
            for _, token in sorted(backend.get_added_tokens_decoder().items()):
                (bare.add_special_tokens if token.special else bare.add_tokens)([token])
            bare.encode_special_tokens = backend.encode_special_tokens
        return bare

    # ------------------------------------------------ chat

    def conversation(self, row: Row) -> Row:
        """A task's row with its prompt as the chat template writes it, the answer after that."""
        if row.task is None:
            what = "a text" if row.ids is None else "token ids"
            raise DataError(
                f"document {row.id!r} is {what}: a chat template is for rows of prompt and answer, "
                "or of messages; leave chat out"
            )
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise DataError(
                "this tokenizer has no chat template; leave chat out, or give a tokenizer with one"
            )
        prompt, answer, foil = row.task
        messages = row.messages or ({"role": "user", "content": prompt},)
        with in_one_line(  # jinja's own kinds, and what a template raises
            lambda error: DataError(
                f"document {row.id!r} cannot be written by the chat template: {said(error)}"
            )
        ):
            prompt = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        return replace(row, task=(str(prompt), answer, foil), messages=None)


def _unread(error: BaseException) -> DataError:
    return DataError(f"the tokenizer cannot read these texts: {said(error)}; restore its files")


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def decoded(tokenizer: Any, ids: Sequence[int], **how: Any) -> str:
    """The text of tokens; DataError where a damaged tokenizer cannot say it."""
    with in_one_line(_unread):
        return str(tokenizer.decode(list(ids), **how))


def token_names(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Tokens as the tokenizer writes them, quoted; numbers where it has no words for them."""
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    if convert is None:
        return [str(one) for one in ids]
    with in_one_line(_unread):
        found = convert(list(ids))
    return [json.dumps(str(token), ensure_ascii=False) for token in found]
