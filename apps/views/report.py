"""Page: every figure of a run, as it goes into a paper."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import streamlit as st

from apps.parts import drawn, page, tables
from apps.parts.access import Run
from kernels.errors import MidusError
from workbench import drawing
from workbench.runs import RunFolder

INTRO = (
    "Figures as a paper takes them: vector, text as text, readable in grey, drawn from the tables "
    "of this run. Each saves as PDF, SVG, PNG (300 dots an inch), an interactive page, and its "
    "numbers."
)
METHOD = """
Paper figures are drawn by matplotlib in the size of a column or of the full text width, from the
same tables as the interactive ones; the caption names method, baseline, metric, data and interval.
`midus figures RUN` draws them all from the command line, byte for byte the same.
"""


def main() -> None:
    run = page.run()
    st.markdown(INTRO)
    with page.messages("The figures"):
        names = drawing.drawable(RunFolder.open(run.folder))
        if not names:
            raise MidusError(
                "this run has no table that a figure is drawn from; choose another run in the "
                "sidebar, or make one with midus importance"
            )
        name = page.choose("Figure", names, "figure", what="figure")
        with page.messages("The figure"):
            _figure(run, name)
        _everything(run, names)
        page.computed(METHOD)


def _figure(run: Run, name: str) -> None:
    stamps = tuple(tables.stamp(run.folder / "tables" / f"{table}.parquet") for table in run.tables)
    picture, caption = _preview(str(run.folder), name, stamps)
    st.image(picture, width=760, caption=None)
    st.caption(page.escape(caption))
    needed = drawing.FIGURES[name][0][0]
    table = tables.table(run, needed)
    with st.container(horizontal=True, key="saves"):
        drawn.saves(f"{run.folder.name}-{name}", None, lambda: _drawn(run.folder, name), table)
        drawn.save_page(f"{run.folder.name}-{name}", lambda: _twin(run.folder, name))


def _drawn(folder: Path, name: str) -> Any:
    from analysis import paper

    arguments, options = drawing.inputs(RunFolder.open(folder), name)
    return getattr(paper, name)(*arguments, **options)


def _twin(folder: Path, name: str) -> Any:
    from analysis import figures

    arguments, options = drawing.inputs(RunFolder.open(folder), name)
    return getattr(figures, name)(*arguments, **options)


@st.cache_data(show_spinner="Drawing", max_entries=64)
def _preview(folder: str, name: str, stamps: tuple[tuple[int, ...], ...]) -> tuple[bytes, str]:
    figure = _drawn(Path(folder), name)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=220)
    return buffer.getvalue(), str(figure.caption)


def _everything(run: Run, names: list[str]) -> None:
    st.download_button(
        f"All {len(names)} figures and tables (ZIP)",
        lambda: _zipped(run, names),
        file_name=f"{run.folder.name}.zip",
        mime="application/zip",
        icon=":material/folder_zip:",
        on_click="ignore",
        key="all_figures",
    )


def _zipped(run: Run, names: list[str]) -> bytes:
    """PDF, SVG and PNG of every figure, and every table as CSV."""
    from analysis.paper import save

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, \
            tempfile.TemporaryDirectory() as folder:  # fmt: skip
        for name in names:
            for path in save(_drawn(run.folder, name), Path(folder) / name):
                archive.write(path, f"figures/{path.name}")
        for name in run.tables:
            archive.writestr(f"tables/{name}.csv", drawn.csv(tables.table(run, name)))
    return buffer.getvalue()


if __name__ == "__main__":
    main()
