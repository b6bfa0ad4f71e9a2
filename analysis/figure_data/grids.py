"""Tables as layer x head matrices: rows, their labels, and the range of colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kernels.errors import MidusError

# Below this fraction of the colour range a cell reads as zero and gets no sign mark.
MARK_FROM = 0.02


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
    """A column of a table as a matrix: `values`, `low`, `high` [rows, heads]; NaN: no head.

    `noise` [rows, heads]: whether a score is within the noise of the model's dtype.
    """

    rows: list[Row]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    noise: np.ndarray

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


def block_rows(table: pd.DataFrame) -> list[Row]:
    """The blocks of a table in model order, inserted ones labelled '+ kind (from source)'.

    Tables name copied and base attention alike: `attrs["inserted_layers"]` tells them apart, and
    without it an attention block whose source an earlier attention block holds is a copy.
    """
    blocks = table[["layer", "kind", "source_layer"]].drop_duplicates()
    blocks = blocks.sort_values("layer", kind="stable")
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

    noise = matrix("below_noise" if column == "score" else "") == 1
    return Grid(rows, matrix(column), matrix(low), matrix(high), noise)


def interval_columns(column: str) -> tuple[str, str]:
    """The columns that hold a column's interval, two empty names where it has none."""
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

        return Grid(after.rows, put(g.values), put(g.low), put(g.high), put(g.noise) == 1)

    old = spread(before, [place[key] for key in occurrences(before.rows)])
    return after.rows, old, spread(after, range(len(after.rows)))


def occurrences(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Each row's label with how often it stood before: what tells stacked blocks apart."""
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


def usual_range(values: np.ndarray, quantile: float) -> tuple[float, float]:
    """Limits of an axis for rows of values [rows, k]: zero and all rows but those that tower, whose
    size is over four times the sizes' `quantile`."""
    sizes = np.nanmax(np.abs(values), axis=1)
    usual = float(np.quantile(sizes, quantile, method="lower"))
    kept = values[sizes <= 4 * usual] if usual > 0 else values
    low, high = min(float(np.nanmin(kept)), 0.0), max(float(np.nanmax(kept)), 0.0)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def marked(values: np.ndarray, limit: float) -> np.ndarray:
    """Cells that carry a minus sign, so that the sign outlives a greyscale print."""
    return np.nan_to_num(values) < -MARK_FROM * limit


def mark_note(limit: float) -> str:
    """What a caption says of the minus signs."""
    return f"– marks values below −{MARK_FROM * limit:.1g}"


def noise_note(*tables: pd.DataFrame | None) -> str:
    """What a caption says of scores within the noise of the dtype, where a table marks them."""
    found = {}
    for table in tables:
        if table is not None and "below_noise" in table.columns:
            noise = table.attrs.get("dtype_noise") or {}
            size = f"{noise['p95']:.2g} {noise.get('unit', '')}".rstrip() if "p95" in noise else ""
            found[size] = str(table.attrs.get("dtype") or "half precision")
    if not found:
        return ""
    sizes = " and ".join(size for size in found if size)
    how = f" (95th percentile of the difference from fp32: {sizes})" if sizes else ""
    return f"× marks scores within the noise of {', '.join(sorted(set(found.values())))}{how}"


def tick_step(count: int, most: int = 16) -> int:
    """Every how many heads a tick is labelled so that at most `most` labels stand."""
    step = 1
    while -(-count // step) > most:
        step *= 2
    return step
