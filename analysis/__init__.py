"""What measures a model: importance, ranking, amplification, memory, costs, and their figures."""

from analysis import figures, paper
from analysis.amplification import amplification
from analysis.amplify import amplify
from analysis.causes import (
    edited_slot,
    generation_effects,
    memory_effects,
    scaled_memory,
    token_effects,
)
from analysis.checks import check_model
from analysis.contrasts import amplification_by_role, amplification_contrast
from analysis.costs import costs
from analysis.doctor import doctor
from analysis.documents import documents
from analysis.dose import dose_response
from analysis.evidence import evidence, prune_curve
from analysis.importance import head_importance
from analysis.interactions import head_interactions
from analysis.memory import (
    memory_contents,
    memory_usage,
    memory_view,
    nearest_slots,
    slot_tokens,
    usage_stability,
)
from analysis.metrics import Metric
from analysis.ranking import rank_heads
from analysis.realisations import head_geometry, memory_realisations, residual_updates
from analysis.roles import head_roles

__all__ = [
    "Metric",
    "amplification",
    "amplification_by_role",
    "amplification_contrast",
    "amplify",
    "check_model",
    "costs",
    "doctor",
    "documents",
    "dose_response",
    "edited_slot",
    "evidence",
    "figures",
    "generation_effects",
    "head_geometry",
    "head_importance",
    "head_interactions",
    "head_roles",
    "memory_contents",
    "memory_effects",
    "memory_realisations",
    "memory_usage",
    "memory_view",
    "nearest_slots",
    "paper",
    "prune_curve",
    "rank_heads",
    "residual_updates",
    "scaled_memory",
    "slot_tokens",
    "token_effects",
    "usage_stability",
]
