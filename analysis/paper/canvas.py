"""The sheet that paper figures are drawn on: type, sizes, caption, and how it is saved."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as _Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator

from analysis import figure_data as data
from analysis.escapes import visible
from analysis.paper import fonts
from kernels import files
from kernels.errors import MidusError

COLUMN, FULL = 3.4, 7.0  # inches: one column and the full text width of common two-column papers
PNG_DPI = 300
TEXT, SMALL, CAPTION = 7.5, 7.0, 6.0  # points
# A curve with its points: what `Axes.plot` takes beside colour and marker.
CURVE: dict[str, Any] = {"lw": 1.1, "ms": 3, "mec": "white", "mew": 0.4}
STYLE: dict[Any, Any] = {
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "hatch.linewidth": 0.4,
    "axes.formatter.limits": (-4, 5),
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "midus",
    "text.parse_math": False,  # names are no mathematics, whatever dollars they hold
}
PLAIN = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
METADATA = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}
PADS: dict[str, Any] = {"w_pad": 0.03, "h_pad": 0.03, "wspace": 0.02}
DIGITS = 9  # of a place in the layout, as a share of the figure
LOCK = threading.RLock()


@contextlib.contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings are global: hold them only while drawing, one thread at a time.

    Its defaults first: a matplotlibrc in the working directory would else change a figure, or have
    its texts run through LaTeX.
    """
    with LOCK, matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # said by `fonts`
        matplotlib.rcParams.update(PLAIN)
        matplotlib.rcParams.update({**STYLE, "font.family": fonts.families()})
        yield


class Layout(ConstrainedLayoutEngine):
    """matplotlib's constrained layout, to so many digits that a file is the same bytes each time.

    Its solver adds terms in the order of their addresses: the last bits differ from run to run.
    """

    def execute(self, fig: _Figure) -> Any:
        found = super().execute(fig)
        for ax in fig.axes:
            for which in ("original", "active"):
                place = ax.get_position(original=which == "original")
                ax._set_position(np.round(place.bounds, DIGITS), which=which)  # type: ignore
        return found


def lay_out(figure: _Figure, rect: tuple[float, float, float, float]) -> None:
    """Have a figure arrange its axes within `rect`: left, bottom, width, height, as shares."""
    figure.set_layout_engine(Layout(rect=rect, **PADS))


class Figure(_Figure):
    """A matplotlib Figure that keeps its caption as text and shows itself in a notebook."""

    caption: str = ""
    note: Text | None = None  # the caption as it is drawn
    foot: float = 0.0  # inches that it takes

    def draw(self, renderer: Any) -> None:
        as_they_are(self)
        with style():
            super().draw(renderer)

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        with style():
            super().savefig(*args, **kwargs)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=150, metadata=METADATA["png"])
        return buffer.getvalue()


def as_they_are(figure: _Figure) -> None:
    """What cannot be drawn is spelt out, powers are no mathematics, and long labels fold."""
    legends = [*figure.legends, *filter(None, (ax.get_legend() for ax in figure.axes))]
    named = [*figure.texts, *(text for legend in legends for text in legend.get_texts())]
    for ax in figure.axes:
        _fold_labels(figure, ax)
        named += [ax.xaxis.label, ax.yaxis.label, *ax.texts]
        named += [ax.title, ax._left_title, ax._right_title]  # type: ignore[attr-defined]
        for axis in (ax.xaxis, ax.yaxis):
            _plain_powers(axis)
            named += axis.get_ticklabels()
    for text in named:
        text.set_parse_math(False)  # of what was made elsewhere
        text.set_text(visible(text.get_text()))
    fonts.say_missing(text.get_text() for text in named)


class _Powers(LogFormatterSciNotation):
    """10³ in letters, where matplotlib writes mathematics."""

    def __call__(self, x: float, pos: Any = None) -> str:
        text = super().__call__(x, pos).replace(r"\times", "×")
        text = re.sub(r"\^\{([^}]*)\}", lambda found: found[1].translate(_RAISED), text)
        return re.sub(r"\$|\\mathdefault|[{}]", "", text)


_RAISED = str.maketrans("0123456789-\N{MINUS SIGN}.", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻·")


def _plain_powers(axis: Any) -> None:
    """The labels of a logarithmic axis without mathematics."""
    if type(axis.get_major_formatter()) is LogFormatterSciNotation:
        for get, put in (
            (axis.get_major_formatter, axis.set_major_formatter),
            (axis.get_minor_formatter, axis.set_minor_formatter),
        ):
            form = copy.copy(get())
            if type(form) is LogFormatterSciNotation:
                form.__class__ = _Powers
                put(form)


def _fold_labels(figure: _Figure, ax: Axes) -> None:
    """Axis labels that are longer than there is room beside the axes, in several lines."""
    width, height = map(float, figure.get_size_inches())
    place = ax.get_subplotspec()  # a colour bar has none
    area = place.get_position(figure) if place else None
    across = 1.3 * width * area.width if area else width
    down = 1.2 * height * area.height if area else 0.7 * height
    for text, inches in ((ax.xaxis.label, across), (ax.yaxis.label, down)):
        room = inches * 72 / float(text.get_fontsize())
        if any(data.ems(line) > room for line in text.get_text().split("\n")):
            text.set_text("\n".join(data.fold(text.get_text(), room)))


def entry(label: str) -> str:
    """A name as a legend's label: matplotlib leaves out what begins with an underscore."""
    return f"\u2009{label}" if label.startswith("_") else label


def name_legend(figure: Figure, ax: Axes, names: Sequence[str], **options: Any) -> None:
    """The legend of an axes: in its corner, or above it where `names`, the labels, are long."""
    if data.widest(names) * SMALL / 72 <= 0.42 * float(figure.get_size_inches()[0]):
        ax.legend(loc="upper right", borderaxespad=0.1, **options)
        return
    handles, shown = ax.get_legend_handles_labels()
    figure.legend(handles, shown, loc="outside upper left", borderpad=0, **options)
    grow(figure, sum(label.count("\n") + 1 for label in shown) * SMALL * 1.45 / 72)


def grow(figure: Figure, inches: float) -> None:
    """More height, for what stands above the axes; the caption keeps its room below."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + inches)
    share = figure.foot / (height + inches)
    lay_out(figure, (0, share, 1, 1 - share))
    if figure.note is not None:
        figure.note.set_y(2 / 72 / (height + inches))


def canvas(width: float, height: float, caption: str) -> Figure:
    """An empty figure of width x height inches, grown downward by the caption's lines."""
    lines = data.wrap(caption, int((width - 0.1) * 72 / (CAPTION * 0.535)))
    foot = (len(lines) * CAPTION * 1.3 + 4) / 72
    figure = Figure(figsize=(width, height + foot), facecolor="white")
    FigureCanvasAgg(figure)
    figure.caption, figure.foot = caption, foot
    share = foot / (height + foot)
    lay_out(figure, (0, share, 1, 1 - share))
    figure.note = figure.text(
        0.05 / width,
        2 / 72 / (height + foot),
        "\n".join(lines),
        size=CAPTION,
        color="#404040",
        va="bottom",
        ha="left",
        linespacing=1.25,
        parse_math=False,
    )
    figure.note.set_in_layout(False)
    return figure


def limit(ax: Axes, limits: tuple[float, float], most: int) -> None:
    """An axis' limits and at most so many ticks, none so close to its end that a label sticks out.

    They are fixed, because the layout is settled by the first draw's labels.
    """
    low, high = limits
    room = 0.05 * (high - low)
    ticks = MaxNLocator(most).tick_values(low, high)
    ax.set_xticks([t for t in ticks if low + room <= t <= high - room])
    ax.set_xlim(low, high)


def at_edge(ax: Axes, row: float, text: str, size: float = SMALL) -> None:
    """The numbers of what lies beyond an axis, at the edge that the arrow in `text` points to."""
    right = text.endswith("▸")
    ax.annotate(
        text,
        (1 if right else 0, row),
        xycoords=ax.get_yaxis_transform(),
        ha="right" if right else "left",
        va="center",
        size=size,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def save(
    figure: _Figure, path: str | Path, formats: Sequence[str] = ("pdf", "svg", "png")
) -> list[Path]:
    """Write `path` once per format and return the paths; each file appears whole or not at all.

    A suffix of `path` that is one of the formats is replaced; PNGs have 300 dots an inch.
    """
    path = Path(path)
    unknown = [f for f in formats if f not in METADATA]
    if unknown or not formats or isinstance(formats, str):
        raise MidusError(f"formats must be a list out of pdf, svg, png; got {formats!r}")
    stem = path.with_suffix("") if path.suffix[1:] in METADATA else path
    written = []
    for form in formats:
        target = stem.with_name(f"{stem.name}.{form}")
        drawn = io.BytesIO()  # of a full disk matplotlib says something else than it is
        with style():
            figure.savefig(drawn, format=form, dpi=PNG_DPI, metadata=METADATA[form])
        with files.replacing(target) as draft:
            draft.write_bytes(drawn.getvalue())
        written.append(target)
    return written
