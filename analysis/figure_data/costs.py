"""Costs of several models by component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.figure_data.checks import require
from analysis.figure_data.words import model_name
from kernels.errors import MidusError

COST_PANELS = {
    "parameters": ("parameters", "number"),
    "flops_per_token": ("compute", "FLOP/token"),
    "weight_bytes_per_token": ("weights read", "B/token"),
    "kv_bytes_per_token": ("KV cache read", "B/token"),
}
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
COST_COLUMNS = ("component", *COST_PANELS)
COMPONENTS = {
    "embeddings": "#B8BEC4",
    "attention": "#0072B2",
    "ffn": "#7CC3EE",
    "norms": "#009E73",
    "memory": "#D55E00",
    "lm_head": "#5F676E",
}


def cost_tables(tables: Sequence[Any], figure: str) -> dict[str, pd.DataFrame]:
    """Cost tables by model name, components (without the total) summed, in one order."""
    if not tables:
        raise MidusError(f"{figure} needs at least one table from analysis.costs()")
    out: dict[str, pd.DataFrame] = {}
    for table in tables:
        table = require(table, COST_COLUMNS, figure, "analysis.costs()")
        name = model_name(table)
        if name in out:
            name = f"{name} ({sum(n.startswith(name) for n in out) + 1})"
        parts = table[table["component"] != "total"]
        parts = parts.groupby("component", sort=False)[list(COST_PANELS)].sum()
        known = [c for c in COMPONENTS if c in parts.index]
        out[name] = parts.loc[known + [c for c in parts.index if c not in COMPONENTS]]
        out[name].attrs = dict(table.attrs)
    return out


def si_prefix(top: float) -> tuple[float, str]:
    """The largest decimal prefix that keeps `top` at or above 1, as (factor, letter)."""
    return next(((f, letter) for f, letter in _PREFIXES if top >= f), (1.0, ""))


def three_digits(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:#.3g}".rstrip(".") if value else "0"


def cost_colour(component: str) -> str:
    """A component's colour, grey for one that is not known."""
    return COMPONENTS.get(component, "#999999")


def latencies(tables: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, float]]:
    """{'prefill' | 'decode': {model: milliseconds}} for what every table has measured."""
    out: dict[str, dict[str, float]] = {}
    for phase in ("prefill", "decode"):
        times = {n: (t.attrs.get("latency_ms") or {}).get(phase) for n, t in tables.items()}
        if all(isinstance(v, (int, float)) for v in times.values()):
            out[phase] = {n: float(v) for n, v in times.items() if v is not None}
    return out


def cost_caption(tables: Mapping[str, pd.DataFrame]) -> str:
    """The context, dtype and models that costs are of, and where latency was measured."""
    attrs = next(iter(tables.values())).attrs
    parts = [
        f"Costs by component: context {attrs.get('context', 'not recorded')} tokens",
        f"dtype {attrs.get('dtype', 'not recorded')}",
        f"models {', '.join(tables)}",
    ]
    if latencies(tables):
        times = attrs["latency_ms"]
        where = [str(times["device"])] if times.get("device") else []
        where += [f"{times['threads']} threads"] if times.get("threads") else []
        parts.append(f"latency measured on {', '.join(where) or 'a machine not recorded'}")
    return "; ".join(parts) + "."
