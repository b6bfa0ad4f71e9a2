"""Every figure that a run's tables allow, on paper and interactive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from analysis import figures
from kernels.errors import RunError
from workbench.hints import typed
from workbench.runs import RunFolder

# figure -> tables it cannot do without, tables it takes besides
FIGURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "importance_map": (("importance_before",), ("importance_after",)),
    "importance_curves": (("importance_before",), ("importance_after",)),
    "importance_change": (("amplification",), ()),
    "amplification": (("amplification",), ()),
    "amplification_map": (("amplification",), ()),
    "prune_curves": (("prune_curve",), ()),
    "method_agreement": (("evidence",), ()),
    "role_map": (("roles",), ("importance_before",)),
    "slot_usage": (("memory_usage",), ()),
    "slot_histogram": (("memory_slots",), ()),
    "costs": (("costs_before",), ("costs_after", "costs_baseline")),
    "training_curves": (("training",), ()),
    "quality_cost": (("losses",), ()),
    "memory_map": (("memory_usage",), ()),
    "memory_effects": (("memory_effects",), ()),
    "memory_view": (("memory_view",), ()),
    "attention_pattern": (("head_view",), ()),
    "next_tokens": (("next_tokens",), ()),
    "realisations": (("realisations",), ()),
    "dose_response": (("dose_response",), ()),
    "role_slopes": (("role_slopes",), ("contrast",)),
    "choice": (("choice",), ("choice_contrast",)),
    "usage_curves": (("usage_log",), ()),
    "key_coverage": (("key_study",), ()),
}


def drawable(run: RunFolder) -> list[str]:
    """Names of the figures that the run has the tables for."""
    return [name for name, (needed, _) in FIGURES.items() if all(map(run.has_table, needed))]


def draw(
    run: RunFolder,
    names: Sequence[str] | None = None,
    formats: Sequence[str] = ("pdf", "svg", "png"),
    html: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[str]:
    """Draw `names` (by default all that can be drawn) into the run folder; returns their names.

    Raises RunError on an unknown name, and where the run lacks the tables that a figure needs.
    """
    names = list(names or drawable(run))
    if not names:
        raise RunError(
            f"{run.path} has no table that a figure is drawn from; look at it with "
            f"{typed('explore', '--run', run.path)}"
        )
    for name in names:
        if name not in FIGURES:
            raise RunError(f"no figure {name!r}; there are {', '.join(FIGURES)}")
        missing = [table for table in FIGURES[name][0] if not run.has_table(table)]
        if missing:
            raise RunError(f"{run.path} has no table {missing[0]!r}, which {name} is drawn from")
    from analysis import paper  # matplotlib, which the list of figures does without

    for number, name in enumerate(names):
        if progress:
            progress(number, len(names), f"drawing {name}")
        arguments, options = inputs(run, name)
        twin = getattr(figures, name)(*arguments, **options) if html else None
        run.add_figure(name, getattr(paper, name)(*arguments, **options), twin, formats)
        if progress:
            progress(number + 1, len(names), f"drawing {name}")
    return names


def inputs(run: RunFolder, name: str) -> tuple[list[Any], dict[str, Any]]:
    """What the figure `name` is drawn from: the tables, and options."""
    needed, besides = FIGURES[name]
    loaded = [run.load_table(table) for table in (*needed, *besides) if run.has_table(table)]
    if name == "training_curves":
        return [_by_run(loaded[0])], {}
    if name == "slot_histogram":
        return [_busiest(loaded[0])], {}
    return loaded, {}


def _by_run(log: pd.DataFrame) -> dict[str, pd.DataFrame]:
    parts = {}
    for name in log["run"].unique():
        parts[str(name)] = log[log["run"] == name].reset_index(drop=True)
        parts[str(name)].attrs = dict(log.attrs)
    return parts


def _busiest(slots: pd.DataFrame) -> pd.DataFrame:
    """The slots of the memory head that uses the most of them."""
    counts = slots.groupby(["block", "head"]).size()
    block, head = counts.idxmax()
    table = slots[(slots["block"] == block) & (slots["head"] == head)].reset_index(drop=True)
    table.attrs = {**slots.attrs, "block": int(block), "head": int(head)}
    return table
