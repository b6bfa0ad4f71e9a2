"""Second moments gathered batch by batch, and how many dimensions they really have."""

from __future__ import annotations

import torch


class Moments:
    """Count, sum [F] and products [F, F] of rows seen so far, in float64."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, rows: torch.Tensor) -> None:
        """Rows [P, F]."""
        rows = rows.to(self.total.device, torch.float64)
        self.count += len(rows)
        self.total += rows.sum(0)
        self.products += rows.T @ rows

    @property
    def covariance(self) -> torch.Tensor:
        """[F, F], on the CPU; its mean taken off, not divided by the count."""
        mean = self.total / self.count
        return (self.products - self.count * mean[:, None] * mean).cpu()


def effective_rank(sizes: torch.Tensor) -> torch.Tensor:
    """exp(entropy) of sizes [..., F] normalised to sum to 1; NaN where all are zero.

    Of singular values that is the effective rank of Roy and Vetterli (EUSIPCO 2007): 1 to F.
    """
    share = sizes / sizes.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()
