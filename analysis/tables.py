"""The one shape of result: a tidy frame, a row a head, with JSON attrs, stored as two files.

Columns: layer, kind, head, source_layer, score, stderr, ci_low, ci_high, by_document.
`table.attrs` says how the numbers came about and holds JSON values only; parquet drops it, so
`save` writes it beside the parquet file and `load` puts it back.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pandas.api.types import is_object_dtype

from analysis.escapes import storable
from analysis.statistics import RESAMPLES, bootstrap_mean
from kernels.errors import DataError, IncomparableTables, MidusError, ModelError

if TYPE_CHECKING:
    import torch

SCHEMA = 1
COLUMNS = (
    "layer", "kind", "head", "source_layer", "score", "stderr", "ci_low", "ci_high", "by_document",
)  # fmt: skip
# What must agree before two tables' scores may be set against each other, beside the documents.
COMPARED = (
    "metric", "baseline", "unit", "stage", "heads_are", "weighting", "context", "bos", "normalise",
)  # fmt: skip
# What tables have that were made before an option was there.
BY_DEFAULT = {
    "stage": "output", "heads_are": "query heads", "weighting": "tokens", "bos": "first",
}  # fmt: skip
CHECKSUM = "parquet_sha256"


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
    intervals: Mapping[str, ArrayLike] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """The tidy frame of a measurement, a row a site in the order given.

    Args:
        sites: the heads, as `midus_model.head_sites` lists them.
        by_document: each head's score on each document, [heads, documents].
        weights: the documents' tokens, [documents]; the score is the mean under them.
        attrs: how it was measured; `attrs["documents"]`, where given, has an entry a column.
            Numpy scalars become Python's and NaN becomes None; other values that JSON does not
            have are refused.
        intervals: `score`, `stderr`, `ci_low` and `ci_high`, each [heads], of a method that makes
            its own (racing, sampled Shapley); by default a bootstrap over documents makes them.
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
        found = bootstrap_mean(
            matrix, counts, confidence=confidence, resamples=resamples, seed=seed
        )
        intervals = dict(zip(("score", "stderr", "ci_low", "ci_high"), found, strict=True))
    columns: dict[str, Any] = {
        name: [getattr(site, name) for site in sites]
        for name in ("layer", "kind", "head", "source_layer")
    }
    for name in ("score", "stderr", "ci_low", "ci_high"):
        columns[name] = np.asarray(intervals[name], dtype=np.float64)
    columns["by_document"] = matrix.tolist()
    table = pd.DataFrame(columns, columns=list(COLUMNS))
    table.attrs = dict(json_attrs({"schema": SCHEMA, **attrs}).items())
    return table


def json_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """`attrs` as plain JSON values: tuples to lists, numpy scalars to Python's, NaN to None."""
    return {key: _plain(value, key) for key, value in attrs.items()}


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, where) for entry in value]
    raise MidusError(
        f"attrs hold JSON values only (text, numbers, lists, dicts, None); "
        f"{where} is a {type(value).__name__}"
    )


# ---------------------------------------------------------------- files


def save(table: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write `path.parquet` and `path.json` (the attrs); a suffix in `path` is set aside.

    Both are written in full under temporary names before either is renamed, and the attrs carry
    the parquet file's sha256, so a reader never takes half a file or a pair that does not belong
    together. Returns the parquet file's path.
    """
    parquet, sidecar = _pair(path)
    attrs = json_attrs({"schema": SCHEMA} | {str(key): value for key, value in table.attrs.items()})
    frame = pd.DataFrame(table).copy(deep=False)
    frame.attrs = {}
    mark = f".{secrets.token_hex(6)}.tmp"
    drafts = [target.with_name(f".{target.name}{mark}") for target in (parquet, sidecar)]
    try:
        parquet.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(drafts[0], index=False)
        attrs[CHECKSUM] = hashlib.sha256(drafts[0].read_bytes()).hexdigest()
        text = json.dumps(attrs, indent=1, ensure_ascii=False, allow_nan=False)
        drafts[1].write_text(text + "\n", encoding="utf-8")
        for draft in drafts:
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
        for draft, target in zip(drafts, (parquet, sidecar), strict=True):
            draft.replace(target)
    except OSError as error:
        raise DataError(
            f"cannot write the table {parquet}: {error.strerror or error}; choose another path"
        ) from error
    finally:
        for draft in drafts:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
    return parquet


def load(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The table that `save` wrote, attrs and lists restored; `path` with or without suffix."""
    parquet, sidecar = _pair(path)
    attrs = _read_attrs(sidecar, parquet)
    checksum = attrs.pop(CHECKSUM)
    try:
        digest = hashlib.sha256(parquet.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(
            f"cannot read the table {parquet}: {error.strerror or error}; "
            "give the path that analysis.tables.save was given"
        ) from error
    if digest != checksum:
        raise DataError(
            f"{parquet} and {sidecar.name} do not belong together (the checksum differs): "
            "one was replaced or cut short; make the table again or restore both files"
        )
    table = pd.read_parquet(parquet)
    for name in (name for name in table.columns if is_object_dtype(table[name])):
        if table[name].map(lambda value: isinstance(value, np.ndarray)).any():
            table[name] = table[name].map(_as_list)
    table.attrs = _light(attrs)
    return table


def load_rows(path: str | os.PathLike[str], equal: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a table that `save` wrote whose columns have the values given, read alone.

    For tables too large to be read whole for a few rows: parts of the file are skipped by their
    statistics, and the checksum, which would read it whole, is left to `load`.
    """
    parquet, sidecar = _pair(path)
    attrs = _read_attrs(sidecar, parquet)
    attrs.pop(CHECKSUM)
    try:
        filters = [(name, "==", value) for name, value in equal.items()]
        table = pd.read_parquet(parquet, filters=filters)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot read the table {parquet}: {line}; make the table again or restore it"
        ) from error
    table.attrs = _light(attrs)
    return table


class _Shared(list[Any]):
    """A long list in attrs that copies of a table share: pandas copies attrs at every step."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def _light(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _shared(value) if key == "documents" else value for key, value in attrs.items()}


def _shared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shared(part) for key, part in value.items()}
    return _Shared(value) if isinstance(value, list) else value


def _pair(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    given = Path(path).expanduser()
    name = given.name
    for suffix in (".parquet", ".json"):
        name = name.removesuffix(suffix)
    if not name:
        raise DataError(f"a table needs a file name, for example results/pico; got {str(path)!r}")
    return given.with_name(f"{name}.parquet"), given.with_name(f"{name}.json")


def _read_attrs(sidecar: Path, parquet: Path) -> dict[str, Any]:
    if not sidecar.is_file():
        if parquet.is_file():
            raise DataError(
                f"{sidecar} is missing: it says what {parquet.name} measured; "
                "keep the two files together"
            )
        raise DataError(f"no table at {parquet}; give the path that it was saved under")
    try:
        attrs = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{sidecar} is damaged ({error}); make the table again or restore both files"
        ) from error
    if not isinstance(attrs, dict) or "schema" not in attrs or CHECKSUM not in attrs:
        raise DataError(
            f"{sidecar} is not the description of a result table (it has no schema and checksum); "
            "give the path that the table was saved under"
        )
    if attrs["schema"] != SCHEMA:
        raise DataError(
            f"{sidecar} has table schema {attrs['schema']}, this version reads {SCHEMA}; "
            "open it with the version that made it"
        )
    return attrs


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


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


def model_hash(model: torch.nn.Module) -> str:
    """sha256 over every parameter's name, dtype, shape and bytes, in order of name.

    With what quantised ones are read with, and how adapters are set. Parameters pass through the
    CPU one at a time, offloaded ones too.
    """
    import torch  # takes seconds, and whoever only reads tables does without

    from midus_model.stored import settings, stored_tensors

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
