"""Interactive figures: plotly twins of `analysis.paper`, same names, same tables, same numbers.

Backgrounds are transparent and greys are mid-grey, so a figure sits on a light or a dark page. Maps
carry their own width, because their square markers have a fixed size: show them unstretched.
"""

from analysis.figures.amplification import amplification, amplification_map, importance_change
from analysis.figures.costs import costs
from analysis.figures.evidence import method_agreement, prune_curves
from analysis.figures.importance import importance_curves, importance_map
from analysis.figures.memory import slot_histogram, slot_usage
from analysis.figures.page import save_html
from analysis.figures.roles import role_map
from analysis.figures.training import training_curves

__all__ = [
    "amplification",
    "amplification_map",
    "costs",
    "importance_change",
    "importance_curves",
    "importance_map",
    "method_agreement",
    "prune_curves",
    "role_map",
    "save_html",
    "slot_histogram",
    "slot_usage",
    "training_curves",
]
