"""Interactive figures: plotly twins of `analysis.paper`, same names, same tables, same numbers.

Backgrounds are transparent and greys are mid-grey, so a figure sits on a light or a dark page. Maps
carry their own width, because their square markers have a fixed size: show them unstretched.
"""

from analysis.figures.amplification import amplification, amplification_map, importance_change
from analysis.figures.choice import choice
from analysis.figures.costs import costs
from analysis.figures.dose import dose_response, role_slopes
from analysis.figures.effects import memory_effects, realisations
from analysis.figures.evidence import method_agreement, prune_curves
from analysis.figures.importance import importance_curves, importance_map
from analysis.figures.keys import key_coverage, usage_curves
from analysis.figures.memory import slot_grid, slot_histogram, slot_usage
from analysis.figures.page import save_html
from analysis.figures.patterns import attention_pattern
from analysis.figures.quality import quality_cost
from analysis.figures.roles import role_map
from analysis.figures.slots import memory_map, memory_view
from analysis.figures.tokens import next_tokens
from analysis.figures.training import training_curves

__all__ = [
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
    "save_html",
    "slot_grid",
    "slot_histogram",
    "slot_usage",
    "training_curves",
    "usage_curves",
]
