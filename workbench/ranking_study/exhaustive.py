"""Every head on every window, measured once and kept: the truth that races are judged by."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.array_files import load_arrays, save_arrays
from analysis.documents import Documents
from analysis.engine import batches
from analysis.ranking import measured
from analysis.subject import Subject, describe, loaded_with, prepared, units_of
from analysis.ties import best_first
from kernels.errors import RunError

Progress = Callable[[int, int, str], None]
BATCH = 8  # windows at once
SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Exhaustive:
    """What ablating each head adds to each window's summed loss: H heads, N windows.

    effects, first_order [H, N], nats; weights [N], scored tokens; clusters [N], documents;
    heads [H, 2], layer and head; seconds: of the first-order and of the exact pass; about: the
    model and data, as JSON.
    """

    effects: np.ndarray
    first_order: np.ndarray
    weights: np.ndarray
    clusters: np.ndarray
    heads: np.ndarray
    seconds: tuple[float, float]
    about: dict[str, Any]

    @property
    def scores(self) -> np.ndarray:
        """The truth that races are judged by: nats a token over all windows, [H]."""
        return self.effects.sum(1) / self.weights.sum()

    @property
    def evaluations(self) -> int:
        return self.effects.size

    def top_set(self, top: int) -> set[int]:
        return set(best_first(self.scores)[:top].tolist())


def exhaustive(
    place: Path,
    model: Any = "pico",
    data: Any = None,
    *,
    limit: int | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Exhaustive:
    """Every head on every window, read from `place` or measured and kept there as it grows.

    batch: windows at once, at most: what a killed measurement loses.
    """
    network, docs = loaded_with(model, data, limit)
    units = units_of(network)
    about = _about(network, docs)
    kept = {name: about[name] for name in ("model_hash", "data_hash", "baseline", "context")}
    identity = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    shape = len(units), len(docs.windows)
    arrays = _read(place, identity) or {
        "effects": np.full(shape, np.nan),
        "first_order": np.full(shape, np.nan),
        "seconds": np.zeros(2),
    }
    if not np.isfinite(arrays["effects"]).all():
        subject = prepared(network, docs, gradients=True, progress=progress)
        _measure(subject, arrays, batch, lambda: _write(place, arrays, identity), progress)
    return Exhaustive(
        arrays["effects"],
        arrays["first_order"],
        np.array([int(window.scored.sum()) for window in docs.windows], dtype=float),
        np.array([window.unit for window in docs.windows]),
        np.array([(unit.layer, unit.head) for unit in units]),
        (float(arrays["seconds"][0]), float(arrays["seconds"][1])),
        about,
    )


def _about(network: Any, docs: Documents) -> dict[str, Any]:
    found = describe(network, docs, baseline="mean", metric="loss")
    names = ("model", "model_hash", "dtype", "data", "data_hash", "baseline", "metric", "context",
             "versions")  # fmt: skip
    return {name: found[name] for name in names} | {
        "documents": len(docs),
        "windows": len(docs.windows),
        "full_windows": sum(len(window.ids) == docs.context for window in docs.windows),
        "tokens": docs.tokens,
    }


def _measure(
    subject: Subject,
    arrays: dict[str, np.ndarray],
    batch: int,
    keep: Callable[[], None],
    progress: Progress | None,
) -> None:
    """Fill in what `arrays` lack, batch by batch."""
    every = np.arange(len(subject.units))
    groups = batches(subject.docs.windows, min(batch, subject.plan.windows))
    kept = time.monotonic()
    for number, group in enumerate(groups, 1):
        if not np.isfinite(arrays["effects"][:, group]).all():
            begun = time.perf_counter()
            arrays["first_order"][:, group] = -subject.gradients(group)
            half = time.perf_counter()
            arrays["effects"][:, group] = measured(subject, every, np.array(group))
            arrays["seconds"] += half - begun, time.perf_counter() - half
            if time.monotonic() - kept >= SAVE_SECONDS or number == len(groups):
                keep()
                kept = time.monotonic()
        if progress:
            progress(number, len(groups), "every head on every window")


def _read(place: Path, identity: str) -> dict[str, np.ndarray] | None:
    if not place.exists():
        return None
    arrays, known = load_arrays(place, RunError)
    if known.get("identity") == identity:
        return arrays
    raise RunError(f"{place} is of another model or data; give another folder, or remove it")


def _write(place: Path, arrays: dict[str, np.ndarray], identity: str) -> None:
    save_arrays(place, arrays, {"identity": identity}, RunError)
