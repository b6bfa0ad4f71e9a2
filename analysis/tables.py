"""The one shape of result: a tidy frame, a row a head, with JSON attrs, stored as one file.

Columns: layer, kind, head, source_layer, score, stderr, ci_low, ci_high, by_document.
`table.attrs` says how the numbers came about and holds JSON values only; `save` and `load`
(`analysis.table_files`) keep it in the parquet file.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.escapes import storable
from analysis.intervals import notes_of, t_interval
from analysis.table_files import SCHEMA, json_attrs, load, load_rows, save
from kernels.errors import IncomparableTables, MidusError, ModelError

if TYPE_CHECKING:
    import torch

COLUMNS = (
    "layer", "kind", "head", "source_layer", "score", "stderr", "ci_low", "ci_high", "ci_low_all",
    "ci_high_all", "unit", "by_document",
)  # fmt: skip
ENDS = ("ci_low", "ci_high", "ci_low_all", "ci_high_all")
# What must agree before two tables' scores may be set against each other, beside the documents.
COMPARED = (
    "metric", "baseline", "unit", "stage", "heads_are", "weighting", "context", "bos", "normalise",
)  # fmt: skip
# What tables have that were made before an option was there.
BY_DEFAULT = {
    "stage": "output", "heads_are": "query heads", "weighting": "tokens", "bos": "first",
}  # fmt: skip


class Site(Protocol):
    """What a row needs to know of a head; `midus_model.HeadSite` has it."""

    @property
    def layer(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def head(self) -> int: ...
    @property
    def source_layer(self) -> int: ...


# ---------------------------------------------------------------- construction


def head_table(
    sites: Sequence[Site],
    by_document: ArrayLike,
    weights: ArrayLike,
    attrs: Mapping[str, Any],
    *,
    intervals: Mapping[str, Any] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """The tidy frame of a measurement, a row a site in the order given.

    `ci_low_all` and `ci_high_all` are the ends of intervals that hold for all rows together; `unit`
    is what intervals are over, "document", or "window" of a single document.
    `.attrs["interval_note"]`: why not to trust them, where something says so.

    Args:
        sites: the heads, as `midus_model.head_sites` lists them.
        by_document: each head's score on each document, [heads, documents].
        weights: the documents' tokens, [documents]; the score is the mean under them.
        attrs: how it was measured; `attrs["documents"]`, where given, has an entry a column.
            Numpy scalars become Python's and NaN becomes None; other values that JSON does not
            have are refused.
        intervals: `score`, `stderr`, `ci_low` and `ci_high`, each [heads], of a method that makes
            its own (racing, sampled Shapley), with `unit`, what they are over, and the ends of
            those that hold together, where it has them; by default `t_interval` makes them.
    """
    matrix = np.asarray(by_document, dtype=np.float64)
    counts = np.asarray(weights, dtype=np.float64)
    if matrix.shape != (len(sites), counts.size):
        raise MidusError(
            f"by_document must be [{len(sites)} heads, {counts.size} documents]; "
            f"got {list(matrix.shape)}"
        )
    documents = attrs.get("documents")
    if documents is not None and len(documents) != counts.size:
        raise MidusError(
            f"attrs['documents'] lists {len(documents)} documents, the scores have {counts.size}"
        )
    if intervals is None:
        found = t_interval(matrix, counts, confidence=confidence)
        unit = attrs.get("bootstrap_unit", "document")
        intervals = {"score": found.estimate, **found.columns(), "unit": unit}
        attrs = {**attrs, **notes_of(matrix, unit)}
    columns: dict[str, Any] = {
        name: [getattr(site, name) for site in sites]
        for name in ("layer", "kind", "head", "source_layer")
    }
    for name in ("score", "stderr", "ci_low", "ci_high"):
        columns[name] = np.asarray(intervals[name], dtype=np.float64)
    for name in ENDS[2:]:
        columns[name] = np.asarray(intervals.get(name, np.nan), dtype=np.float64)
    columns["unit"] = intervals.get("unit", "window")
    columns["by_document"] = matrix.tolist()
    table = pd.DataFrame(columns, columns=list(COLUMNS))
    table.attrs = dict(json_attrs({"schema": SCHEMA, **attrs}).items())
    return table


# ---------------------------------------------------------------- comparison


def comparable(a: pd.DataFrame, b: pd.DataFrame, force: bool = False) -> list[str]:
    """What makes two tables' scores incomparable, a phrase each; an empty list when nothing does.

    Metric, baseline, unit, stage, what a head is, the weighting, context, and the documents with
    their token counts must agree. Methods may differ: that is what agreement is measured on.
    Raises IncomparableTables when they do not, unless `force`.
    """
    sides = [[t.attrs.get(key, BY_DEFAULT.get(key)) for key in COMPARED] for t in (a, b)]
    differences = [
        f"{key} {left!r} and {right!r}"
        for key, left, right in zip(COMPARED, *sides, strict=True)
        if left != right
    ]
    for side, table in (("first", a), ("second", b)):
        if "documents" not in table.attrs:
            differences.append(f"the {side} table does not say which documents it measured")
    if not any("does not say" in phrase for phrase in differences):
        differences += _document_differences(a.attrs["documents"], b.attrs["documents"])
    if differences and not force:
        raise IncomparableTables(
            f"these tables do not measure the same thing: {'; '.join(differences)}. "
            "Measure both alike, or pass force=True"
        )
    return differences


def _document_differences(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[str]:
    if len(a) != len(b):
        return [f"{len(a)} and {len(b)} documents"]
    for left, right in zip(a, b, strict=True):
        if left["sha256"] != right["sha256"]:
            return [f"other documents ({left['id']!r} and {right['id']!r} differ in content)"]
        if left["tokens"] != right["tokens"]:
            return [f"{left['tokens']} and {right['tokens']} tokens in document {left['id']!r}"]
    return []


def weights_of(table: pd.DataFrame) -> np.ndarray:
    """What each document weighs in the table's scores: its tokens, or all alike, [documents]."""
    documents = table.attrs["documents"]
    if table.attrs.get("weighting", "tokens") == "documents":
        return np.ones(len(documents))
    return np.array([entry["tokens"] for entry in documents], dtype=np.float64)


# ---------------------------------------------------------------- provenance


def versions() -> dict[str, str]:
    """Versions of torch, transformers and midus; "checkout" for midus when it is not installed."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in ("torch", "transformers")}
    try:
        found["midus"] = metadata.version("midus-workbench")
    except metadata.PackageNotFoundError:
        found["midus"] = "checkout"
    return found


def display_name(model: Any) -> str:
    """A model's name as figures show it: a hub id or shipped name as it is, else the folder's."""
    given = model if isinstance(model, (str, os.PathLike)) else getattr(model, "name_or_path", "")
    name = os.fspath(given or "")
    if not name:
        return type(model).__name__
    path = Path(name).expanduser()
    # Results travel: a name never carries a machine's folders along.
    if path.exists() or path.is_absolute() or name.startswith((".", "~")):
        return storable(path.resolve().name)
    return storable(name)


# A model's hash, and what it is good for: see `remembered_hash`.
_remembered: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()


def remembered_hash(model: torch.nn.Module) -> str:
    """`model_hash`, which is not made anew for this model until one of its parameters is written.

    For whoever loaded the model and asks several times. A write through `.data`, which autograd
    does not count, is not seen: `model_hash` alone makes it anew each time.
    """
    found = model_hash(model)
    if not any(parameter.is_inference() for parameter in model.parameters()):
        _remembered[model] = _written(model), found
    return found


def _written(model: torch.nn.Module) -> list[Any]:
    """What changes when a parameter is replaced or written to, or an adapter is set."""
    from midus_model.stored import settings

    parameters = [
        (name, id(p), p._version, p.data_ptr(), p.dtype) for name, p in model.named_parameters()
    ]
    return [*parameters, *settings(model)]


def model_hash(model: torch.nn.Module) -> str:
    """sha256 over every parameter's name, dtype, shape and bytes, in order of name.

    With what quantised ones are read with, and how adapters are set. Parameters pass through the
    CPU one at a time, offloaded ones too.
    """
    import torch  # takes seconds, and whoever only reads tables does without

    from midus_model.stored import settings, stored_tensors

    known = _remembered.get(model)
    if known is not None and known[0] == _written(model):
        return known[1]
    digest = hashlib.sha256()
    for name, tensor in stored_tensors(model):
        if hasattr(tensor, "full_tensor"):  # a sharded parameter
            tensor = tensor.full_tensor()
        if tensor.is_meta:
            raise ModelError(f"{name} has no data (meta device); load the model's weights first")
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    for line in settings(model):
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


__all__ = [
    "BY_DEFAULT", "COLUMNS", "COMPARED", "ENDS", "SCHEMA", "Site", "comparable", "display_name",
    "head_table", "json_attrs", "load", "load_rows", "model_hash", "save", "versions", "weights_of",
]  # fmt: skip
