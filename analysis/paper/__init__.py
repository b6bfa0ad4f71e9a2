"""Figures for a paper: matplotlib, no browser, no pyplot, text as text, the same bytes every time.

Every function takes the tables of `analysis` and returns a `Figure`; `save` writes it as PDF, SVG
and PNG. `analysis.figures` holds the interactive twins.
"""

from analysis.paper.amplification import amplification, amplification_map, importance_change
from analysis.paper.canvas import COLUMN, FULL, Figure, save
from analysis.paper.choice import choice
from analysis.paper.costs import costs
from analysis.paper.dose import dose_response, role_slopes
from analysis.paper.effects import memory_effects, realisations
from analysis.paper.evidence import method_agreement, prune_curves
from analysis.paper.importance import importance_curves, importance_map
from analysis.paper.keys import key_coverage, usage_curves
from analysis.paper.memory import slot_grid, slot_histogram, slot_usage
from analysis.paper.patterns import attention_pattern
from analysis.paper.quality import quality_cost
from analysis.paper.roles import role_map
from analysis.paper.screen import screen_svg
from analysis.paper.slots import memory_map, memory_view
from analysis.paper.tokens import next_tokens
from analysis.paper.training import training_curves

__all__ = [
    "COLUMN",
    "FULL",
    "Figure",
    "amplification",
    "amplification_map",
    "attention_pattern",
    "choice",
    "costs",
    "dose_response",
    "importance_change",
    "importance_curves",
    "importance_map",
    "key_coverage",
    "memory_effects",
    "memory_map",
    "memory_view",
    "method_agreement",
    "next_tokens",
    "prune_curves",
    "quality_cost",
    "realisations",
    "role_map",
    "role_slopes",
    "save",
    "screen_svg",
    "slot_grid",
    "slot_histogram",
    "slot_usage",
    "training_curves",
    "usage_curves",
]
