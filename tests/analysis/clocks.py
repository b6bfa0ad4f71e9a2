"""A clock that counts work and nothing else, so that estimates and time budgets can be tested."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from analysis import estimates

BLOCK = 30_720  # parameters of a tiny Llama's block


class Clock:
    """A token through a block takes `seconds`, and `slower` times that from `after` on."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.passed = seconds, 0.0, 0.0
        self.after, self.slower = float("inf"), 1.0

    def __call__(self) -> float:
        return self.now

    def tick(self, blocks: float) -> None:
        self.passed += blocks
        self.now += self.seconds * blocks * (self.slower if self.now > self.after else 1.0)


def counting(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Clock:
    """A clock that goes by products with linear maps, in place of the machine's."""
    clock, forward = Clock(seconds), nn.Linear.forward

    def ticking(self: nn.Linear, states: torch.Tensor) -> torch.Tensor:
        clock.tick(states.numel() / self.in_features * self.weight.numel() / BLOCK)
        return forward(self, states)

    monkeypatch.setattr(nn.Linear, "forward", ticking)
    monkeypatch.setattr(estimates, "clock", clock)
    return clock
