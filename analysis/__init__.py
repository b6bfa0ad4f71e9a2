"""What measures a model: head importance, ranking, amplification, memory use, costs, figures."""

from analysis import figures, paper
from analysis.amplification import amplification
from analysis.checks import check_model
from analysis.costs import costs
from analysis.documents import documents
from analysis.evidence import evidence, prune_curve
from analysis.importance import head_importance
from analysis.interactions import head_interactions
from analysis.memory import memory_usage
from analysis.metrics import Metric
from analysis.ranking import rank_heads
from analysis.roles import head_roles

__all__ = [
    "Metric",
    "amplification",
    "check_model",
    "costs",
    "documents",
    "evidence",
    "figures",
    "head_importance",
    "head_interactions",
    "head_roles",
    "memory_usage",
    "paper",
    "prune_curve",
    "rank_heads",
]
