"""Contrasts on tables with known answers: whom chosen heads are set against, and what p counts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import workbench
from analysis.amplification import amplification
from analysis.contrasts import amplification_contrast
from analysis.intervals import t_interval
from analysis.matching import CALIPER, level, matched
from analysis.tables import load, save, weights_of
from kernels.errors import HeadError, MidusError, NoOverlap
from tests.analysis.test_amplification import planted

LAYERS, HEADS, COUNT = 4, 6, 24
CHOSEN = [(0, 1), (2, 3), (2, 4)]


def grown(
    gain: dict[tuple[int, int], float], noise: float = 0.002, seed: int = 0, **attrs: Any
) -> pd.DataFrame:
    """An amplification table of 4 x 6 heads with these gains planted, half of each in memory."""
    rng = np.random.default_rng(seed)
    before, after = {}, {}
    for layer, head in itertools.product(range(LAYERS), range(HEADS)):
        level = 0.05 + 0.01 * head + 0.02 * rng.random()
        first = level + noise * rng.normal(size=COUNT)
        half = gain.get((layer, head), 0) / 2
        before[layer, "attention", head, layer] = first
        after[layer, "attention", head, layer] = first + half + noise * rng.normal(size=COUNT)
        after[LAYERS + layer, "memory", head, layer] = half + noise * rng.normal(size=COUNT)
    return amplification(planted(before), planted(after, **attrs))


def paired(gain: dict[tuple[int, int], float], **options: Any) -> pd.DataFrame:
    """The same, but heads 0 and 1, 2 and 3, 4 and 5 of a layer are nearly as important."""
    table = grown(gain, **options)
    steps = 0.05 * 2.0 ** (table["head"] // 2) * (1 + 0.01 * table["layer"])
    return table.assign(before=steps * (1 + 0.02 * (table["head"] % 2)))


# ---------------------------------------------------------------- chosen against controls


def test_a_planted_difference_is_found() -> None:
    every = itertools.product(range(LAYERS), range(HEADS))
    gain = {pair: 0.01 * pair[0] + (0.03 if pair in CHOSEN else 0) for pair in every}
    table = paired(gain)
    found = amplification_contrast(table, CHOSEN).set_index("measure")
    row = found.loc["score"]
    assert row["difference"] == pytest.approx(0.03, abs=0.002)
    assert row["ci_low"] < 0.03 < row["ci_high"] and row["ci_low"] > 0.02
    assert row["p"] == row["p_least"] == 0.25  # three pairs: no choice could give less
    assert row["relabellings"] == 8 and found.attrs["exact"] and row["heads"] == 3
    assert found.loc["share_score", "ci_low"] > 0
    assert [pair["control"] for pair in found.attrs["pairs"]] == [[0, 0], [2, 2], [2, 5]]
    # By hand: the pairs' difference, less the slope of the others times the gap that is left.
    rows = table.set_index(["layer", "head"])
    controls = [(0, 0), (2, 2), (2, 5)]
    others = table[[pair not in CHOSEN for pair in rows.index]]
    levels = pd.Series(level(rows["before"].to_numpy()), index=rows.index)
    layer_of = pd.get_dummies(others["layer"]).to_numpy(float)
    design = np.column_stack([levels.to_numpy()[others.index], layer_of])
    slope = np.linalg.lstsq(design, others["score"].to_numpy(), rcond=None)[0][0]
    gap = levels[CHOSEN].mean() - levels[controls].mean()
    plain = rows["score"][CHOSEN].mean() - rows["score"][controls].mean()
    assert row["chosen"] == pytest.approx(rows["score"][CHOSEN].mean())
    assert row["controls"] == pytest.approx(rows["score"][controls].mean())
    assert row["unadjusted"] == pytest.approx(plain)
    assert row["difference"] == pytest.approx(plain - slope * gap, abs=1e-12)
    assert np.mean(row["by_document"]) == pytest.approx(row["difference"], abs=1e-3)
    interval = t_interval([row["by_document"]], weights_of(table))
    assert row["ci_low"] == pytest.approx(interval.low[0])
    # The balance.
    spread = levels.std(ddof=1)
    assert row["before_chosen"] == pytest.approx(rows["before"][CHOSEN].mean())
    assert row["before_controls"] == pytest.approx(rows["before"][controls].mean())
    assert row["smd"] == pytest.approx(gap / spread) and abs(row["smd"]) <= CALIPER
    here = [pair for pair in rows.index if pair[0] in (0, 2) and pair not in CHOSEN]
    assert row["smd_all"] == pytest.approx((levels[CHOSEN].mean() - levels[here].mean()) / spread)


def test_what_importance_before_says_alone_is_no_difference() -> None:
    """A change that is a function of importance before, and a fall back to the mean of its kind."""
    table = paired({})
    levels = level(table["before"].to_numpy())
    table["score"] = table["share_score"] = 0.3 - 0.2 * levels + 0.1 * table["layer"]
    row = amplification_contrast(table, [(0, 1), (1, 3), (2, 5), (3, 1)]).iloc[0]
    assert row["unadjusted"] < -1e-4 and abs(row["difference"]) < 1e-12


def test_as_many_chosen_heads_as_can_be_get_the_nearest_controls() -> None:
    """Against every assignment there is, most heads first and then the least distance."""
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(40):
        levels, layers = rng.normal(size=10), np.array([0] * 7 + [1] * 3)
        chosen = np.sort(np.append(rng.permutation(7)[:3], 8))
        found = matched(levels, layers, chosen, 0.6)
        reach = 0.6 * levels.std(ddof=1)
        assert found.caliper == pytest.approx(reach)
        free = [head for head in range(10) if head not in chosen]

        gaps = np.abs(levels[:, None] - levels)
        near = (layers[:, None] == layers) & (gaps <= reach)
        best = (0, 0.0)
        for some in itertools.permutations(free, len(chosen)):
            ok = near[chosen, list(some)]
            best = max(best, (int(ok.sum()), -float(gaps[chosen, list(some)][ok].sum())))
        own = {int(one[0]): one[1:] for one in found.sets}
        assert len(own) == best[0] and len(own) + len(found.alone) == len(chosen)
        used = [head for others in own.values() for head in others]
        assert len(used) == len(set(used)) and not set(used) & set(chosen)
        assert all(near[mine, other] for mine, others in own.items() for other in others)
        # Every other head that is near a matched one stands with one, the nearest but for one each.
        assert {h for h in free if any(near[mine, h] for mine in own)} == set(used)
        first = sum(gaps[mine, others].min() for mine, others in own.items())
        assert first <= -best[1] + 1e-12
        sizes.add(len(own))
    assert len(sizes) > 2


def test_heads_without_a_control_are_refused_by_name_or_left_out() -> None:
    table = paired({(1, 5): 0.02})
    lonely = [(0, 4), (0, 5), (1, 5), (2, 0)]
    with pytest.raises(NoOverlap, match=r"heads 0\.4, 0\.5, so .*drop. leaves them out") as error:
        amplification_contrast(table, lonely)
    assert "\n" not in str(error.value) and isinstance(error.value, HeadError)
    found = amplification_contrast(table, lonely, unmatched="drop")
    assert found.attrs["unmatched"] == [[0, 4], [0, 5]] and found["heads"].tolist() == [2, 2]
    assert found.attrs["chosen"] == [list(pair) for pair in lonely]
    assert [pair["head"] for pair in found.attrs["pairs"]] == [[1, 5], [2, 0]]
    for unmatched in ("refuse", "drop"):
        with pytest.raises(NoOverlap, match="heads 0.4, 0.5, so .*; choose heads that leave"):
            amplification_contrast(table, [(0, 4), (0, 5)], unmatched=unmatched)
    whole = [(0, head) for head in range(HEADS)]
    with pytest.raises(NoOverlap, match="heads 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, so"):
        amplification_contrast(table, whole)


def test_the_shipped_study_cannot_say_whether_its_heads_were_amplified() -> None:
    """Its heads are the most important of their layer by far: 0.164 before against 0.024."""
    table = load(Path(workbench.__file__).parent / "study" / "tables" / "amplification")
    with pytest.raises(NoOverlap, match=r"within 0.3 SD\) as each .* heads 5\.0, 5\.1, 5\.4, so"):
        amplification_contrast(table)
    left = amplification_contrast(table, caliper=0.4, unmatched="drop").iloc[0]
    assert left["heads"] == left["p"] == left["p_least"] == 1  # one pair says nothing


@pytest.mark.parametrize("caliper", [0.3, 3.0])
def test_the_p_value_is_over_all_relabellings_within_sets(caliper: float) -> None:
    table = paired({(0, 1): 0.004, (2, 4): 0.002}, seed=2)
    found = amplification_contrast(table, CHOSEN, caliper=caliper).set_index("measure")
    row = found.loc["score"]
    score = table.set_index(["layer", "head"])["score"]
    levels = pd.Series(level(table["before"].to_numpy()), index=score.index)
    slope = np.polyfit(*centred(levels, score), 1)[0]
    rest = score - slope * levels
    sets = [[tuple(p["head"]), *map(tuple, p["controls"])] for p in found.attrs["pairs"]]
    assert [one[0] for one in sets] == CHOSEN
    values = []
    for picks in itertools.product(*sets):
        gaps = [
            rest[pick] - np.mean([rest[head] for head in members if head != pick])
            for pick, members in zip(picks, sets, strict=True)
        ]
        values.append(np.mean(gaps))
    assert row["difference"] == pytest.approx(values[0], abs=1e-12)
    assert row["p"] == pytest.approx(np.mean(np.abs(values) >= abs(values[0]) - 1e-12))
    pairs = all(len(one) == 2 for one in sets)
    assert pairs == (caliper == 0.3) and row["relabellings"] == len(values)
    assert row["p_least"] == pytest.approx((2 if pairs else 1) / len(values))
    fewer = amplification_contrast(table, CHOSEN, caliper=caliper, draws=len(values) - 1)
    assert not fewer.attrs["exact"] and fewer["p_least"][0] == 1 / len(values)
    assert fewer["p"][0] == pytest.approx(row["p"], abs=0.5 if pairs else 0.2)


def centred(levels: pd.Series, score: pd.Series) -> list[pd.Series]:
    """Levels and scores of heads that were not chosen, less their layer's mean."""
    others = [pair for pair in score.index if pair not in CHOSEN]
    parts = [levels[others], score[others]]
    return [part - part.groupby(level=0).transform("mean") for part in parts]


def test_shares_by_document_stand_for_the_shares() -> None:
    """Their mean is the share, and their interval the table's."""
    every = itertools.product(range(LAYERS), range(HEADS))
    table = grown({(1, 1): 0.2} | {pair: 0.1 for pair in every if pair != (1, 1)}, noise=0.01)
    values = np.array(table["share_by_document"].tolist())
    weights = weights_of(table)
    np.testing.assert_allclose(values @ weights / weights.sum(), table["share_score"], atol=1e-15)
    found = t_interval(values, weights)
    np.testing.assert_allclose(found.low, table["share_ci_low"])
    np.testing.assert_allclose(found.high_all, table["share_ci_high_all"])


def test_chosen_may_stand_in_the_table_and_results_are_kept(tmp_path: Any) -> None:
    table = paired({(0, 1): 0.1})
    with pytest.raises(HeadError, match="does not say which heads were chosen"):
        amplification_contrast(table)
    table.attrs["chosen"] = [[0, 1], [2, 2]]
    found = amplification_contrast(table)
    assert found.attrs["chosen"] == [[0, 1], [2, 2]] and len(found) == 2
    assert found.equals(amplification_contrast(table, [(2, 2), (0, 1)]))
    save(found, tmp_path / "contrast")
    assert load(tmp_path / "contrast").attrs == found.attrs
    older = table.drop(columns="share_by_document")
    older.attrs = table.attrs
    again = amplification_contrast(older)
    assert again["difference"].equals(found["difference"]) and again["p"].equals(found["p"])
    assert np.isnan(again["ci_low"][1]) and again["ci_low"][0] == found["ci_low"][0]


def test_what_cannot_be_contrasted_is_named() -> None:
    table = paired({})
    with pytest.raises(HeadError, match=r"\(7, 0\) is not in the table, which has 24"):
        amplification_contrast(table, [(7, 0)])
    with pytest.raises(HeadError, match="all 24 heads are chosen"):
        amplification_contrast(table, table)
    with pytest.raises(MidusError, match="unmatched is 'keep'"):
        amplification_contrast(table, [(0, 0)], unmatched="keep")
    with pytest.raises(MidusError, match="has no before.*analysis.amplification"):
        amplification_contrast(table.drop(columns="before"), [(0, 0)])
    with pytest.raises(MidusError, match="draws is 0"):
        amplification_contrast(table, [(0, 0)], draws=0)
    for caliper in (0, -1, np.nan, np.inf):
        with pytest.raises(MidusError, match=f"caliper is {caliper}; it must be a number above 0"):
            amplification_contrast(table, [(0, 0)], caliper=caliper)
    broken = table.assign(before=np.where(table["head"] == 3, np.nan, table["before"]))
    broken.attrs = table.attrs
    with pytest.raises(MidusError, match="importance before of head 0.3 is nan"):
        amplification_contrast(broken, [(0, 0)])
