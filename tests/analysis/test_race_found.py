"""What a race found beside its top set, each part against a closed form or a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.race import Race
from analysis.race_found import TIED, by_cluster, design_effect, may_turn, tails, ties


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
