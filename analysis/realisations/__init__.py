"""How the shared bank becomes each head's own output: what the heads' projections are worth.

A memory head reads z_h = sum over k of w_k U[I_k] and writes o_h = z_h P_h (HIVE, arXiv
2512.13751). With slots I and weights w held as the clean run has them, o_h is linear in the bank U
for given projections P, and linear in P for a given bank; not in both together.

Shape letters of this package: W windows, T tokens, P positions, H query heads, M memory heads, D
head size, k slots read, r latent size, d hidden size.
"""

from analysis.realisations.fixed import REALISATIONS, memory_realisations
from analysis.realisations.geometry import head_geometry
from analysis.realisations.updates import residual_updates

__all__ = ["REALISATIONS", "head_geometry", "memory_realisations", "residual_updates"]
