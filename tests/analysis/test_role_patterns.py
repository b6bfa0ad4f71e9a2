"""Head roles on constructed attention patterns: every role, none, and noise; measures by others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from transformer_lens import head_detector

from analysis.roles import pattern_scores
from analysis.roles.labels import (
    DESCRIPTIONS,
    NONE,
    ROLES,
    THRESHOLDS,
    Scores,
    Tally,
    labels,
    pooled,
    scores_of,
)
from analysis.roles.patterns import copying, looks_up_next, matching_measures, text_measures
from analysis.roles.probes import make_probes
from kernels.errors import MidusError

T, VOCABULARY = 64, range(3, 259)
Pattern = Callable[[list[int], list[bool]], torch.Tensor]


def causal(length: int = T, heads: int = 1, seed: int = 0) -> torch.Tensor:
    """Random causal patterns [heads, length, length]."""
    scores = 3 * torch.randn(heads, length, length, generator=torch.Generator().manual_seed(seed))
    hidden = torch.ones(length, length).triu(1).bool()
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


def looking_at(source: Callable[[int, list[int], list[bool]], int | range]) -> Pattern:
    """A pattern whose row t attends, evenly, to what `source` names."""

    def pattern(ids: list[int], marks: list[bool]) -> torch.Tensor:
        weights = torch.zeros(len(ids), len(ids))
        for t in range(len(ids)):
            where = source(t, ids, marks)
            where = [where] if isinstance(where, int) else list(where)
            weights[t, where] = 1 / len(where)
        return weights

    return pattern


def mixed(share: float, first: Pattern, second: Pattern) -> Pattern:
    return lambda ids, marks: share * first(ids, marks) + (1 - share) * second(ids, marks)


def earlier_same(t: int, ids: list[int]) -> int | None:
    return max((s for s in range(t) if ids[s] == ids[t]), default=None)


def induction_source(t: int, ids: list[int], _: list[bool]) -> int:
    match = earlier_same(t, ids)
    return 0 if match is None else match + 1  # elsewhere it rests on the first token


def delimiter_source(t: int, _: list[int], marks: list[bool]) -> int:
    return max((s for s in range(t + 1) if marks[s]), default=0)


previous = looking_at(lambda t, *_: max(t - 1, 0))
first_token = looking_at(lambda *_: 0)
everything = looking_at(lambda t, *_: range(t + 1))
induction = looking_at(induction_source)
anything = looking_at(lambda t, ids, _: (7919 * t + 31 * ids[t]) % (t + 1))
noise: Pattern = lambda ids, _: causal(len(ids), seed=ids[-1])[0]  # noqa: E731

# role -> a pattern that has it, and whether the head writes the token that it attends to
CONSTRUCTED: dict[str, tuple[Pattern, bool]] = {
    "induction": (induction, True),
    "duplicate_token": (looking_at(lambda t, ids, _: earlier_same(t, ids) or 0), True),
    "previous_token": (previous, False),
    "positional_offset": (looking_at(lambda t, *_: max(t - 3, 0)), False),
    "retrieval": (mixed(0.3, induction, everything), True),
    "first_token_sink": (first_token, False),
    "delimiter": (looking_at(delimiter_source), False),
}
DESCRIBED = {
    "local": (looking_at(lambda t, *_: range(max(t - 3, 0), t + 1)), False),
    "broad": (everything, False),
    "confident": (anything, False),
}


def scores_for(heads: list[tuple[Pattern, bool]]) -> Scores:
    """The scores of heads with these patterns, measured as those of a model are."""
    tally, every = Tally(len(heads)), range(len(heads))
    probes = make_probes(VOCABULARY, start=[1], length=T, reach=T - 1, each=12, seed=0)
    writes = torch.tensor([float(copies) for _, copies in heads])[:, None, None]
    generator = torch.Generator().manual_seed(0)
    for unit, probe in enumerate(probes):
        ids = probe.ids
        weights = torch.stack([pattern(ids.tolist(), [False] * T) for pattern, _ in heads])
        if probe.kind == "needle":
            hits = looks_up_next(weights, ids, probe.rows).double().sum(1)
            tally.add("retrieval", unit, every, (hits, torch.tensor(float(len(probe.rows)))))
            continue
        found = matching_measures(weights, ids)
        own = torch.randn(len(heads), len(probe.rows), T, generator=generator)
        own = (own + 9 * writes * weights[:, probe.rows])[..., 1:]
        reference = torch.randn(*own.shape[:2], 40, generator=generator)
        found["copying"], by_row = copying(weights[:, probe.rows, 1:], own, reference)
        found["logit_raise"] = by_row.double().sum(1), found["copying"][1]
        for name, measure in found.items():
            tally.add(name, unit, every, measure)
    rng = np.random.default_rng(0)
    for unit in range(20):
        ids, marks = rng.choice(VOCABULARY, T), rng.random(T) < 0.2
        weights = torch.stack([p(ids.tolist(), marks.tolist()) for p, _ in heads])
        for name, measure in text_measures(weights, torch.from_numpy(marks)).items():
            tally.add(name, unit, every, measure)
        tally.add("written", unit, every, (torch.ones(len(heads)).double(), torch.tensor(1.0)))
    return scores_of(tally)


def test_every_role_is_told_from_its_pattern() -> None:
    assert set(CONSTRUCTED) == set(ROLES)
    scores = scores_for(list(CONSTRUCTED.values()))
    names, best, lead = labels(scores)
    assert names == list(CONSTRUCTED)
    assert (best > 0.8).all() and (lead >= 0.2).all() and (best < 1 + 1e-6).all()
    assert scores.offset[names.index("previous_token")] == 1
    assert scores.offset[names.index("positional_offset")] == 3


def test_a_description_is_a_number_and_no_role() -> None:
    scores = scores_for(list(DESCRIBED.values()))
    assert set(DESCRIBED) == set(DESCRIPTIONS) and not set(DESCRIPTIONS) & {*ROLES, *THRESHOLDS}
    assert labels(scores)[0] == [NONE] * 3
    for head, name in enumerate(DESCRIBED):
        assert scores.score[name][head] > 0.8


def test_a_role_is_above_the_highest_score_of_mixed_heads() -> None:
    scores = scores_for([CONSTRUCTED["previous_token"], CONSTRUCTED["induction"]])
    assert labels(scores, None, {"previous_token": 0.9, "copying": 0.5})[0] == list(
        ("previous_token", "induction")
    )
    assert labels(scores, None, {"previous_token": 1.0})[0] == [NONE, "induction"]
    assert labels(scores, None, {"copying": 1.0})[0][1] != "induction"


@pytest.mark.parametrize("role", [role for role in CONSTRUCTED if role != "retrieval"])
def test_noise_keeps_a_label_until_there_is_too_much_of_it(role: str) -> None:
    pattern, copies = CONSTRUCTED[role]
    little, much = mixed(0.9, pattern, noise), mixed(0.2, pattern, noise)
    names, _, _ = labels(scores_for([(little, copies), (much, copies), (noise, False)]))
    assert names[0] == role and names[1] != role and names[2] == NONE


NOT_CLEAR: dict[str, tuple[Pattern, bool]] = {
    "half and half": (mixed(0.5, previous, first_token), False),
    "two roles": (mixed(0.55, previous, looking_at(lambda t, *_: max(t - 3, 0))), False),
    "noise": (noise, False),
    "neither near nor everywhere": (looking_at(lambda t, *_: range(t - t // 4, t + 1)), False),
}


def test_what_is_no_role_is_none() -> None:
    names, best, lead = labels(scores_for(list(NOT_CLEAR.values())))
    assert names == [NONE] * len(NOT_CLEAR)
    assert np.isnan(best).all() and np.isnan(lead).all()


def test_prefix_matching_without_copying_is_no_induction() -> None:
    scores = scores_for([(induction, False)])
    assert scores.score["prefix_matching"] == pytest.approx(1, abs=1e-6)
    assert abs(scores.score["induction"]) < 0.1
    assert labels(scores)[0] == ["first_token_sink"]  # which is where it rests in these texts


def test_a_label_needs_evidence_and_a_lead() -> None:
    scores = scores_for([CONSTRUCTED["previous_token"], CONSTRUCTED["first_token_sink"]])
    assert labels(scores)[0] == ["previous_token", "first_token_sink"]
    scores.stderr["previous_token"][0] = 0.2  # 0.5 is then within the bound
    assert labels(scores)[0][0] == NONE
    scores.stderr["previous_token"][0] = 0.01
    scores.score["positional_offset"][0] = 0.85
    assert labels(scores)[0][0] == NONE  # clear, but not ahead
    scores.score["written"][1] = 0
    assert labels(scores)[0][1] == NONE  # it writes nothing
    assert labels(scores, {"first_token_sink": 0.99})[0] == [NONE, NONE]


def test_rests_do_not_contend_where_a_match_is_what_is_asked() -> None:
    scores = scores_for([CONSTRUCTED["induction"]])
    assert scores.score["first_token_sink"][0] > 0.8 and labels(scores)[0] == ["induction"]
    for name in ("induction", "prefix_matching", "retrieval"):
        scores.score[name][0] = 0.45
    assert labels(scores)[0] == ["first_token_sink"]


# ---------------------------------------------------------------- measures, as others count them


def by_rows(weights: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mass on targets [T, T] above that of uniform attention, as a share of what could be."""
    rows = targets.any(1)
    chance = (targets.sum(1) / torch.arange(1, len(targets) + 1))[rows]
    return ((weights * targets).sum(-1)[:, rows] - chance).sum(1) / (1 - chance).sum()


@pytest.mark.parametrize(
    ("score", "detector"),
    [
        ("previous_token", "get_previous_token_head_detection_pattern"),
        ("duplicate_token", "get_duplicate_token_head_detection_pattern"),
        ("prefix_matching", "get_induction_head_detection_pattern"),
    ],
)
def test_targets_are_those_of_transformer_lens(score: str, detector: str) -> None:
    probes = make_probes(VOCABULARY, start=[], length=T, reach=T, each=3, seed=1)
    for probe in probes:
        weights = causal(heads=3, seed=int(probe.ids[0]))
        targets = getattr(head_detector, detector)(probe.ids[None])
        assert targets.any()
        expected = by_rows(weights, targets)
        torch.testing.assert_close(
            pattern_scores(weights, probe.ids)[score].float(), expected, rtol=1e-4, atol=1e-6
        )


def test_entropy_is_that_of_scipy_and_confidence_that_of_voita() -> None:
    weights = causal(heads=4)
    found = pattern_scores(weights, range(T))
    counts = np.arange(1, T + 1)
    entropy = stats.entropy(weights.numpy(), axis=-1).sum(-1) / np.log(counts).sum()
    np.testing.assert_allclose(found["broad"], entropy, rtol=1e-4)
    largest = weights[:, 1:, 1:].max(-1).values.mean(1).numpy()  # the first token left out
    chance = (1 / counts[1:]).mean()
    np.testing.assert_allclose(found["confident"], (largest - chance) / (1 - chance), rtol=1e-4)


@pytest.mark.parametrize("window", [None, 9])
def test_uniform_attention_is_chance(window: int | None) -> None:
    sees = torch.ones(T, T).tril().triu(-T if window is None else 1 - window)
    weights = (sees / sees.sum(1, keepdim=True))[None]
    ids = make_probes(VOCABULARY, start=[], length=T, reach=8, each=1, seed=0)[0].ids
    marks = torch.arange(T) % 4 == 1
    found = pattern_scores(weights, ids, delimiters=marks, window=window)
    assert found.pop("broad") == pytest.approx(1, abs=1e-6) and "offset" in found
    uniform = 1 / sees.sum(1)[1:]
    confident = found.pop("confident")  # uniform attention has no largest weight but chance
    assert confident == pytest.approx(0, abs=1e-6) and uniform.min() > 0
    for name in set(found) - {"offset"}:
        assert found[name] == pytest.approx(0, abs=1e-6), name


def test_a_window_leaves_out_what_no_row_sees() -> None:
    weights = previous(list(range(T)), [])[None]
    full, narrow = pattern_scores(weights, range(T)), pattern_scores(weights, range(T), window=4)
    assert narrow["previous_token"] == pytest.approx(1) and narrow["offset"] == 1
    assert narrow["local"] < full["local"]  # 1 of 4 tokens is not as near as 1 of 64
    sink = first_token(list(range(T)), [])[None]
    with pytest.raises(MidusError, match="not causal: rows attend to later tokens or 4 and more"):
        pattern_scores(sink, range(T), window=4)
    seen = torch.cat([sink[:, :4], previous(list(range(T)), [])[None, 4:]], 1)
    assert pattern_scores(seen, range(T), window=4)["first_token_sink"] == pytest.approx(1)


def test_copying_is_the_rank_of_mann_and_whitney() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 5, 7, generator=generator)
    own = torch.randint(0, 6, (2, 5, 7), generator=generator).float()  # with ties
    reference = torch.randint(0, 6, (2, 5, 11), generator=generator).float()
    (gained, possible), by_row = copying(weights, own, reference)
    expected, most = np.zeros(2), weights.max(-1)
    for h, r in np.ndindex(2, 5):
        attended = own[h, r, most.indices[h, r]]
        share = stats.mannwhitneyu(attended[None].numpy(), reference[h, r].numpy()).statistic / 11
        expected[h] += float(most.values[h, r]) * (2 * share - 1)
        raised = most.values[h, r] * (attended - reference[h, r].mean())
        assert float(by_row[h, r]) == pytest.approx(float(raised), abs=1e-6)
    np.testing.assert_allclose(gained, expected, rtol=1e-5)
    np.testing.assert_allclose(possible, most.values.sum(1), rtol=1e-6)


def test_pooled_error_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    possible = rng.uniform(5, 50, (3, 60))
    gained = possible * rng.normal(0.4, 0.1, (3, 60))
    score, stderr = pooled(gained, possible)
    drawn = rng.integers(0, 60, (4000, 60))
    samples = gained[:, drawn].sum(-1) / possible[:, drawn].sum(-1)
    np.testing.assert_allclose(score, gained.sum(1) / possible.sum(1))
    np.testing.assert_allclose(stderr, samples.std(1), rtol=0.06)
    assert np.isnan(pooled(gained[:, :1], possible[:, :1])[1]).all()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_sequences_have_scores_or_nan(length: int) -> None:
    found = pattern_scores(causal(length, heads=2), range(length))
    assert all(scores.shape == (2,) for scores in found.values())
    assert found["previous_token"].isnan().all() == (length == 1)
    assert found["delimiter"].isnan().all() and not found["offset"].isnan().any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.eye(4), range(4)), r"patterns must be \[heads, T, T\]; got \[4, 4\]"),
        ((torch.rand(2, 4, 5), range(4)), r"got \[2, 4, 5\]"),
        ((torch.eye(4)[None], range(5)), r"ids must be \[4\], .* got \[5\]"),
        ((torch.eye(4)[None] * 0.5, range(4)), "sum to 1; .* a row off by 0.5"),
        ((torch.eye(4)[None] * torch.nan, range(4)), "sum to 1"),
        ((torch.eye(4).flip(0)[None], range(4)), "not causal: rows attend to later tokens$"),
        ((torch.tensor([[[1.0, 0], [1.5, -0.5]]]), range(2)), "smallest weight of -0.5"),
    ],
)
def test_what_is_no_pattern_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(MidusError, match=message):
        pattern_scores(*arguments)
    with pytest.raises(MidusError, match=r"delimiters must be bool \[4\]"):
        pattern_scores(torch.eye(4)[None], range(4), delimiters=[1, 0, 0, 1])
    with pytest.raises(MidusError, match="window is 0"):
        pattern_scores(torch.eye(4)[None], range(4), window=0)


def test_constructed_sequences_are_what_they_say() -> None:
    probes = make_probes(VOCABULARY, start=[1], length=T, reach=40, each=30, seed=3)
    again = make_probes(VOCABULARY, start=[1], length=T, reach=40, each=30, seed=3)
    assert all(a.ids.equal(b.ids) for a, b in zip(probes, again, strict=True))
    distances: dict[str, set[int]] = {}
    for probe in probes:
        ids = probe.ids.tolist()
        assert len(ids) == T and ids[0] == 1 and set(ids[1:]) <= set(VOCABULARY)
        assert not set(ids) & set(probe.references.tolist())
        gaps = [t - s for t in range(T) if (s := earlier_same(t, ids)) is not None]
        assert gaps and max(gaps) < 40
        distances.setdefault(probe.kind, set()).update(gaps)
        if probe.kind == "permuted":
            continue
        assert len(set(gaps)) == 1
        if probe.kind == "needle":
            assert all(ids[t + 1] in ids[1:t] for t in probe.rows.tolist()) and len(probe.rows) == 6
        else:
            assert all(ids[t] in ids[1:t] for t in probe.rows.tolist())
            assert len(probe.rows) == len(gaps)
    assert all(len(found) >= 10 for found in distances.values())
    small = make_probes(range(40), start=[], length=T, reach=T, each=2, seed=0)
    assert all(set(probe.ids.tolist()) <= set(range(40)) for probe in small)
