"""RelP: attribution patching with the coefficients of layer-wise relevance propagation.

Jafari, Eberle, Khakzar and Nanda 2025, arXiv 2508.21258: in (baseline - clean) * dL/dz the gradient
is replaced by what relevance propagation passes back. As gradients of a model in which some factors
are held at their clean values (the authors' code does the same):

- LN-rule: a norm divides by its clean scale (Ali et al. 2022, arXiv 2202.07304);
- identity rule: an activation f(x) is x times its clean ratio f(x) / x;
- half rule: of a product of two branches (gated MLPs) each has half;
- 0-rule: linear maps are as they are.

The AH-rule (Ali et al. 2022), attention patterns held at what they are in the clean run, is in the
authors' list of rules but not among those that their code applies; here it is `held`, and off: on
SmolLM2 it agrees less with ablation (`docs/first-order.md`). With it, what a memory retrieves is
held too. The metric is differentiated as it is. The clean run's values stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from analysis.engine import Batch, Replacement
from analysis.first_order import FirstOrder
from analysis.gates import Gated, gate_gradients
from kernels.errors import ModelError
from midus_model import blocks
from midus_model.lean import mean_square_ratio

PASSES = 3.3
NEAR_ZERO = 1e-6  # an activation's ratio is taken no nearer to zero than that
AGREES = 0.02  # of a norm's output: what may be the rounding of half precision


def effects(
    view: Gated,
    batch: Batch,
    replacement: Replacement,
    clean: torch.Tensor | None = None,
    held: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minus the propagated coefficient of every gate, [G, W], and the windows' values [W]."""
    with relevance(view.model, held):
        found, values = gate_gradients(view, batch, replacement, clean=clean)
    return -found, values


@contextmanager
def relevance(model: Any, held: bool = False) -> Iterator[None]:
    """Inside, backward passes through the model follow the rules; forward values stay the same.

    held: the AH-rule too.
    """
    with ExitStack() as stack:
        for module in _norms(model):
            stack.callback(module.register_forward_hook(_norm_rule).remove)
        for block in blocks(model):
            if held:
                for name in ("q_proj", "k_proj"):
                    projection = getattr(block.self_attn, name)
                    stack.callback(projection.register_forward_hook(_held).remove)
                if hasattr(block, "memory"):
                    stack.callback(block.memory.register_forward_pre_hook(_held_input).remove)
            mlp: Any = getattr(block, "mlp", None)
            if isinstance(getattr(mlp, "act_fn", None), nn.Module):
                stack.callback(mlp.act_fn.register_forward_hook(_identity_rule).remove)
            if hasattr(mlp, "gate_proj") and hasattr(mlp, "up_proj"):
                stack.callback(mlp.down_proj.register_forward_pre_hook(_half_rule).remove)
        yield


def _norms(model: Any) -> list[nn.Module]:
    """Every norm: of the stream, and of queries and keys."""
    parts = [module for block in blocks(model) for module in block.modules()]
    return [module for module in (*parts, model.model.norm) if _is_norm(module)]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or hasattr(module, "variance_epsilon")


def _valued(value: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """`value`, with the gradient of `path`."""
    return value.detach() + (path - path.detach()).to(value.dtype)


def _norm_rule(module: Any, args: tuple, output: torch.Tensor) -> torch.Tensor:
    states = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
    if isinstance(module, nn.LayerNorm):
        states = states - states.mean(-1, keepdim=True)
        scale, weight = mean_square_ratio(states.detach(), module.eps), module.weight
    else:
        scale, weight = mean_square_ratio(states.detach(), module.variance_epsilon), module.weight
    path = states * scale if weight is None else states * scale * weight.to(states.dtype)
    bias = getattr(module, "bias", None)
    made = path.detach() if bias is None else path.detach() + bias
    if (made - output).norm() > AGREES * output.norm():
        raise ModelError(
            f"a {type(module).__name__} is no norm that method 'relp' has a rule for; use 'taylor'"
        )
    return _valued(output, path)


def _held(_: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return output.detach()


def _held_input(_: nn.Module, args: tuple) -> tuple:
    return (args[0].detach(), *args[1:])


def _identity_rule(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    states = args[0]
    near = states.detach().abs() < NEAR_ZERO
    if near.any():
        away = torch.where(near, torch.full_like(states, NEAR_ZERO), states).detach()
        with torch.no_grad():
            ratio = type(module).forward(module, away) / away
    else:
        ratio = output.detach() / states.detach()
    return _valued(output, states * ratio)


def _half_rule(_: nn.Module, args: tuple) -> tuple:
    product = args[0]
    return (_valued(product, product / 2), *args[1:])


METHOD = FirstOrder("relevance patching (RelP)", effects, lambda model: PASSES)
