"""What inserted blocks add to the stream, memory or a replicated layer, in the same measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from analysis.engine import Progress
from analysis.estimates import did, expect, timed
from analysis.intervals import t_interval
from analysis.memory.places import DEFAULT_MODEL, described
from analysis.memory.stream import batches_of
from analysis.realisations.moments import Moments, effective_rank
from analysis.shortened import passes_of
from analysis.subject import loaded_with
from analysis.tables import display_name
from kernels.errors import MidusError
from midus_model import blocks, input_device
from midus_model.config import layer_map_of
from midus_model.placement import counting_device

STAGE = "what blocks add"


@timed
def residual_updates(
    model: Any = None,
    data: Any = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """How much every inserted block adds to the stream, and in how many directions.

    Measured alike for memory blocks and for replicated layers (LLaMA Pro and its like), so that
    tables of two models on the same documents can be set side by side.

    Args:
        model: an up-scaled model as `midus_model.load` takes it; by default "pico-midus".
        data, limit: as `analysis.documents` takes them.
        seed: kept in `.attrs`; nothing is drawn.
        progress: called with (done, total, text).

    Returns:
        A row an inserted block and part of it: block, kind, source_layer, part ("block", the whole
        of what it adds; where it has an FFN also "attention" and "ffn"); norm_ratio, the mean over
        positions of the norm of what the part adds over that of the block's input, with stderr,
        ci_low, ci_high (95%, over documents) and by_document; effective_rank,
        exp(entropy of the normalised eigenvalues of the additions' covariance over positions), 1 to
        d; NaN where nothing is added. Positions: every token once.

    Says nothing of what an addition is good for: see `memory_effects` for that.

    Raises:
        MidusError: for a model that has no inserted blocks.
        ModelError, DataError: for a model or data that cannot be used.

    >>> residual_updates(limit=2)[["block", "norm_ratio", "effective_rank"]]  # doctest: +SKIP
    """
    network: Any
    network, texts = loaded_with(DEFAULT_MODEL if model is None else model, data, limit)
    parts = [part for at in _inserted(network) for part in _parts_of(network, at)]
    device = input_device(network)
    tallies = {part: _Tally(network.config.hidden_size, len(texts.units), device) for part in parts}
    expect("residual updates", network, texts, {STAGE: passes_of(texts)})
    done = 0
    with torch.inference_mode(), _watching(network, parts) as seen:
        for batch, positions in batches_of(texts.windows, device):
            network.model(input_ids=batch.ids, use_cache=False)
            units = np.array([window.unit for window in positions.windows])
            owner = units[(positions.index // positions.length).cpu().numpy()]  # [P]
            for part, tally in tallies.items():
                stream, added = (
                    x.flatten(0, 1)[positions.index.to(x.device)] for x in seen[part]
                )  # [P, d]
                tally.add(stream, added, owner)
            done += len(positions.windows)
            did(STAGE, batch.tokens)
            if progress:
                progress(done, len(texts.windows), STAGE)
    entries = layer_map_of(network.config)
    rows = [
        {
            "block": at,
            "kind": entries[at]["kind"],
            "source_layer": entries[at]["source"][0],
            "part": name,
            **tallies[at, name].row(),
            "unit": texts.unit,
        }
        for at, name in parts
    ]
    table = pd.DataFrame(rows)
    table.attrs = described("residual_updates", network, texts, seed=seed)
    return table


Part = tuple[int, str]  # block, and which of what it adds


def _inserted(model: Any) -> list[int]:
    found = [at for at, entry in enumerate(layer_map_of(model.config)) if entry["kind"] != "base"]
    if not found:
        raise MidusError(
            f"{display_name(model)} has no inserted blocks; give an up-scaled model, such as "
            f"{DEFAULT_MODEL!r}"
        )
    return found


def _parts_of(model: Any, at: int) -> list[Part]:
    names = ("block", "attention", "ffn") if hasattr(blocks(model)[at], "mlp") else ("block",)
    return [(at, name) for name in names]


@contextmanager
def _watching(
    model: Any, parts: list[Part]
) -> Iterator[dict[Part, tuple[torch.Tensor, torch.Tensor]]]:
    """By part, in the last pass: its block's input and what it added to the stream, [W, T, d]."""
    seen: dict[Part, tuple[torch.Tensor, torch.Tensor]] = {}
    made: dict[int, torch.Tensor] = {}  # what FFNs gave

    def keep(at: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any], output: torch.Tensor) -> None:
            stream = (args[0] if args else kwargs["hidden_states"]).to(output.device)
            seen[at, "block"] = stream, output - stream
            if at in made:
                ffn = made.pop(at)
                seen[at, "attention"] = stream, output - stream - ffn
                seen[at, "ffn"] = stream, ffn

        return hook

    def keep_ffn(at: int) -> Callable[..., None]:
        return lambda _, __, output: made.__setitem__(at, output)

    with ExitStack() as stack:
        for at, name in parts:
            block = blocks(model)[at]
            if name == "block":
                handle = block.register_forward_hook(keep(at), with_kwargs=True)
                stack.callback(handle.remove)
            elif name == "ffn":
                stack.callback(block.mlp.register_forward_hook(keep_ffn(at)).remove)
        yield seen


class _Tally:
    """Ratios of norms by unit of the intervals, and moments of what is added."""

    def __init__(self, width: int, units: int, device: torch.device) -> None:
        self.moments = Moments(width, counting_device(device))
        self.ratios, self.counts = np.zeros(units), np.zeros(units)

    def add(self, stream: torch.Tensor, added: torch.Tensor, owner: np.ndarray) -> None:
        """Streams and additions [P, d]; owner [P], each position's unit."""
        self.moments.add(added)
        ratio = added.float().norm(dim=-1) / stream.float().norm(dim=-1)
        np.add.at(self.ratios, owner, ratio.cpu().double().numpy())
        np.add.at(self.counts, owner, 1.0)

    def row(self) -> dict[str, Any]:
        """The columns that are measured."""
        by_document = self.ratios / self.counts
        found = t_interval(by_document, self.counts, together=False)
        spread = torch.linalg.eigvalsh(self.moments.covariance).clamp_min(0)
        return {
            "norm_ratio": found.estimate,
            **found.columns(),
            "effective_rank": float(effective_rank(spread)),
            "by_document": by_document.tolist(),
        }
