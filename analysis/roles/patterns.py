"""What a head does, read off its attention pattern and off what it writes: pure functions.

Each measure of a sequence is a pair (gained, possible): attention above chance, and the most that
there could be, both summed over the sequence's rows, so that sequences can be pooled and a score is
gained / possible. Chance is uniform attention over the tokens a row can see: 0 is chance, 1 all
there is, and less than chance is negative. docs/roles.md has the formulas and their sources.

Shape letters: H heads, T tokens (rows t attend to sources s <= t), K offsets, R rows, V references.
"""

from __future__ import annotations

from typing import Any

import torch

from kernels.errors import MidusError

# gained [H], or [H, K] of offsets, and possible, a number or [K]; float64.
Measure = tuple[torch.Tensor, torch.Tensor]

ROW_SUM_TOLERANCE = 0.02  # bf16 weights of a row of 1,024 sum to 1 within this


# ---------------------------------------------------------------- the pure function


def pattern_scores(
    patterns: Any, ids: Any, *, delimiters: Any = None, window: int | None = None
) -> dict[str, torch.Tensor]:
    """Scores of attention patterns on one sequence, a tensor [H] each; chance 0, at most 1.

    Args:
        patterns: attention weights [H, T, T], row t over the sources s <= t, summing to 1.
        ids: token ids [T].
        delimiters: which positions hold a delimiter, bool [T]; without it `delimiter` is NaN.
        window: with sliding-window attention, how many tokens a row sees, itself included.

    Returns:
        `previous_token`, `duplicate_token`, `prefix_matching`, `positional_offset` (the best offset
        of 2 and more), `first_token_sink`, `delimiter`, `local`, `broad` and `confident`, NaN where
        the sequence has no row that could show it; and `offset` [H], the peak relative position.

    Raises MidusError where shapes do not fit, or weights are no causal attention pattern.

    >>> previous = torch.eye(8).roll(-1, 1)  # row t attends to t - 1
    >>> previous[0] = torch.eye(8)[0]
    >>> float(pattern_scores(previous[None], range(8))["previous_token"])
    1.0
    """
    weights, tokens, marks = _checked(patterns, ids, delimiters, window)
    measures = matching_measures(weights, tokens, window) | text_measures(weights, marks, window)
    scores = {name: gained / possible for name, (gained, possible) in measures.items()}
    profile = scores.pop("offsets")
    scores["offset"], scores["positional_offset"] = peak_offset(profile)
    return scores


def peak_offset(profile: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """From scores by offset [H, K]: the peak offset [H], and the best score of 2 and more [H]."""
    known = profile.nan_to_num(nan=-torch.inf)
    far = profile[:, 2:].nan_to_num(nan=-torch.inf)
    if not far.shape[1]:
        return known.argmax(1), torch.full((len(profile),), torch.nan, dtype=profile.dtype)
    best = far.amax(1)
    return known.argmax(1), best.masked_fill(best.isinf(), torch.nan)


def _checked(
    patterns: Any, ids: Any, delimiters: Any, window: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    weights, tokens = torch.as_tensor(patterns), torch.as_tensor(ids)
    if weights.ndim != 3 or weights.shape[1] != weights.shape[2] or not weights.numel():
        raise MidusError(f"patterns must be [heads, T, T]; got {list(weights.shape)}")
    if tokens.shape != weights.shape[1:2]:
        raise MidusError(
            f"ids must be [{weights.shape[1]}], one a position of the patterns; "
            f"got {list(tokens.shape)}"
        )
    marks = None if delimiters is None else torch.as_tensor(delimiters)
    if marks is not None and (marks.shape != tokens.shape or marks.dtype != torch.bool):
        raise MidusError(
            f"delimiters must be bool [{len(tokens)}]; got {marks.dtype} {list(marks.shape)}"
        )
    if window is not None and window < 1:
        raise MidusError(f"window is {window}; it must be at least 1, or None for full attention")
    _check_rows(weights)
    rows = torch.arange(len(tokens), device=weights.device)
    unseen = ~_sees(rows, window)
    if (weights.masked_fill(~unseen, 0).abs().sum(-1) > ROW_SUM_TOLERANCE).any():
        reach = "" if window is None else f" or {window} and more tokens back"
        raise MidusError(f"patterns are not causal: rows attend to later tokens{reach}")
    return weights.float(), tokens.to(weights.device), marks


def _check_rows(weights: torch.Tensor) -> None:
    """Raises MidusError where weights [..., T, T] are negative or rows do not sum to 1."""
    low, off = float(weights.min()), float((weights.float().sum(-1) - 1).abs().max())
    if not (low >= 0 and off <= ROW_SUM_TOLERANCE):  # NaN fails too
        raise MidusError(
            "every row of an attention pattern must be weights that sum to 1; "
            f"got a smallest weight of {low:.3g} and a row off by {off:.3g}"
        )


# ---------------------------------------------------------------- where a head looks


def matching_measures(
    weights: torch.Tensor, ids: torch.Tensor, window: int | None = None
) -> dict[str, Measure]:
    """Of one sequence: previous and duplicate token, prefix matching, and attention by offset."""
    length = len(ids)
    rows = torch.arange(length, device=weights.device)
    sees = _sees(rows, window)
    offset = rows[:, None] - rows
    same = ids[:, None] == ids
    earlier = sees & (offset > 0)
    after_same = torch.zeros_like(same)
    after_same[:, 1:] = same[:, :-1]  # the source's predecessor is the row's own token
    targets = torch.stack([earlier & (offset == 1), earlier & same, earlier & after_same])
    seen = sees.sum(1)
    chance = targets.sum(2) / seen  # [3, T]
    mass = torch.einsum("hts,nts->nht", weights, targets.to(weights.dtype))
    rowed = targets.any(2)
    found = {
        name: _excess(mass[i][:, rowed[i]], chance[i][rowed[i]])
        for i, name in enumerate(("previous_token", "duplicate_token", "prefix_matching"))
    }
    return found | {"offsets": _by_offset(weights, seen, window)}


def _by_offset(weights: torch.Tensor, seen: torch.Tensor, window: int | None) -> Measure:
    """Attention at each offset up to half the sequence, gained [H, K] and possible [K].

    An offset near the sequence's length has few rows, which a head that rests on the first token
    would fill; offsets that no row sees get 0 of 0.
    """
    length = weights.shape[-1]
    offsets = torch.arange(max(length // 2, min(length, 3)), device=weights.device)
    sources = torch.arange(length, device=weights.device)[:, None] - offsets  # [T, K]
    valid = sources >= 0
    if window is not None:
        valid &= offsets < window
    index = sources.clamp(min=0).expand(len(weights), -1, -1)
    mass = (weights.gather(2, index) * valid).sum(1).cpu().double()  # [H, K]
    chance = (valid / seen[:, None]).sum(0).cpu().double()
    return mass - chance, valid.sum(0).cpu() - chance


def text_measures(
    weights: torch.Tensor, delimiters: torch.Tensor | None = None, window: int | None = None
) -> dict[str, Measure]:
    """Of one text: attention to the first token and to delimiters, local, broad, and confident."""
    length = weights.shape[-1]
    rows = torch.arange(length, device=weights.device)
    sees = _sees(rows, window)
    seen = sees.sum(1).float()
    near = sees[:, 0] & (rows > 0)  # rows that see the first token, and not it alone
    marked = torch.zeros(length) if delimiters is None else delimiters
    columns = torch.stack([rows.float(), marked.to(rows.device).float()], 1)
    position, on_marks = (weights @ columns).unbind(-1)  # [H, T] each
    marks_seen = (sees.float() @ columns[:, 1]) / seen
    distance, uniform = rows - position, (seen - 1) / 2
    entropy = torch.special.entr(weights).sum(-1)
    most = weights[:, 1:, 1:].amax(-1) if length > 1 else weights.new_zeros(len(weights), 0)
    delimiter = _excess(on_marks, marks_seen)
    if delimiters is None:
        delimiter = delimiter[0] * torch.nan, delimiter[1] * torch.nan
    return {
        "first_token_sink": _excess(weights[:, near, 0], 1 / seen[near]),
        "delimiter": delimiter,
        "local": (_sum(uniform - distance), _sum(uniform)),
        "broad": (_sum(entropy), _sum(seen.log())),
        "confident": _excess(most, 1 / seen[1:]),
    }


def _sees(rows: torch.Tensor, window: int | None) -> torch.Tensor:
    """Which sources each row may attend to, bool [T, T]."""
    offset = rows[:, None] - rows
    return (offset >= 0) if window is None else (offset >= 0) & (offset < window)


def _excess(mass: torch.Tensor, chance: torch.Tensor) -> Measure:
    """Mass [H, R] above chance [R], of the most that could be."""
    return _sum(mass - chance), _sum(1 - chance)


def _sum(values: torch.Tensor) -> torch.Tensor:
    return values.cpu().double().sum(-1)


# ---------------------------------------------------------------- what a head writes


def copying(
    weights: torch.Tensor, own: torch.Tensor, reference: torch.Tensor
) -> tuple[Measure, torch.Tensor]:
    """Whether what a head writes raises the logit of the token that it attends to most.

    Args:
        weights: its attention [H, R, S] of some rows to ordinary tokens.
        own: what it adds to the logit of each of these tokens, [H, R, S].
        reference: the same of tokens drawn at random from the vocabulary, [H, R, V].

    Returns:
        Of each row's most attended token, rows weighted by its attention: the measure, how often it
        is raised more than a reference token less how often it is raised less (0 where nothing is
        copied, -1 where what is attended to is suppressed); and by row [H, R], so weighted, how
        much more it is raised than the mean reference token.
    """
    most, where = weights.max(-1, keepdim=True)  # [H, R, 1]
    raised = own.gather(-1, where)
    ahead = (raised > reference).sum(-1) - (raised < reference).sum(-1)  # [H, R]
    most = most[..., 0]
    measure = _sum(most * ahead / reference.shape[-1]), _sum(most)
    return measure, most * (raised[..., 0] - reference.mean(-1))


def looks_up_next(weights: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Whether the most attended token of `rows` [R] is the one that comes next: bool [H, R]."""
    return ids[weights[:, rows].argmax(-1)] == ids[rows + 1]
