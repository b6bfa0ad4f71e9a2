"""A clock that counts work and nothing else, so that estimates and time budgets can be tested."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from analysis import estimates


class Clock:
    """Every token that goes through a block takes `seconds`; `slower` after so many of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.tokens = seconds, 0.0, 0
        self.after, self.slower = float("inf"), 1.0

    def __call__(self) -> float:
        return self.now

    def tick(self, tokens: int) -> None:
        self.tokens += tokens
        self.now += self.seconds * tokens * (self.slower if self.tokens > self.after else 1.0)


def counting(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Clock:
    """A clock that goes by Llama's blocks, in place of the machine's."""
    clock, forward = Clock(seconds), LlamaDecoderLayer.forward

    def ticking(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        clock.tick(hidden_states.shape[0] * hidden_states.shape[1])
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", ticking)
    monkeypatch.setattr(estimates, "clock", clock)
    return clock
