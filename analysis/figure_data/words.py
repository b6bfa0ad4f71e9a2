"""What captions, axes and hover texts say of a table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.agreement_words import agreement_words
from analysis.figure_data.names import ems, fold
from analysis.first_order import REGISTERED, registered
from analysis.ranking_words import counted

METHODS = {
    "ablation": "exact ablation",
    "gradient": "gradient magnitude",
    "taylor": "first-order (Taylor) ablation",
    "integrated_gradients": "integrated gradients",
    "fisher": "Fisher information",
    "dla": "direct logit attribution",
    "shapley": "sampled Shapley value",
    "screen": "exact ablation of what a first-order screen chose",
}


def model_name(table: pd.DataFrame, fallback: str = "model") -> str:
    """The model a table measured, or `fallback` where the table does not say."""
    return str(table.attrs.get("model") or fallback)


def unit(table: pd.DataFrame) -> str:
    """The unit of a table's scores."""
    return str(table.attrs.get("unit") or "unit not recorded")


def metric(table: pd.DataFrame) -> str:
    """The metric's name as a reader writes it."""
    name = str(table.attrs.get("metric") or "not recorded").replace("_", " ")
    return {"kl": "KL divergence from the clean model"}.get(name, name)


def score_label(table: pd.DataFrame, what: str = "importance") -> str:
    """An axis' or a colour bar's label: what is shown, and its unit."""
    return f"{what} ({unit(table)})"


def head_word(table: pd.DataFrame) -> str:
    """What the column `head` counts: heads, or groups of heads that share a key-value head."""
    return "KV group" if table.attrs.get("heads_are") == "kv groups" else "head"


def interval_words(table: pd.DataFrame) -> str:
    """What the intervals are: a race names its own, everything else is Student's t at 95%."""
    attrs = table.attrs
    if attrs.get("interval"):
        if (table["ci_low"] == table["ci_high"]).all():
            return "none left, every window was measured"
        interval = str(attrs["interval"])
        level = f"{100 * float(attrs.get('confidence') or 0.95):g}%"
        return interval if level in interval else f"{level} {interval}"
    paired = "paired " if attrs.get("table") == "amplification" else ""
    unit = attrs.get("bootstrap_unit") or "document"
    if "unit" not in table.columns:  # of an older version
        return f"95% {paired}bootstrap over {unit}s"
    note = f" ({attrs['interval_note']})" if attrs.get("interval_note") else ""
    return f"95% {paired}t over {unit}s{note}"


def caption(
    table: pd.DataFrame,
    *others: pd.DataFrame | None,
    title: str,
    intervals: bool = True,
    method: bool = True,
    notes: Iterable[str] = (),
) -> str:
    """What the numbers are: title, method, baseline, metric, data, models, kind of interval."""
    attrs = table.attrs
    names = [model_name(t, "") for t in (table, *others) if t is not None]
    if attrs.get("before_model") and attrs.get("after_model"):
        names = [str(attrs["before_model"]), str(attrs["after_model"])]
    parts = [
        f"{title}: {_method_words(attrs)}" if method else title,
        *_gate_words(attrs),
        _baseline_words(attrs),
        _metric_words(table),
        data_words(attrs),
        f"model {' → '.join(n for n in names if n) or 'not recorded'}",
        *([f"intervals: {interval_words(table)}"] if intervals else []),
        *_agreements([t for t in (table, *others) if t is not None] if method else []),
        *(n for n in notes if n),
    ]
    return "; ".join(parts) + "."


def _method_words(attrs: Mapping[Any, Any]) -> str:
    method = attrs.get("method")
    words = METHODS.get(str(method), str(method or "method not recorded"))
    if method in REGISTERED:
        words = registered(str(method)).words
    if attrs.get("normalise") in ("michel", "bertology"):
        words += f", convention {attrs['normalise']}"
    return words


def _agreements(tables: Sequence[pd.DataFrame]) -> list[str]:
    """How far each table's scores agree with exact ablation, where it carries that."""
    found = [(model_name(table, ""), agreement_words(table.attrs)) for table in tables]
    found = [(name, words) for name, words in found if words]
    if len(found) == 1:
        return [found[0][1]]
    return [f"{words} in {name}" if name else words for name, words in found]


def _gate_words(attrs: Mapping[Any, Any]) -> list[str]:
    """What is ablated, where it is not the output of a single head."""
    words = []
    if attrs.get("stage") == "query":
        words.append("gate on queries (what a memory head retrieves by)")
    if attrs.get("heads_are") == "kv groups":
        words.append("the heads of a KV group ablated together")
    return words


def _baseline_words(attrs: Mapping[Any, Any]) -> str:
    if "baseline" not in attrs:
        return "baseline not recorded"
    if attrs["baseline"] == "resample":
        return "baseline resample (the same position of another document)"
    return f"baseline {attrs['baseline']}" if attrs["baseline"] else "no baseline"


def _metric_words(table: pd.DataFrame) -> str:
    units = unit(table)
    return f"metric {metric(table)}" + (f", {units}" if units != metric(table) else "")


def data_words(attrs: Mapping[Any, Any]) -> str:
    """Which data, and how many documents (or windows) and tokens of it."""
    documents = attrs.get("documents") or []
    words = f"data {attrs.get('data') or 'not recorded'}"
    if not documents:
        return words
    tokens = sum(int(d.get("tokens", 0)) for d in documents)
    return f"{words}, {counted(attrs)}, {tokens:,} tokens"


def wrap(text: str, characters: int) -> list[str]:
    """`text` in lines of at most that many characters, fewer where they are wide; at least one."""
    most = max(20, characters)
    lines = textwrap.wrap(text, most, break_on_hyphens=False) or [""]
    room = 0.55 * most
    # Signs and Chinese characters are wider than letters.
    return [part for line in lines for part in (fold(line, room) if ems(line) > room else [line])]


def hover(row: Mapping[Any, Any], label: str, units: str, head: str = "head") -> str:
    """Hover text of one head: where it is, score and interval with units."""
    text = f"<b>{label}, {head} {int(row['head'])}</b> (block {int(row['layer'])}, {row['kind']})"
    text += f"<br>{row['score']:.4g} {units}"
    if np.isfinite(row["ci_low"]) and np.isfinite(row["ci_high"]):
        text += f"<br>interval {row['ci_low']:.4g} to {row['ci_high']:.4g} {units}"
    low, high = row.get("ci_low_all", np.nan), row.get("ci_high_all", np.nan)
    if np.isfinite(low) and np.isfinite(high):
        text += f"<br>with all heads {low:.4g} to {high:.4g} {units}"
    if row.get("below_noise"):
        text += "<br>within the noise of the model's dtype"
    return text
