"""What the memory holds: how slots are used, what is in them, and what they write.

Shape letters of this package: W windows in a batch, T positions of a window, P positions that
count, H query heads, M memory heads, D head size, d hidden size, n sub-keys a half, N = n * n
slots, k slots read, r latent size, V vocabulary.
"""

from analysis.memory.contents import memory_contents
from analysis.memory.slots import nearest_slots, slot_tokens
from analysis.memory.stability import usage_stability
from analysis.memory.table import MemoryUsage, SlotCounts
from analysis.memory.usage import memory_usage
from analysis.memory.view import memory_view

__all__ = [
    "MemoryUsage",
    "SlotCounts",
    "memory_contents",
    "memory_usage",
    "memory_view",
    "nearest_slots",
    "slot_tokens",
    "usage_stability",
]
