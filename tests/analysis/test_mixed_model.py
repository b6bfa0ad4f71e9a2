"""The mixed model against textbook and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from analysis.mixed_model import random_intercept
from kernels.errors import MidusError


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
