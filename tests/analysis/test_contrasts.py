"""Contrasts on tables with known answers, and the mixed model against textbook and brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from analysis.amplification import amplification
from analysis.contrasts import (
    _controls,
    amplification_by_role,
    amplification_contrast,
    drawn_heads,
    random_intercept,
)
from analysis.roles.labels import ROLES
from analysis.statistics import bootstrap_mean
from analysis.tables import load, save, weights_of
from kernels.errors import HeadError, IncomparableTables, MidusError
from tests.analysis.test_amplification import planted

LAYERS, HEADS, COUNT = 4, 6, 24


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


# ---------------------------------------------------------------- chosen against controls


def test_a_planted_difference_is_found() -> None:
    chosen = [(0, 1), (2, 3), (2, 4)]
    base = {(layer, head): 0.01 * layer for layer in range(LAYERS) for head in range(HEADS)}
    table = grown({pair: base[pair] + (0.03 if pair in chosen else 0) for pair in base})
    found = amplification_contrast(table, chosen).set_index("measure")
    row = found.loc["score"]
    assert row["difference"] == pytest.approx(0.03, abs=0.002)
    assert row["ci_low"] < 0.03 < row["ci_high"] and row["ci_low"] > 0.02
    assert found["p"].max() < 0.03  # 90 labellings; swapping heads and controls reaches as far
    assert found.loc["share_score", "ci_low"] > 0
    # By hand, from the pairs that it names.
    score = table.set_index(["layer", "head"])["score"]
    controls = [tuple(pair["control"]) for pair in found.attrs["pairs"]]
    assert all(mine[0] == theirs[0] for mine, theirs in zip(chosen, controls, strict=True))
    assert not set(controls) & set(chosen) and len(set(controls)) == 3
    assert row["chosen"] == pytest.approx(score[chosen].mean())
    assert row["controls"] == pytest.approx(score[controls].mean())
    by_document = table.set_index(["layer", "head"])["by_document"]
    matrix = {pair: np.array(by_document[pair]) for pair in (*chosen, *controls)}
    difference = sum(matrix[pair] for pair in chosen) - sum(matrix[pair] for pair in controls)
    np.testing.assert_allclose(row["by_document"], difference / 3, atol=1e-15)
    interval = bootstrap_mean([difference / 3], weights_of(table))
    assert row["ci_low"] == pytest.approx(interval.low[0])


def test_nothing_planted_is_seldom_found() -> None:
    """At 5% each, more than 4 of 15 tables would be wrong about once in 1,600 times."""
    chosen = [(0, 1), (1, 2), (3, 5)]
    outside, small = [], []
    for seed in range(15):
        found = amplification_contrast(grown({}, seed=seed), chosen, draws=60).iloc[0]
        outside.append(not found["ci_low"] < 0 < found["ci_high"])
        small.append(found["p"] <= 0.05)
    assert sum(outside) <= 4 and sum(small) <= 4


def test_controls_are_the_nearest_within_the_layer() -> None:
    """Against every assignment there is."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        before = rng.normal(size=9)
        layers = np.array([0] * 7 + [1] * 2)
        chosen = rng.permutation(7)[:3]
        weights, rules = _controls(layers, before, chosen, "matched")
        others = [head for head in range(7) if head not in chosen]
        best = min(
            np.abs(before[chosen] - before[list(some)]).sum()
            for some in itertools.permutations(others, 3)
        )
        picked = weights.argmax(1)
        assert np.abs(before[chosen] - before[picked]).sum() == pytest.approx(best)
        assert sorted(weights.sum(1)) == [1, 1, 1] and len(set(picked)) == 3
        assert set(picked) <= set(others) and rules == ["own"] * 3


def test_fallbacks_are_taken_and_said() -> None:
    table = grown({})
    chosen = [(0, head) for head in range(HEADS)] + [(1, head) for head in range(4)]
    found = amplification_contrast(table, chosen)
    before = table.set_index(["layer", "head"])["before"]
    free = [pair for pair in before.index if pair not in chosen]
    for pair in found.attrs["pairs"]:
        head, control = tuple(pair["head"]), tuple(pair["control"])
        pool = free if head[0] == 0 else [one for one in free if one[0] == 1]
        assert pair["rule"] == ("elsewhere" if head[0] == 0 else "shared")
        assert control == min(pool, key=lambda one: abs(before[one] - before[head]))


@pytest.mark.parametrize("chosen", [[(0, 2)], [(0, 1), (3, 0)], [(2, 0), (2, 5)]])
def test_the_permutation_p_is_over_all_labellings(chosen: list[tuple[int, int]]) -> None:
    table = grown({(0, 2): 0.004, (2, 0): 0.002}, seed=2)
    found = amplification_contrast(table, chosen, controls="layer").set_index("measure")
    assert found.attrs["exact"]
    score = table.set_index(["layer", "head"])["score"]

    def difference(labels: tuple[tuple[int, int], ...]) -> float:
        gaps = []
        for layer, head in labels:
            others = [score[layer, h] for h in range(HEADS) if (layer, h) not in labels]
            gaps.append(score[layer, head] - np.mean(others))
        return abs(np.mean(gaps))

    layers = sorted(layer for layer, _ in chosen)
    every = [
        labels
        for labels in itertools.combinations(
            itertools.product(range(LAYERS), range(HEADS)), len(chosen)
        )
        if sorted(layer for layer, _ in labels) == layers
    ]
    assert found.attrs["draws"] == len(every)
    reached = [difference(labels) >= difference(tuple(chosen)) - 1e-12 for labels in every]
    assert found.loc["score", "p"] == pytest.approx(np.mean(reached))


def test_drawn_sets_differ_and_keep_to_their_pools() -> None:
    pools = {0: [(0, h) for h in range(5)], 3: [(3, h) for h in range(4)]}
    sets, every = drawn_heads(pools, {0: 2, 3: 1}, 25, np.random.default_rng(0))
    assert not every and len(set(sets)) == 25
    for heads in sets:
        assert [layer for layer, _ in heads] == [0, 0, 3] and len(set(heads)) == 3
    assert sets == drawn_heads(pools, {0: 2, 3: 1}, 25, np.random.default_rng(0))[0]
    sets, every = drawn_heads(pools, {0: 2, 3: 1}, 40, np.random.default_rng(0))
    assert every and len(set(sets)) == 40  # 10 pairs times 4 heads
    many = drawn_heads(pools, {3: 1}, 3, np.random.default_rng(1))[0]
    counts = [
        drawn_heads(pools, {3: 1}, 1, np.random.default_rng(s))[0][0][0][1] for s in range(400)
    ]
    assert len(many) == 3 and np.bincount(counts).min() > 70  # of 100 expected


def test_shares_by_document_stand_for_the_shares() -> None:
    """Their mean is the share, and their bootstrap close to the exact one of the ratio."""
    every = itertools.product(range(LAYERS), range(HEADS))
    table = grown({(1, 1): 0.2} | {pair: 0.1 for pair in every if pair != (1, 1)}, noise=0.01)
    values = np.array(table["share_by_document"].tolist())
    weights = weights_of(table)
    np.testing.assert_allclose(values @ weights / weights.sum(), table["share_score"], atol=1e-15)
    found = bootstrap_mean(values, weights)
    width = (table["share_ci_high"] - table["share_ci_low"]).to_numpy()
    assert (np.abs((found.high - found.low) / width - 1) < 0.1).all()
    assert (np.abs(found.low - table["share_ci_low"]) < 0.1 * width).all()


def test_chosen_may_stand_in_the_table_and_results_are_kept(tmp_path: Any) -> None:
    table = grown({(0, 1): 0.1})
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
    table = grown({})
    with pytest.raises(HeadError, match=r"\(7, 0\) is not in the table, which has 24"):
        amplification_contrast(table, [(7, 0)])
    with pytest.raises(HeadError, match="all 24 heads are chosen"):
        amplification_contrast(table, table)
    with pytest.raises(MidusError, match="controls is 'random'"):
        amplification_contrast(table, [(0, 0)], controls="random")
    with pytest.raises(MidusError, match="has no before.*analysis.amplification"):
        amplification_contrast(table.drop(columns="before"), [(0, 0)])
    with pytest.raises(MidusError, match="draws is 0"):
        amplification_contrast(table, [(0, 0)], draws=0)


# ---------------------------------------------------------------- the mixed model


def simulated(
    rng: np.random.Generator, slopes: np.ndarray, between: float, sizes: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, design with an intercept, and groups; residuals of standard deviation 1."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    design = np.column_stack([np.ones(len(groups)), rng.normal(size=(len(groups), len(slopes)))])
    values = 3 + design[:, 1:] @ slopes + rng.normal(size=len(groups))
    return values + between * rng.normal(size=len(sizes))[groups], design, groups


def test_a_balanced_one_way_layout_has_the_anova_estimates() -> None:
    """sigma^2 = MSW, sigma_layer^2 = (MSB - MSW) / n (Searle, Casella and McCulloch 1992, 3.8)."""
    values, design, groups = simulated(np.random.default_rng(0), np.zeros(0), 1.5, [8] * 6)
    fit = random_intercept(values, design, groups)
    means = values.reshape(6, 8).mean(1)
    within = ((values.reshape(6, 8) - means[:, None]) ** 2).sum() / (6 * 7)
    between = 8 * means.var(ddof=1)
    layer = (between - within) / 8
    assert layer > 0.1
    assert fit.residual == pytest.approx(within, rel=1e-6)
    assert fit.icc == pytest.approx(layer / (layer + within), rel=1e-6)
    assert fit.slopes[0] == pytest.approx(values.mean())
    assert fit.stderr[0] == pytest.approx(np.sqrt(between / 48), rel=1e-6)


def test_without_variance_between_layers_it_is_least_squares() -> None:
    values, design, groups = simulated(np.random.default_rng(1), np.array([0.7, -0.2]), 0, [6] * 8)
    slopes = np.array([3, 0.7, -0.2])
    rest = values - design @ slopes
    values = values - rest.reshape(8, 6).mean(1)[groups]  # layers alike: less than chance would do
    fit = random_intercept(values, design, groups)
    expected, squares, *_ = np.linalg.lstsq(design, values, rcond=None)
    residual = squares[0] / (48 - 3)
    assert fit.icc == 0
    np.testing.assert_allclose(fit.slopes, expected, rtol=1e-10)
    assert fit.residual == pytest.approx(residual)
    expected_stderr = np.sqrt(residual * np.diag(np.linalg.inv(design.T @ design)))
    np.testing.assert_allclose(fit.stderr, expected_stderr, rtol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_reml_is_the_likelihood_of_error_contrasts(seed: int) -> None:
    """Unbalanced: the density of A'y, A spanning what the design leaves, maximised by brute force
    (Harville 1974)."""
    rng = np.random.default_rng(seed)
    values, design, groups = simulated(rng, np.array([0.5]), 0.8, [3, 9, 5, 7, 2])
    left = np.linalg.svd(design)[0][:, design.shape[1] :]  # A, orthonormal
    same = (groups[:, None] == groups).astype(float)

    def surprise(parameters: np.ndarray) -> float:
        residual, layer = np.exp(parameters)
        covariance = left.T @ (residual * np.eye(len(values)) + layer * same) @ left
        return -stats.multivariate_normal(np.zeros(len(covariance)), covariance).logpdf(
            left.T @ values
        )

    best = optimize.minimize(
        surprise, [0, 0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}
    )
    residual, layer = np.exp(best.x)
    fit = random_intercept(values, design, groups)
    assert fit.icc == pytest.approx(layer / (residual + layer), abs=1e-4)
    assert fit.residual == pytest.approx(residual, rel=1e-3)
    inverse = np.linalg.inv(residual * np.eye(len(values)) + layer * same)
    information = design.T @ inverse @ design
    np.testing.assert_allclose(
        fit.slopes, np.linalg.solve(information, design.T @ inverse @ values), rtol=1e-4
    )
    np.testing.assert_allclose(fit.stderr, np.sqrt(np.diag(np.linalg.inv(information))), rtol=1e-3)


def test_intervals_cover_the_planted_slopes() -> None:
    """Three slopes in each of 200 fits; two of them covered 94.6% in 2,000 others."""
    rng = np.random.default_rng(0)
    slopes = np.array([0.5, -0.3, 0.0])
    covered = []
    for _ in range(200):
        fit = random_intercept(*simulated(rng, slopes, 1.0, [8] * 6))
        reach = stats.t.ppf(0.975, 48 - 6 - 3) * fit.stderr[1:]
        covered.append(np.abs(fit.slopes[1:] - slopes) <= reach)
    assert 0.93 <= np.mean(covered) <= 0.98


def test_values_without_variance_are_refused() -> None:
    with pytest.raises(MidusError, match="no variance left"):
        random_intercept(np.zeros(6), np.ones((6, 1)), np.array([0, 0, 0, 1, 1, 1]))


# ---------------------------------------------------------------- amplification by role


def role_table(seed: int = 0, **more: Any) -> pd.DataFrame:
    """Random scores of every role for 4 x 6 heads, in another order than the amplification's."""
    rng = np.random.default_rng(seed)
    places = list(itertools.product(range(HEADS), range(LAYERS)))
    columns = {name: rng.random(len(places)) for name in ROLES} | more
    table = pd.DataFrame(
        {"layer": [b for _, b in places], "head": [h for h, _ in places], **columns}
    )
    table.attrs = {"table": "head_roles", "model": "small", "data": "texts"}
    return table


def test_planted_slopes_are_found() -> None:
    roles = role_table()
    score = roles.set_index(["layer", "head"])["induction"]
    spread = score.to_numpy().std()
    gain = {pair: 0.02 * pair[0] + 0.01 * value / spread for pair, value in score.items()}
    table = grown(gain, noise=0.001)
    found = amplification_by_role(table, roles, columns=["induction", "local", "broad"])
    rows = found[found["measure"] == "score"].set_index("role")
    assert rows.loc["induction", "slope"] == pytest.approx(0.01, abs=0.0005)
    assert rows.loc["induction", "ci_low"] < 0.01 < rows.loc["induction", "ci_high"]
    assert rows.loc["induction", "p"] < 1e-6
    assert (rows.loc[["local", "broad"], "slope"].abs() < 0.001).all()
    assert rows["icc"].iloc[0] > 0.9  # layers differ by 0.02, heads within them by noise
    assert found.attrs["df"] == 24 - 4 - 3 and found.attrs["left_out"] == []
    assert (rows["vif"] >= 1).all()
    # The interval is Student's with these degrees of freedom.
    reach = stats.t.ppf(0.975, 17) * rows["stderr"]
    np.testing.assert_allclose(rows["ci_high"] - rows["slope"], reach)


def test_all_roles_and_what_is_unknown() -> None:
    roles = role_table(delimiter=np.nan, confident=0.3)
    table = grown({(1, 1): 0.01})
    found = amplification_by_role(table, roles)
    assert found["measure"].tolist() == ["score"] * len(ROLES) + ["share_score"] * len(ROLES)
    assert found["role"].tolist() == list(ROLES) * 2
    assert found["unit"].unique().tolist() == ["nats/token", "share"]
    unknown = found["role"].isin(["delimiter", "confident"])
    assert found.loc[unknown, "slope"].isna().all() and found.loc[~unknown, "slope"].notna().all()
    assert sorted(found.attrs["left_out"]) == ["confident", "delimiter"]
    assert found.attrs["df"] == 24 - 4 - (len(ROLES) - 2)
    assert set(found.attrs["icc"]) == {"score", "share_score"}


def test_variance_inflation_is_that_of_the_regression_on_the_others() -> None:
    roles = role_table()
    roles["broad"] = roles["local"] + 0.2 * roles["broad"]
    columns = ["local", "broad", "induction"]
    found = amplification_by_role(grown({}), roles, columns=columns)[:3]
    for row, name in enumerate(columns):
        others = np.column_stack([np.ones(24), roles[[c for c in columns if c != name]]])
        rest = roles[name] - others @ np.linalg.lstsq(others, roles[name], rcond=None)[0]
        assert found["vif"][row] == pytest.approx(roles[name].var(ddof=0) / rest.var(ddof=0))


def test_what_does_not_fit_together_is_refused() -> None:
    table, roles = grown({}), role_table()
    table.attrs["before_model_hash"], roles.attrs["model_hash"] = "a", "b"
    with pytest.raises(IncomparableTables, match="whose weights differ"):
        amplification_by_role(table, roles)
    roles.attrs["model_hash"] = "a"
    lacking = roles[roles["head"] < 5]
    with pytest.raises(IncomparableTables, match=r"lack head \(0, 5\)"):
        amplification_by_role(table, lacking)
    with pytest.raises(MidusError, match="has no loud"):
        amplification_by_role(table, roles, columns=["loud"])
    roles["broad"] = 2 * roles["local"]
    with pytest.raises(MidusError, match="follow from the others"):
        amplification_by_role(table, roles, columns=["local", "broad"])
    one_layer = table[table["layer"] == 0]
    one_layer.attrs = table.attrs
    with pytest.raises(MidusError, match="6 heads in 1 layers are too few"):
        amplification_by_role(one_layer, roles, columns=["local"])
    with pytest.raises(MidusError, match="nothing to regress"):
        amplification_by_role(table, roles.assign(local=0.5), columns=["local"])
