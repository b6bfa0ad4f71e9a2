"""What a race found beside its top set, each part against a closed form or a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.race import Race
from analysis.race_found import (
    TIED,
    _covariance,
    _freedom,
    _rare,
    _unseen,
    by_cluster,
    design_effect,
    may_turn,
    tails,
    ties,
)
from analysis.tails import scales


def measured(values: np.ndarray, clusters: np.ndarray, counts: list[int], **options) -> Race:
    """A race whose heads have seen so many of its windows."""
    race = Race(len(values), np.ones(values.shape[1]), clusters, 1, **options)
    for head, count in enumerate(counts):
        race._take(lambda h, w: values[np.ix_(h, w)], np.array([head]), 0, count, None)
    return race


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_a_lead_may_turn_as_a_t_test_says(count: int) -> None:
    rng = np.random.default_rng(count)
    rest = rng.normal(size=count)
    rest -= rest.mean()
    error = rest.std(ddof=1) / np.sqrt(count)
    for level, turns in ((0.97 * TIED, False), (1.03 * TIED, True)):
        lead = stats.t.isf(level, count - 1) * error
        p = stats.ttest_1samp(rest + lead, 0.0, alternative="greater").pvalue
        assert p == pytest.approx(level)
        assert may_turn(lead, rest / count) is turns
    assert may_turn(0.0, rest / count) and may_turn(1.0, np.array([0.0]))
    assert not may_turn(1e-9, np.zeros(count))


def test_neighbours_tie_as_a_t_test_on_the_windows_they_share() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(5, 40)) + np.array([[1.2], [0.6], [0.5], [0.0], [-1.5]])
    race = measured(values, np.arange(40), [40, 30, 40, 24, 32])
    order, expected = np.arange(5), []
    for above, below in zip(order[:-1], order[1:], strict=True):
        shared = min(race.counts[above], race.counts[below])
        difference = (values[above] - values[below])[race.order[:shared]]
        expected.append(stats.ttest_1samp(difference, 0, alternative="greater").pvalue >= TIED)
    assert ties(race, order) == [*expected, False]
    assert True in expected and False in expected


def test_scores_and_design_effect_by_document_are_the_loops() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(6), [2, 3, 4, 5, 6, 4])
    values = rng.normal(size=(3, 24)) + rng.normal(size=(3, 6))[:, clusters]
    race = measured(values, clusters, [24, 20, 12])
    found = by_cluster(race, 7)
    alike = pairs = 0.0
    for head, count in enumerate(race.counts):
        seen = race.order[:count]
        centred = values[head, seen] - values[head, seen].mean()
        for cluster in range(7):
            here = values[head, seen][clusters[seen] == cluster]
            mean = here.mean() if len(here) else np.nan
            np.testing.assert_allclose(found[head, cluster], mean)
        for i in range(count):
            for j in range(count):
                if i != j and clusters[seen[i]] == clusters[seen[j]]:
                    alike += centred[i] * centred[j] / centred.var()
                    pairs += 1
    sizes = np.bincount(clusters)
    expected = 1 + alike / pairs * ((sizes**2).sum() / sizes.sum() - 1)
    assert design_effect(race) == pytest.approx(expected) and abs(expected - 1) > 0.2


def test_tails_of_what_was_measured() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_t(3, (2, 60))
    race = measured(values, np.arange(60), [60, 40])
    found = tails(race)
    for head, count in enumerate(race.counts):
        seen = values[head, race.order[:count]]
        size = np.sort(np.abs(seen))[::-1]
        assert found["kurtosis"][head] == pytest.approx(stats.kurtosis(seen, fisher=False))
        largest = size[: round(0.05 * count)].sum() / size.sum()
        assert found["tail_share"][head] == pytest.approx(largest)
        half = next(n for n in range(1, 60) if size[:n].sum() >= size.sum() / 2)
        assert found["carried_by"][head] == half


@pytest.mark.parametrize("first", [0, 6])
def test_the_error_of_a_score_is_that_of_a_sample_without_replacement(first: int) -> None:
    """Cochran (1977), theorem 2.2, and section 5.3 where a stratum was measured whole."""
    values = np.random.default_rng(2).normal(size=(2, 30))
    race = measured(values, np.arange(30), [14, 30], first=list(range(first)))
    drawn = values[0, race.order[first:14]]
    left, share = 30 - first, (30 - first) / 30
    expected = share * drawn.std(ddof=1) * np.sqrt(1 / len(drawn) - 1 / left)
    known = values[0, race.order[:first]].sum() / 30
    found = race.intervals()
    np.testing.assert_allclose(found["stderr"], [expected, 0], atol=1e-15)
    assert found["score"][0] == pytest.approx(known + share * drawn.mean())


# ---------------------------------------------------------------- what the chances are made of


def test_how_rare_is_what_the_likelihood_says() -> None:
    shown, seen = np.array([3, 0, 1, 0, 0, 2]), np.array([60, 20, 45, 90, 16, 70])
    rate, chance = _rare(shown, seen)
    belongs = sum(chance)
    assert rate == pytest.approx(6 / sum(c * n for c, n in zip(chance, seen, strict=True)))
    share = (belongs + 0.5) / 7
    for found, here, windows in zip(chance, shown, seen, strict=True):
        missed = share * (1 - rate) ** int(windows)
        assert found == pytest.approx(1 if here else missed / (missed + 1 - share), rel=1e-3)


def test_heads_that_showed_nothing_may_yet_show_what_others_did() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=(4, 100)) * np.array([[3.0], [2.0], [1.0], [1.0]])
    race = measured(values, np.arange(100), [40, 40, 100, 12])
    values[0, race.order[7]] = 90.0
    race = measured(values, np.arange(100), [40, 40, 100, 12])
    found = _unseen(race, np.random.default_rng(0))
    # The first has shown its own, the third is known, of the last too little was seen.
    assert not found[:, [0, 2, 3]].any()
    seen = [values[h, race.order[:n]] for h, n in enumerate([40, 40, 100])]
    (centre, *_), _, scale = zip(*(scales(one[None]) for one in seen), strict=True)
    size = (90.0 - centre[0]) / scale[0][0]
    rate, chance = _rare(np.array([1, 0, 0]), np.array([40, 40, 100]))
    expected = chance[1] * rate * 60 * size * scale[1][0] / 100
    error = found[:, 1].std() / np.sqrt(len(found))
    assert abs(found[:, 1].mean() - float(expected.item())) < 4 * error and expected > 8 * error


def test_scores_covary_as_on_the_windows_that_heads_share() -> None:
    rng = np.random.default_rng(6)
    values = rng.normal(size=(4, 50)) + rng.normal(size=50)
    race = measured(values, np.arange(50), [50, 30, 20, 20])
    found = _covariance(race, np.arange(4))
    for i in range(4):
        for j in range(4):
            both = race.order[: min(race.counts[i], race.counts[j])]
            alike = np.corrcoef(values[i, both], values[j, both])[0, 1]
            spread = [values[h, race.order[: race.counts[h]]].std(ddof=1) for h in (i, j)]
            left = min(race.variance_left[i], race.variance_left[j])
            assert found[i, j] == pytest.approx(alike * spread[0] * spread[1] * left), (i, j)


def test_degrees_of_freedom_of_a_variance() -> None:
    drawn = np.random.default_rng(7).normal(size=40)
    race = measured(
        np.stack([drawn, np.tile([1.0, -1.0], 20), np.ones(40)]), np.arange(40), [40] * 3
    )
    kurtosis = stats.kurtosis(drawn, fisher=False)
    assert _freedom(race) == pytest.approx([80 / (kurtosis - 1), 80 / 0.5, 1])


def test_neighbours_whose_scores_are_known() -> None:
    values = np.array([[0.1, 0.2, 0.3, 0.7] * 8, [0.7, 0.3, 0.2, 0.1] * 8, [-9.0, -9.5] * 16])
    race = measured(values, np.arange(32), [32, 32, 32])
    race.scores[:2] = race.scores[0]
    assert ties(race, np.arange(3)) == [True, False, False]  # equal, and far behind
    # Equal scores whose difference is what rounding leaves, the same in every document.
    race = measured(np.array([[0.1, 0.2] * 8, [0.15] * 16]), np.repeat(np.arange(8), 2), [16, 16])
    race.scores[:] = race.scores[0]
    assert race.y[0].sum() != race.y[1].sum()
    assert ties(race, np.array([0, 1]))[0] and ties(race, np.array([1, 0]))[0]


def test_neighbours_that_ended_within_the_windows_that_come_first() -> None:
    rng = np.random.default_rng(8)
    values = rng.normal(size=(2, 60)) + np.array([[0.0], [-1.0]])
    race = measured(values, np.arange(60), [8, 8], first=list(range(30)))
    difference = (values[0] - values[1])[race.order[:8]]
    p = stats.ttest_1samp(difference, 0, alternative="greater").pvalue
    assert ties(race, np.arange(2)) == [bool(p >= TIED), False]
