"""Head roles: what each head attends to and what it does with it (docs/roles.md)."""

from analysis.roles.importance import by_role
from analysis.roles.measure import head_roles
from analysis.roles.patterns import pattern_scores

__all__ = ["by_role", "head_roles", "pattern_scores"]
