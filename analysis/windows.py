"""A document as token ids, and the windows of a model's context that it is cut into.

Windows overlap by one token, so that every token of a document but its first is predicted exactly
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Document:
    """One source text as token ids.

    Attributes:
        id: its name in its source (path, row, or number).
        ids: token ids, int64 [T].
        sha256: of the text; of the ids where there is no text.
        text: the text, prompt and answer joined for a task.
        scored_from: index of the first token whose loss counts: 1, or a task's first answer token.
        foil: ids of a task's wrong answer, int64 [F], to be set against `ids[scored_from:]`.
        task: whether it was given as a task, whatever the length of its prompt.
    """

    id: str
    ids: torch.Tensor
    sha256: str
    text: str | None = None
    scored_from: int = 1
    foil: torch.Tensor | None = None
    task: bool = False

    @property
    def tokens(self) -> int:
        """The number of tokens whose loss counts."""
        return len(self.ids) - self.scored_from

    @property
    def is_task(self) -> bool:
        """Whether only an answer counts, the prompt before it being given."""
        return self.task or self.scored_from > 1 or self.foil is not None

    @property
    def decision(self) -> tuple[int, int] | None:
        """Where answer and foil part: the answer's index in `ids`, and the foil's token there."""
        if self.foil is None:
            return None
        for offset, (right, wrong) in enumerate(
            zip(self.ids[self.scored_from :].tolist(), self.foil.tolist(), strict=False)
        ):
            if right != wrong:
                return self.scored_from + offset, wrong
        return None


@dataclass(frozen=True, eq=False)
class Window:
    """What a model sees at once.

    `ids[i]` is `documents[document].ids[start + i]`, from `i = repeated` on. The `repeated` ids
    before that are start tokens given to this window again (`bos="every"`), which are never scored.
    `scored` [len(ids) - 1]: whether the loss of predicting `ids[i + 1]` counts. `unit` is the
    window's index into `Documents.units`. `foil`: the position that decides between a task's answer
    and its foil, and the foil's token there, where they lie in this window.
    """

    document: int
    unit: int
    start: int
    ids: torch.Tensor
    scored: torch.Tensor
    foil: tuple[int, int] | None = None
    repeated: int = 0


def spans(item: Document, context: int, repeated: int = 0) -> list[tuple[int, int]]:
    """First and last token (exclusive) of each window of a document, in order.

    A text is cut from its start. A task is cut from its end, so that its answer sees as much of
    the prompt as the context holds; windows without a scored token are left out. Every window but
    the one that begins the document leaves room for `repeated` start tokens.
    """
    length, room = len(item.ids), context - repeated
    if item.scored_from == 1:
        starts = [0, *range(context - 1, length - 1, room - 1)]
        stops = [context, *(start + room for start in starts[1:])]
        found = zip(starts, stops, strict=True)
        return [(start, min(stop, length)) for start, stop in found if start < length - 1]
    windows: list[tuple[int, int]] = []
    stop = length
    while stop > item.scored_from:
        start = 0 if stop <= context else stop - room
        windows.append((start, stop))
        stop = start + 1
    return windows[::-1]


def window_of(
    item: Document,
    document: int,
    unit: int,
    span: tuple[int, int],
    again: Sequence[int] = (),
) -> Window:
    """The window of a span; where it does not begin its document, after the ids `again`."""
    first, stop = span
    repeated = len(again) if first > 0 else 0
    ids, start = item.ids[first:stop], first - repeated
    places = torch.arange(start + 1, stop)
    scored = (places >= item.scored_from) & (places > first)
    if repeated:
        ids = torch.cat([torch.tensor(list(again), dtype=ids.dtype), ids])
    foil, decision = None, item.decision
    if decision is not None and first < decision[0] < stop:
        foil = decision[0] - start - 1, decision[1]
    return Window(document, unit, start, ids, scored, foil, repeated)


def first_new(windows: Sequence[Window]) -> list[int]:
    """By window, the index of its first position that no earlier window held.

    Start tokens given again are none of the document's and never new.
    """
    reached: dict[int, int] = {}
    first = []
    for window in windows:
        first.append(max(window.repeated, reached.get(window.document, 0) - window.start))
        reached[window.document] = window.start + len(window.ids)
    return first
