"""Amplification: what a head and the heads made from it gained between two measurements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.documents import Documents, documents
from analysis.engine import Progress
from analysis.estimates import expect, timed
from analysis.few_heads import all_heads
from analysis.importance import head_importance
from analysis.intervals import (
    FDR,
    Interval,
    by_document,
    false_discovery,
    notes_of,
    shares_by_document,
    t_interval,
)
from analysis.methods import measured_first, method_passes
from analysis.shortened import passes_of
from analysis.shrinkage import shrunk
from analysis.statistics import concentration, gini, shares, weighted_mean
from analysis.subject import loaded, noise_passes, units_of
from analysis.tables import SCHEMA, comparable, json_attrs, weights_of
from analysis.ties import difference
from kernels.errors import IncomparableTables

# With no arguments: enough documents for intervals, few enough for a minute on a laptop.
DEFAULT_DOCUMENTS = 20
PARTS = ("base", "memory", "copy")


@timed
def amplification(
    before: Any = None,
    after: Any = None,
    *,
    data: Any = None,
    chosen: Iterable[tuple[int, int]] | None = None,
    force: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Importance after less before of every base head together with the heads that came from it.

    Args:
        before: an importance table of the base model, or a model to measure; by default "pico".
        after: the same of the up-scaled model; by default "pico-midus".
        data: what models are measured on; by default documents of pico's held-out text.
        chosen: heads that were given memory on purpose, kept in `.attrs["chosen"]`.
        force: compare tables that differ in metric, baseline or documents all the same.
        seed: of `head_importance`, where models are measured.
        progress: called with (done, total, text) where models are measured.

    Returns:
        A row a base head: `before`; `after_base` (the head itself), `after_memory` and
        `after_copy` (inserted heads from it), `after` their sum; `score` = after - before in nats
        a token with its paired 95% interval over documents, for itself (ci_low, ci_high) and for
        all heads together (ci_low_all, ci_high_all), which is the one to read where heads are
        picked out; `unit`, what intervals are over ("document", or "window" of a single one);
        `p`, that the head did not change, and `q`, the same by false discovery rate: `changed`
        says "amplified" or "weakened" where q <= 0.05, of which at most one in twenty is expected
        to be neither; `shrunk`, what the change is expected to be given all heads' changes and
        errors, for lists of the most amplified, whose scores are partly luck. The same in shares of
        the positive total; `ratio` only where the share before is distinguishable from zero;
        `by_document`, after - before, and `share_by_document`, the shares' change linearised, so
        that its mean is `share_score`.
        `.attrs["concentration"]`: Gini, entropy and effective number of heads, before and after.

    Raises:
        IncomparableTables: where the two do not measure the same heads on the same documents.
    """
    limit = DEFAULT_DOCUMENTS if data is None else None
    sides = ["pico" if before is None else before, "pico-midus" if after is None else after]
    given = {n: side for n, side in enumerate(sides) if not isinstance(side, pd.DataFrame)}
    texts = {n: documents(data, model=side, limit=limit) for n, side in given.items()}
    models = {n: loaded(side) for n, side in given.items()}
    if models:
        first, stages = min(models), _passes([(models[n], texts[n]) for n in models])
        expect("head importance", models[first], texts[first], stages)
    tables = [
        head_importance(models[n], texts[n], seed=seed, progress=progress) if n in models else side
        for n, side in enumerate(sides)
    ]
    return _compare(*tables, chosen=chosen, force=force, seed=seed)


def _passes(measured: Sequence[tuple[Any, Documents]]) -> dict[str, float]:
    """Passes by stage of measuring models by exact ablation, each on its documents."""
    found: dict[str, float] = {}
    for model, docs in measured:
        units = units_of(model)
        stages = measured_first([("ablation", "mean")], model, units)
        stages |= noise_passes(model, docs, method_passes("ablation", model, units))
        for name, passes in stages.items():
            found[name] = found.get(name, 0.0) + passes * passes_of(docs)
    return found


def _compare(
    before: pd.DataFrame,
    after: pd.DataFrame,
    *,
    chosen: Iterable[tuple[int, int]] | None,
    force: bool,
    seed: int,
) -> pd.DataFrame:
    comparable(before, after, force=force)
    for table in (before, after):
        all_heads(table, "amplification")
    if len(before) and (before["layer"] != before["source_layer"]).any():
        raise IncomparableTables(
            "the first table is of an up-scaled model; amplification starts from its base"
        )
    methods = before.attrs.get("method"), after.attrs.get("method")
    if methods[0] != methods[1] and not force:
        raise IncomparableTables(
            f"the tables are of two methods, {methods[0]!r} and {methods[1]!r}; measure both "
            "alike, or pass force=True"
        )
    if before.attrs.get("normalise", "none") != "none":
        raise IncomparableTables(
            f"the tables are normalised ({before.attrs['normalise']}); amplification starts from "
            "scores as they were measured and gives shares itself: leave normalise out"
        )
    table = _table(before, after)
    scores = np.array(table["by_document"].tolist())
    note = notes_of(scores, before.attrs.get("bootstrap_unit", "document"))
    table.attrs = _attrs(before, after, chosen, seed) | note | {"fdr": FDR}
    return table


def _table(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The columns, without attrs."""
    first = np.array(before["by_document"].tolist())  # [base heads, documents]
    last = np.array(after["by_document"].tolist())  # [heads after, documents]
    weights = weights_of(before)
    owners = _owners(before, after)  # [3, base heads, heads after]
    together = owners.sum(0)
    scores = difference(together @ last, first)  # [base heads, documents]
    shares_before = shares_by_document(first, weights)
    share_changes = difference(shares_by_document(last, weights, together), shares_before)
    found = t_interval(scores, weights)
    share_found = t_interval(share_changes, weights, finite=False)
    early = t_interval(shares_before, weights, finite=False, together=False)
    share_before = shares(weighted_mean(first, weights))[0]
    share_after = together @ shares(weighted_mean(last, weights))[0]
    known = early.low > 0
    ratio = np.divide(share_after, share_before, out=np.full(len(known), np.nan), where=known)
    columns: dict[str, Any] = {
        "layer": before["layer"].to_numpy(),
        "kind": "base",
        "head": before["head"].to_numpy(),
        "source_layer": before["source_layer"].to_numpy(),
        "before": before["score"].to_numpy(),
        **{f"after_{part}": owners[i] @ after["score"] for i, part in enumerate(PARTS)},
        "after": together @ after["score"],
        "score": found.estimate,
        **found.columns(),
        "unit": before.attrs.get("bootstrap_unit", "document"),
        **_flagged(found),
        "share_before": share_before,
        "share_after": share_after,
        "share_score": difference(share_after, share_before),
        **share_found.columns("share_"),
        "ratio": ratio,
        "by_document": scores.tolist(),
        "share_by_document": share_changes.tolist(),
    }
    return pd.DataFrame(columns)


def _flagged(found: Interval) -> dict[str, np.ndarray]:
    """Columns p, q, changed and shrunk."""
    q = false_discovery(found.p)
    up, down = (q <= FDR) & (found.estimate > 0), (q <= FDR) & (found.estimate < 0)
    changed = np.where(up, "amplified", np.where(down, "weakened", ""))
    means = shrunk(found.estimate, found.stderr, found.df)
    return {"p": found.p, "q": q, "changed": changed, "shrunk": means}


def gini_rise(before: pd.DataFrame, after: pd.DataFrame) -> Interval:
    """By how much the Gini coefficient of base heads' importance rose, inserted heads counted with
    the heads that they came from; over documents, one number.

    Of importance tables, as `amplification` takes them.
    """
    scores = [np.array(table["by_document"].tolist()) for table in (before, after)]
    weights, together = weights_of(before), _owners(before, after).sum(0)

    def rise(early: np.ndarray, late: np.ndarray) -> np.ndarray:
        """[times, heads] each -> [times]."""
        return gini(late @ together.T) - gini(early)

    values = by_document(rise, scores, weights)
    return t_interval(values, weights, finite=False, together=False)


def _owners(before: pd.DataFrame, after: pd.DataFrame) -> np.ndarray:
    """[3 parts, base heads, heads after], 1 where a head after belongs to a base head's part."""
    base = {key: row for row, key in enumerate(zip(before["layer"], before["head"], strict=True))}
    owners = np.zeros((len(PARTS), len(base), len(after)))
    inserted = set(after.attrs.get("inserted_layers", ()))
    rows = zip(after["kind"], after["layer"], after["source_layer"], after["head"], strict=True)
    for column, (kind, layer, source, head) in enumerate(rows):
        if (source, head) not in base:
            raise IncomparableTables(
                f"the second table has a head from layer {source}, head {head}, which the first "
                "has not; give the tables of one base and of what was made from it"
            )
        part = "memory" if kind == "memory" else "copy" if layer in inserted else "base"
        owners[PARTS.index(part), base[source, head], column] = 1
    return owners


def _attrs(
    before: pd.DataFrame,
    after: pd.DataFrame,
    chosen: Iterable[tuple[int, int]] | None,
    seed: int,
) -> dict[str, Any]:
    kept = (
        "method", "baseline", "metric", "unit", "context", "data", "data_hash", "documents",
        "bootstrap_unit", "versions", "weighting", "stage", "heads_are",
        "better", "dtype",
    )  # fmt: skip
    losses = (before.attrs.get("clean_loss"), after.attrs.get("clean_loss"))
    return json_attrs(
        {
            "schema": SCHEMA,
            "table": "amplification",
            **{key: before.attrs[key] for key in kept if key in before.attrs},
            "before_model": before.attrs.get("model"),
            "after_model": after.attrs.get("model"),
            "before_model_hash": before.attrs.get("model_hash"),
            "after_model_hash": after.attrs.get("model_hash"),
            "before_loss": losses[0],
            "after_loss": losses[1],
            "model": f"{before.attrs.get('model')} to {after.attrs.get('model')}",
            "concentration": {
                "before": concentration(before["score"]),
                "after": concentration(after["score"]),
            },
            "chosen": None if chosen is None else [list(pair) for pair in chosen],
            "seed": seed,
        }
    )
