"""Figures for a paper: matplotlib, no browser, no pyplot, text as text, the same bytes every time.

Every function takes the tables of `analysis` and returns a `Figure`; `save` writes it as PDF, SVG
and PNG. `analysis.figures` holds the interactive twins.
"""

from analysis.paper.amplification import amplification, amplification_map, importance_change
from analysis.paper.canvas import COLUMN, FULL, Figure, save
from analysis.paper.costs import costs
from analysis.paper.evidence import method_agreement, prune_curves
from analysis.paper.importance import importance_curves, importance_map
from analysis.paper.memory import slot_histogram, slot_usage
from analysis.paper.roles import role_map
from analysis.paper.training import training_curves

__all__ = [
    "COLUMN",
    "FULL",
    "Figure",
    "amplification",
    "amplification_map",
    "costs",
    "importance_change",
    "importance_curves",
    "importance_map",
    "method_agreement",
    "prune_curves",
    "role_map",
    "save",
    "slot_histogram",
    "slot_usage",
    "training_curves",
]
