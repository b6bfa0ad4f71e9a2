"""What memory causes: what is lost, and what a model says, with a part of its memory switched."""

from analysis.causes.effects import memory_effects
from analysis.causes.switches import edited_slot, scaled_memory
from analysis.causes.text import generation_effects, token_effects

__all__ = [
    "edited_slot",
    "generation_effects",
    "memory_effects",
    "scaled_memory",
    "token_effects",
]
