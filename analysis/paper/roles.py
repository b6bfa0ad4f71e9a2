"""What each head does, and what the heads of each role matter."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap

from analysis import figure_data as data
from analysis.paper.canvas import COLUMN, FULL, SMALL, Figure, at_edge, canvas, limit, style
from analysis.paper.maps import cells, row_labels

_LETTER = 6.0  # points


def role_map(
    roles: pd.DataFrame, importance: pd.DataFrame | None = None, *, width: float | None = None
) -> Figure:
    """Layer x head roles as colours and letters, from `head_roles`.

    With `importance`, a table of the same heads, every head's score with its interval stands
    beside the map, by role. Raises MidusError on another table, IncomparableTables on the
    importance of another model.
    """
    grid = data.role_grid(roles, "role_map")
    points = None if importance is None else data.role_points(roles, importance, "role_map")
    axis = None if points is None else data.role_axis(points, grid)
    heads = grid.places.shape[1]
    width = width or (COLUMN if points is None and heads <= 10 else FULL)
    pitch = float(np.clip(2.4 / len(grid.rows), 0.115, 0.24))
    height = max(0.65 + pitch * len(grid.rows), 0.5 + 0.17 * len(grid.present), 1.6)
    with style():
        figure = canvas(width, height, data.role_caption(roles, importance, axis))
        labels = 0.1 + 0.055 * max(len(row.label) for row in grid.rows)
        free = width - labels - (0.15 if points is None else 1.45)
        side = 1.3 if points is None else 0.37 * free
        left, right = figure.subplots(1, 2, width_ratios=[free - side, side])
        _map(left, grid, free - side, data.head_word(roles))
        if points is None or axis is None:
            _key(right, grid, height - 0.4)
        else:
            assert importance is not None
            _strip(right, grid, points, axis, data.score_label(importance))
    return figure


def _map(ax: Axes, grid: data.RoleGrid, room: float, head: str) -> None:
    """Colours, and letters where `room`, the map's width in inches, leaves space for them."""
    count = len(grid.present)
    cmap = ListedColormap([data.ROLES[role].colour for role in grid.present])
    norm = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    unknown = np.full_like(grid.places, np.nan)
    matrix = data.Grid(grid.rows, grid.places, unknown, unknown, unknown == 1)
    cells(ax, matrix, norm, cmap, int(room / 0.19))
    ax.set_xlabel(head)
    row_labels(ax, grid.rows)
    if room * 72 / matrix.heads < _LETTER:
        return
    for row, column in np.argwhere(np.isfinite(grid.places)).tolist():
        role = data.ROLES[grid.present[int(grid.places[row, column])]]
        if role.letter:
            ax.text(
                column,
                row,
                role.letter,
                size=_LETTER,
                ha="center",
                va="center_baseline",
                color=role.ink,
            )


def _key(ax: Axes, grid: data.RoleGrid, height: float) -> None:
    """Roles from the top: a square with its letter, its name, and how many heads have it."""
    ax.set_axis_off()
    lines = max(len(grid.present), height / 0.19)
    ax.set(xlim=(0, 1), ylim=(lines - 0.4, -0.6))
    for row, role in enumerate(grid.present):
        _square(ax, row, role, 0.06)
        name = f"{data.ROLES[role].name} ({grid.counts[role]})"
        ax.text(0.15, row, name, size=SMALL, va="center_baseline")


def _square(ax: Axes, row: int, role: str, x: float) -> None:
    """A role's colour and letter, `x` in widths of the axes."""
    role_style = data.ROLES[role]
    ax.annotate(
        role_style.letter or " ",
        (x, row),
        xycoords=ax.get_yaxis_transform(),
        size=_LETTER,
        ha="center",
        va="center_baseline",
        color=role_style.ink,
        family="monospace",
        bbox={"facecolor": role_style.colour, "edgecolor": "#9aa2a8", "linewidth": 0.4, "pad": 1.6},
        annotation_clip=False,
    )


def _strip(
    ax: Axes, grid: data.RoleGrid, points: pd.DataFrame, axis: data.RoleAxis, label: str
) -> None:
    """Every head's importance by role, its interval, and the median of each role."""
    ax.axvline(0, color="#888888", lw=0.6, zorder=0)
    inside = points[points["score"].between(*axis.limits)]
    for row, role in enumerate(grid.present):
        colour = data.ROLES[role].colour if role != data.NO_ROLE else "#B4BBC1"
        part = inside[inside["role"] == role]
        ax.hlines(part["y"], part["ci_low"], part["ci_high"], color=colour, lw=0.6, alpha=0.8)
        ax.plot(
            part["score"],
            part["y"],
            "o",
            color=colour,
            ms=2.8,
            mec="#404040",
            mew=0.3,
            gid="points",
        )
        if (middle := axis.medians.get(row)) is not None:
            ax.vlines(middle, row - 0.4, row + 0.4, color="black", lw=0.9, gid="medians")
        if row:
            ax.axhline(row - 0.5, color="#e3e6e8", lw=0.5, zorder=0)
    for row, text in axis.beyond:
        at_edge(ax, row, text, size=_LETTER)
    names = [f"{data.ROLES[role].name} ({grid.counts[role]})" for role in grid.present]
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0, pad=13)
    for row, role in enumerate(grid.present):
        _square(ax, row, role, -0.035)
    limit(ax, axis.limits, 5)
    ax.set(ylim=(len(names) - 0.5, -0.5), xlabel=label)
