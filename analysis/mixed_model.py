"""Linear regression with a random intercept a group."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize

from analysis.ties import ROUNDING
from kernels.errors import MidusError


class Fit(NamedTuple):
    """Slopes [p] and their covariance [p, p]; the residual variance; the intraclass correlation,
    the share of the variance around the slopes that lies between groups."""

    slopes: np.ndarray
    covariance: np.ndarray
    residual: float
    icc: float

    @property
    def stderr(self) -> np.ndarray:
        """Standard errors [p]."""
        return np.sqrt(np.diag(self.covariance))


def random_intercept(values: np.ndarray, design: np.ndarray, groups: np.ndarray) -> Fit:
    """Linear regression with a random intercept a group, by REML.

    values = design @ slopes + intercept of the group + residual, both normal. Their variances enter
    through the ratio theta = icc / (1 - icc) alone: given it, slopes are generalised least squares
    in closed form, and the residual variance too, so that what is searched is one number
    (Patterson and Thompson 1971, Biometrika 58(3); Lindstrom and Bates 1988, JASA 83, sec. 3).

    Args:
        values: [n]. design: [n, p], a column of ones among them. groups: [n], labels.
    """
    members = (groups[:, None] == np.unique(groups)).astype(float)  # [n, groups]
    rounding = (ROUNDING * np.abs(values).max()) ** 2
    sizes, free = members.sum(0), len(values) - design.shape[1]

    def given(icc: float) -> tuple[float, Fit]:
        """Minus twice the restricted log-likelihood, up to a constant, and the fit."""
        theta = icc / (1 - icc)
        shrink = theta / (1 + theta * sizes)  # V^-1 = 1 - Z shrink Z', V = 1 + theta Z Z'

        def inverse(array: np.ndarray) -> np.ndarray:
            return array - members @ (shrink * (members.T @ array).T).T

        information = design.T @ inverse(design)
        slopes = np.linalg.solve(information, design.T @ inverse(values))
        rest = values - design @ slopes
        residual = float(rest @ inverse(rest)) / free
        if not residual > rounding:
            raise MidusError("the values have no variance left to explain; nothing can be fitted")
        covariance = residual * np.linalg.inv(information)
        deviance = free * np.log(residual) + np.log1p(theta * sizes).sum()
        deviance += np.linalg.slogdet(information)[1]
        return float(deviance), Fit(slopes, covariance, residual, float(icc))

    grid = np.append(np.linspace(0, 0.96, 25), [0.99, 0.999, 0.9999, 0.99999])
    best = int(np.argmin([given(icc)[0] for icc in grid]))
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    search = optimize.minimize_scalar(
        lambda icc: given(icc)[0], bounds=around, method="bounded", options={"xatol": 1e-10}
    )
    return min((given(search.x), given(grid[best])), key=lambda pair: pair[0])[1]
