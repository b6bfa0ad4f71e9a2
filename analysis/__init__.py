"""What measures a model: importance, ranking, amplification, memory, costs, and their figures."""

from typing import TYPE_CHECKING

from kernels.lazy import import_when_used

if TYPE_CHECKING:
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
    from analysis.contrasts import amplification_contrast
    from analysis.costs import costs
    from analysis.doctor import doctor
    from analysis.documents import documents
    from analysis.dose import dose_response
    from analysis.estimates import EstimateWarning
    from analysis.evidence import evidence, prune_curve
    from analysis.head_view import head_view
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
    from analysis.next_tokens import next_tokens
    from analysis.ranking import rank_heads
    from analysis.realisations import head_geometry, memory_realisations, residual_updates
    from analysis.role_slopes import amplification_by_role
    from analysis.roles import head_roles

__all__ = [
    "EstimateWarning",
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
    "head_view",
    "memory_contents",
    "memory_effects",
    "memory_realisations",
    "memory_usage",
    "memory_view",
    "nearest_slots",
    "next_tokens",
    "paper",
    "prune_curve",
    "rank_heads",
    "residual_updates",
    "scaled_memory",
    "slot_tokens",
    "token_effects",
    "usage_stability",
]

import_when_used(
    __name__,
    {
        "analysis.amplification": ("amplification",),
        "analysis.amplify": ("amplify",),
        "analysis.causes": (
            "edited_slot",
            "generation_effects",
            "memory_effects",
            "scaled_memory",
            "token_effects",
        ),
        "analysis.checks": ("check_model",),
        "analysis.contrasts": ("amplification_contrast",),
        "analysis.costs": ("costs",),
        "analysis.doctor": ("doctor",),
        "analysis.documents": ("documents",),
        "analysis.dose": ("dose_response",),
        "analysis.estimates": ("EstimateWarning",),
        "analysis.evidence": ("evidence", "prune_curve"),
        "analysis.head_view": ("head_view",),
        "analysis.importance": ("head_importance",),
        "analysis.interactions": ("head_interactions",),
        "analysis.memory": (
            "memory_contents",
            "memory_usage",
            "memory_view",
            "nearest_slots",
            "slot_tokens",
            "usage_stability",
        ),
        "analysis.metrics": ("Metric",),
        "analysis.next_tokens": ("next_tokens",),
        "analysis.ranking": ("rank_heads",),
        "analysis.realisations": ("head_geometry", "memory_realisations", "residual_updates"),
        "analysis.role_slopes": ("amplification_by_role",),
        "analysis.roles": ("head_roles",),
    },
)
