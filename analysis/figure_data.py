"""What the two kinds of figure share: numbers, row labels, colours and captions, from tables alone.

`analysis.paper` (matplotlib) and `analysis.figures` (plotly) draw what this module returns, so a
figure on paper and its interactive twin cannot disagree.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from midus_model.errors import MidusError

HEAD_COLUMNS = ("layer", "kind", "head", "source_layer")
IMPORTANCE_COLUMNS = (*HEAD_COLUMNS, "score", "ci_low", "ci_high")
AMPLIFICATION_COLUMNS = (
    "layer",
    "head",
    "source_layer",
    "before",
    "after_base",
    "after_memory",
    "after_copy",
    "score",
    "ci_low",
    "ci_high",
)
USAGE_COLUMNS = (*HEAD_COLUMNS, "slots", "coverage", "effective_slots")
SLOT_COLUMNS = ("slot", "hits", "weight")
TRAINING_COLUMNS = ("step", "loss", "eval_loss", "learning_rate")
COST_PANELS = {
    "parameters": ("parameters", "number"),
    "flops_per_token": ("compute", "FLOP/token"),
    "weight_bytes_per_token": ("weights read", "B/token"),
    "kv_bytes_per_token": ("KV cache read", "B/token"),
}
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
COST_COLUMNS = ("component", *COST_PANELS)

# Okabe and Ito's colour-blind-safe set, in an order whose neighbours also differ in lightness.
BEFORE, AFTER = "#0072B2", "#D55E00"
OWN, MEMORY, COPY = "#4D5B66", "#E69F00", "#CC79A7"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INSERTED_TEXT = "#A34700"
COMPONENTS = {
    "embeddings": "#B8BEC4",
    "attention": "#0072B2",
    "ffn": "#7CC3EE",
    "norms": "#009E73",
    "memory": "#D55E00",
    "lm_head": "#5F676E",
}
PARTS = {
    "own": ("the head itself", OWN),
    "memory": ("inserted memory", MEMORY),
    "copy": ("copied attention", COPY),
}
# Below this fraction of the colour range a cell reads as zero and gets no sign mark.
MARK_FROM = 0.02

METHODS = {
    "ablation": "exact ablation",
    "gradient": "gradient magnitude",
    "taylor": "first-order (Taylor) ablation",
    "integrated_gradients": "integrated gradients",
    "fisher": "Fisher information",
    "dla": "direct logit attribution",
    "shapley": "sampled Shapley value",
}


@dataclass(frozen=True)
class Row:
    """One block of a model as one row of a map."""

    layer: int
    kind: str
    source_layer: int
    inserted: bool
    label: str


@dataclass(frozen=True)
class Grid:
    """A column of a table as a matrix: `values`, `low`, `high` [rows, heads]; NaN: no head."""

    rows: list[Row]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def heads(self) -> int:
        return self.values.shape[1]


@dataclass(frozen=True)
class ColourRange:
    """Colours run from -limit to +limit; `beyond` cells are larger, `largest` is max |score|."""

    limit: float
    largest: float
    beyond: int

    @property
    def note(self) -> str:
        if not self.beyond:
            return ""
        cells = "1 cell" if self.beyond == 1 else f"{self.beyond} cells"
        return f"colours end at ±{self.limit:.3g}, {cells} beyond (largest size {self.largest:.3g})"


# --- checks ---------------------------------------------------------------------------------------


def require(table: Any, columns: Iterable[str], figure: str, maker: str) -> pd.DataFrame:
    """The table itself, or MidusError when it is no table, is empty or lacks a column."""
    if not isinstance(table, pd.DataFrame):
        raise MidusError(
            f"{figure} draws a DataFrame as {maker} returns it; got {type(table).__name__}"
        )
    missing = [c for c in columns if c not in table.columns]
    if missing:
        has = ", ".join(map(str, table.columns)) or "no columns"
        raise MidusError(
            f"{figure} needs the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"the table has {has}. A table from {maker} has them all"
        )
    if table.empty:
        raise MidusError(f"{figure} was given a table without rows; make one with {maker}")
    return table


def require_importance(table: Any, figure: str) -> pd.DataFrame:
    table = require(table, IMPORTANCE_COLUMNS, figure, "analysis.head_importance()")
    if not np.isfinite(table["score"].to_numpy(float)).any():
        raise MidusError(f"{figure} was given a table whose scores are all missing (NaN)")
    return table


def require_pair(before: Any, after: Any, figure: str, force: bool = False) -> None:
    """Check both tables, and that their numbers may stand beside each other."""
    require_importance(before, figure)
    if after is None:
        return
    require_importance(after, figure)
    from analysis.tables import comparable

    comparable(before, after, force=force)


# --- layer x head matrices ------------------------------------------------------------------------


def block_rows(table: pd.DataFrame) -> list[Row]:
    """The blocks of a table in model order, inserted ones labelled '+ kind (from source)'.

    Tables name copied and base attention alike: `attrs["inserted_layers"]` tells them apart, and
    without it an attention block whose source an earlier attention block holds is a copy.
    """
    blocks = table[["layer", "kind", "source_layer"]].drop_duplicates().sort_values("layer")
    inserted = table.attrs.get("inserted_layers")
    seen: set[int] = set()
    rows = []
    for layer, kind, source in blocks.itertuples(index=False, name=None):
        layer, kind, source = int(layer), str(kind), int(source)
        if kind in ("attention", "base"):
            copied = source in seen if inserted is None else layer in inserted
            name = "copy" if copied else None
            seen.add(source)
        else:
            name = kind
        label = f"layer {source}" if name is None else f"+ {name} (from {source})"
        rows.append(Row(layer, kind, source, name is not None, label))
    return rows


def grid(table: pd.DataFrame, column: str = "score") -> Grid:
    """A table's `column`, with its interval where it has one, as a layer x head Grid."""
    rows = block_rows(table)
    place = {(r.layer, r.kind): i for i, r in enumerate(rows)}
    at = (
        [place[int(b), str(k)] for b, k in zip(table["layer"], table["kind"], strict=True)],
        table["head"].to_numpy(int),
    )
    shape = (len(rows), int(table["head"].max()) + 1)
    low, high = interval_columns(column)

    def matrix(name: str) -> np.ndarray:
        out = np.full(shape, np.nan)
        if name in table.columns:
            out[at] = table[name].to_numpy(float)
        return out

    return Grid(rows, matrix(column), matrix(low), matrix(high))


def interval_columns(column: str) -> tuple[str, str]:
    if column.startswith("share_"):
        return "share_ci_low", "share_ci_high"
    return ("ci_low", "ci_high") if column == "score" else ("", "")


def aligned(before: Grid, after: Grid | None) -> tuple[list[Row], Grid, Grid | None]:
    """Both grids on the same rows: those of `after`, with NaN where `before` has no such block.

    Rows meet by label and, where a label stands more than once (stacking), by occurrence; a block
    that `after` lacks raises MidusError.
    """
    if after is None:
        return before.rows, before, None
    place = {key: i for i, key in enumerate(occurrences(after.rows))}
    lost = [key[0] for key in occurrences(before.rows) if key not in place]
    if lost:
        raise MidusError(
            f"the table after lacks {', '.join(lost)}, which the table before has; "
            "give the base model's table first and that of the model grown from it second"
        )
    heads = max(before.heads, after.heads)

    def spread(g: Grid, to: Sequence[int]) -> Grid:
        def put(m: np.ndarray) -> np.ndarray:
            out = np.full((len(after.rows), heads), np.nan)
            out[list(to), : m.shape[1]] = m
            return out

        return Grid(after.rows, put(g.values), put(g.low), put(g.high))

    old = spread(before, [place[key] for key in occurrences(before.rows)])
    return after.rows, old, spread(after, range(len(after.rows)))


def occurrences(rows: Sequence[Row]) -> list[tuple[str, int]]:
    labels = [r.label for r in rows]
    return [(label, labels[:i].count(label)) for i, label in enumerate(labels)]


def colour_range(*grids: Grid | None) -> ColourRange:
    """One symmetric range for all grids: the largest |score|, or the 98th percentile where a few
    heads are so large (over four times that percentile) that all others would look like zero."""
    values = np.concatenate([np.abs(g.values[np.isfinite(g.values)]) for g in grids if g])
    largest = float(values.max(initial=0.0))
    if largest == 0:
        return ColourRange(1.0, 0.0, 0)
    usual = float(np.quantile(values, 0.98))
    limit = usual if 0 < 4 * usual < largest else largest
    return ColourRange(limit, largest, int((values > limit).sum()))


def marked(values: np.ndarray, limit: float) -> np.ndarray:
    """Cells that carry a minus sign, so that the sign outlives a greyscale print."""
    return np.nan_to_num(values) < -MARK_FROM * limit


def mark_note(limit: float) -> str:
    return f"– marks values below −{MARK_FROM * limit:.1g}"


def tick_step(count: int, most: int = 16) -> int:
    """Every how many heads a tick is labelled so that at most `most` labels stand."""
    step = 1
    while -(-count // step) > most:
        step *= 2
    return step


# --- colours --------------------------------------------------------------------------------------


def _oklch(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCh (Ottosson 2020) to sRGB in 0..1, clipped to the gamut."""
    a, b = chroma * np.cos(np.deg2rad(hue)), chroma * np.sin(np.deg2rad(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.array(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ]
    ).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(float(c), 4) for c in srgb)
    return red, green, blue


def diverging(position: float) -> tuple[float, float, float]:
    """Colour at -1 (orange-brown, the head hurts) .. 0 (near white) .. 1 (blue, the head helps).

    Equal sizes are equally dark on both sides, so a greyscale print shows the size; the sign is
    then read from the minus signs.
    """
    t = min(abs(position), 1.0)
    return _oklch(0.97 - 0.58 * t, 0.1 * t + 0.3 * t * (1 - t), 258.0 if position > 0 else 48.0)


def diverging_stops(count: int = 33) -> list[tuple[float, str]]:
    """The diverging map as (0..1, '#rrggbb') stops."""
    return [(float(p), hex_colour(diverging(2 * p - 1))) for p in np.linspace(0, 1, count)]


def sequential_stops(count: int = 17) -> list[tuple[float, str]]:
    """Near white to dark blue-green, for what has no sign."""
    return [
        (float(t), hex_colour(_oklch(0.97 - 0.6 * t, 0.04 * t + 0.2 * t * (1 - t), 200 + 50 * t)))
        for t in np.linspace(0, 1, count)
    ]


def hex_colour(rgb: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)


def ink(position: float) -> str:
    """Black or white, whichever reads on a cell of that darkness (0..1)."""
    return "#ffffff" if abs(position) > 0.55 else "#202020"


def mark_ink(position: float) -> str:
    """Colour of the minus sign: a step darker than its cell, so weak cells get faint signs."""
    return "#ffffff" if abs(position) > 0.55 else hex_colour(diverging(-abs(position) - 0.45))


# --- series ---------------------------------------------------------------------------------------


def model_name(table: pd.DataFrame, fallback: str = "model") -> str:
    return str(table.attrs.get("model") or fallback)


def sorted_scores(table: pd.DataFrame) -> pd.DataFrame:
    """A table's rows by score, best first, with `rank` from 1 and `inserted`."""
    inserted = {(r.layer, r.kind): r.inserted for r in block_rows(table)}
    out = table.dropna(subset=["score"]).sort_values(
        ["score", "layer", "head"], ascending=[False, True, True], ignore_index=True
    )
    return out.assign(
        rank=np.arange(1, len(out) + 1),
        inserted=[inserted[int(b), str(k)] for b, k in zip(out["layer"], out["kind"], strict=True)],
    )


def amplified(table: Any, top: int | None, figure: str) -> pd.DataFrame:
    """The `top` heads that changed most, from the most amplified to the most weakened.

    Adds `own` (the head's own change), `memory`, `copy` (what inserted heads hold; the three add
    up to the score), `name` and `is_chosen`.
    """
    table = require(table, AMPLIFICATION_COLUMNS, figure, "analysis.amplification()")
    if top is not None and top < 1:
        raise MidusError(f"{figure}: top must be at least 1, or None for every head; got {top}")
    chosen = {(int(b), int(h)) for b, h in table.attrs.get("chosen") or []}
    out = table.dropna(subset=["score"])
    if out.empty:
        raise MidusError(f"{figure} was given a table whose scores are all missing (NaN)")
    if top is not None:
        largest = out["score"].abs().sort_values(ascending=False, kind="stable").index[:top]
        out = out.loc[largest]
    out = out.sort_values(
        ["score", "layer", "head"], ascending=[False, True, True], ignore_index=True
    )
    pairs = list(zip(out["layer"].astype(int), out["head"].astype(int), strict=True))
    return out.assign(
        own=out["after_base"] - out["before"],
        memory=out["after_memory"].fillna(0.0),
        copy=out["after_copy"].fillna(0.0),
        name=[f"L{b} H{h}" for b, h in pairs],
        is_chosen=[pair in chosen for pair in pairs],
    )


def amplified_notes(shown: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """What a caption says of the heads left out and of those chosen for memory."""
    notes = []
    if len(shown) < len(table):
        notes.append(f"the {len(shown)} of {len(table)} heads that changed most")
    if table.attrs.get("chosen"):
        named = int(shown["is_chosen"].sum())
        notes.append(f"bold: chosen for memory ({named} of {len(table.attrs['chosen'])} shown)")
    return notes


def shown_parts(table: pd.DataFrame) -> list[str]:
    """The parts of a change that any head has; the head's own always stands."""
    return ["own", *(p for p in ("memory", "copy") if (table[p] != 0).any())]


def base_heads(table: Any, column: str, figure: str) -> Grid:
    """An amplification table's column over the base model's layer x head grid."""
    columns = tuple(dict.fromkeys(("layer", "head", "source_layer", column)))
    table = require(table, columns, figure, "analysis.amplification()")
    return grid(table.assign(kind="base"), column)


def slot_hits(slots: Any, count: int | None, figure: str) -> tuple[pd.DataFrame, int | None]:
    """Slots by hits, most hit first, with `rank`, and how many slots the bank has, if known."""
    slots = require(slots, SLOT_COLUMNS, figure, "memory_usage().slots(block, head)")
    out = slots.sort_values(["hits", "slot"], ascending=[False, True], ignore_index=True)
    count = count if count is not None else slots.attrs.get("slots")
    if count is not None and count < len(out):
        raise MidusError(f"{figure}: {len(out)} slots were hit, but slots={count} says fewer exist")
    return out.assign(rank=np.arange(1, len(out) + 1)), None if count is None else int(count)


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
    return f"{value:#.3g}".rstrip(".") if value else "0"


def cost_colour(component: str) -> str:
    return COMPONENTS.get(component, "#999999")


def latencies(tables: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, float]]:
    """{'prefill' | 'decode': {model: milliseconds}} for what every table has measured."""
    out: dict[str, dict[str, float]] = {}
    for phase in ("prefill", "decode"):
        times = {n: (t.attrs.get("latency_ms") or {}).get(phase) for n, t in tables.items()}
        if all(isinstance(v, (int, float)) for v in times.values()):
            out[phase] = {n: float(v) for n, v in times.items() if v is not None}
    return out


def training_logs(runs: Any, figure: str) -> dict[str, pd.DataFrame]:
    """One log or several as {name: log}, each by step."""
    if isinstance(runs, pd.DataFrame):
        runs = {model_name(runs, "run"): runs}
    if not isinstance(runs, Mapping) or not runs:
        raise MidusError(
            f"{figure} draws a training log or a dict of name -> log; got {type(runs).__name__}"
        )
    return {
        str(n): require(t, TRAINING_COLUMNS, figure, "a training run").sort_values(
            "step", kind="stable"
        )
        for n, t in runs.items()
    }


# --- words ----------------------------------------------------------------------------------------


def unit(table: pd.DataFrame) -> str:
    return str(table.attrs.get("unit") or "unit not recorded")


def score_label(table: pd.DataFrame, what: str = "importance") -> str:
    return f"{what} ({unit(table)})"


def interval_words(table: pd.DataFrame) -> str:
    """What the intervals are: a race names its own, everything else is a bootstrap at 95%."""
    attrs = table.attrs
    if attrs.get("interval"):
        if (table["ci_low"] == table["ci_high"]).all():
            return "none left, every window was measured"
        return f"{100 * float(attrs.get('confidence') or 0.95):g}% {attrs['interval']}"
    paired = "paired " if attrs.get("table") == "amplification" else ""
    return f"95% {paired}bootstrap over {attrs.get('bootstrap_unit') or 'document'}s"


def caption(
    table: pd.DataFrame,
    *others: pd.DataFrame | None,
    title: str,
    intervals: bool = True,
    notes: Iterable[str] = (),
) -> str:
    """What the numbers are: title, method, baseline, metric, data, models, kind of interval."""
    attrs = table.attrs
    names = [model_name(t, "") for t in (table, *others) if t is not None]
    if attrs.get("before_model") and attrs.get("after_model"):
        names = [str(attrs["before_model"]), str(attrs["after_model"])]
    method = attrs.get("method")
    parts = [
        f"{title}: {METHODS.get(str(method), method or 'method not recorded')}",
        _baseline_words(attrs),
        f"metric {attrs.get('metric') or 'not recorded'}, {unit(table)}",
        _data_words(attrs),
        f"model {' → '.join(n for n in names if n) or 'not recorded'}",
        *([f"intervals: {interval_words(table)}"] if intervals else []),
        *(n for n in notes if n),
    ]
    return "; ".join(parts) + "."


def _baseline_words(attrs: Mapping[Any, Any]) -> str:
    if "baseline" not in attrs:
        return "baseline not recorded"
    return f"baseline {attrs['baseline']}" if attrs["baseline"] else "no baseline"


def _data_words(attrs: Mapping[Any, Any]) -> str:
    documents = attrs.get("documents") or []
    words = f"data {attrs.get('data') or 'not recorded'}"
    if not documents:
        return words
    tokens = sum(int(d.get("tokens", 0)) for d in documents)
    what = "window" if attrs.get("bootstrap_unit") == "window" else "document"
    return f"{words}, {len(documents)} {what}{'s' * (len(documents) != 1)}, {tokens:,} tokens"


def slots_title(slots: pd.DataFrame) -> str:
    """Which head's slots these are, as far as the table says."""
    block, head = slots.attrs.get("block"), slots.attrs.get("head")
    if block is None or head is None:
        return "Hits of one memory head's slots, most hit first"
    return f"Hits of the slots of block {block}, head {head}, most hit first"


def usage_caption(table: pd.DataFrame, title: str, notes: Iterable[str] = ()) -> str:
    """The caption of memory figures, whose numbers have neither method nor baseline."""
    parts = [title, _data_words(table.attrs), f"model {model_name(table, 'not recorded')}"]
    return "; ".join([*parts, *(n for n in notes if n)]) + "."


def cost_caption(tables: Mapping[str, pd.DataFrame]) -> str:
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


def training_caption(runs: Mapping[str, pd.DataFrame]) -> str:
    attrs = next(iter(runs.values())).attrs
    data = f"data {attrs['data']}; " if attrs.get("data") else ""
    return (
        f"Training: next-token loss, nats/token; {data}thin line: each logged training batch; "
        f"markers: held-out loss; runs {', '.join(runs)}."
    )


def wrap(text: str, characters: int) -> list[str]:
    return textwrap.wrap(text, max(20, characters), break_on_hyphens=False) or [""]


def hover(row: Mapping[Any, Any], label: str, units: str) -> str:
    """Hover text of one head: where it is, score and interval with units."""
    text = f"<b>{label}, head {int(row['head'])}</b> (block {int(row['layer'])}, {row['kind']})"
    text += f"<br>{row['score']:.4g} {units}"
    if np.isfinite(row["ci_low"]) and np.isfinite(row["ci_high"]):
        text += f"<br>interval {row['ci_low']:.4g} to {row['ci_high']:.4g} {units}"
    return text
