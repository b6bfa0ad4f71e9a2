"""The form that starts a ranking, or a measurement, as a job of its own."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Any

import streamlit as st

from analysis.first_order import REGISTERED
from apps.parts import access, placing
from apps.parts.access import Run
from kernels.errors import DataError
from kernels.files import write_file
from workbench import jobs

WORK = {
    "rank the heads": "rank",
    "measure every head": "importance",
    "find heads' roles": "roles",
    "count memory use": "memory",
}
METHODS = (
    "ablation", "gradient", "taylor", "integrated_gradients", "fisher", "dla", "shapley",
    *REGISTERED,
)  # fmt: skip
RANKINGS = ("ablation", "screen", *METHODS[1:])
BASELINES = ("mean", "zero", "resample")
METRICS = ("loss", "kl", "accuracy", "logit_difference")
DATA = ("held-out standard library", "packages (test split)", "a file of mine")
OTHER = "another one …"
MOST_MEGABYTES = 20
UPLOADS = ["txt", "md", "py", "jsonl", "ndjson", "json", "csv", "tsv", "parquet"]


def show(run: Run) -> None:
    """What to measure, on what, how; and a button."""
    given = access.given()
    left, right = st.columns(2)
    what = WORK[left.selectbox("Work", list(WORK), key="work")]
    model = _model(run, given, right)
    arguments = [what, model]
    data, file = _data()
    own = file is not None
    limit = st.number_input(
        "Documents at most (0: all)", 0, 10**6, 0 if own else 40, key=f"limit_{own}",
        help="Fewer are quicker and say less: intervals are over documents.",
    )  # fmt: skip
    arguments += [*data, *(["--limit", str(int(limit))] if limit else [])]
    if what in ("rank", "importance"):
        arguments += _how(what)
    if what == "rank":
        arguments += _race()
    arguments += placing.words(*placing.ask(*st.columns(2), "form"))
    if file is not None:
        arguments += ["--data", str(_place(given.workspace, file))]
    st.code(shlex.join(["midus", *arguments]), language="bash", wrap_lines=True)
    if st.button("Start", type="primary", icon=":material/play_arrow:", key="start"):
        if file is not None:
            write_file(_place(given.workspace, file), file.getvalue(), error=DataError)
        jobs.start(arguments, given.workspace, f"{what}-{Path(model).name}")
        st.rerun()


def _model(run: Run, given: access.Given, place: Any) -> str:
    names = given.checkpoints()
    first = access.usable(run, "before")
    name = str(
        place.selectbox(
            "Model",
            [*names, OTHER],
            names.index(first) if first in names else 0,
            key="form_model",
            format_func=_short,
        )
    )
    if name == OTHER:
        name = place.text_input(
            "Folder or hub id",
            key="form_other",
            help="A checkpoint in a folder given with --models, or owner/name where the hub "
            "can be reached.",
        ).strip()
        if not name:
            raise DataError("no model is named yet: give a folder or a hub id")
    return given.check_model(name)


def _short(name: str) -> str:
    path = Path(name)
    return f"{path.name} (in {path.parent.name})" if path.is_absolute() else name


def _data() -> tuple[list[str], Any]:
    """The command's words for the data, and the user's own file where there is one."""
    chosen = st.selectbox("Data", DATA, key="form_data")
    if chosen == DATA[0]:
        return [], None
    if chosen == DATA[1]:
        return ["--data", "packages", "--split", "test"], None
    file = st.file_uploader(
        "Text, or rows of prompt, answer and foil (a task)",
        type=UPLOADS,
        key="form_file",
        max_upload_size=MOST_MEGABYTES,
        help="It is kept in the folder of runs, beside the jobs.",
    )
    if file is None:
        raise DataError(
            "no file is chosen yet: give a text, or a table of texts or of tasks (.jsonl, .csv)"
        )
    return [], file


def _place(workspace: Path, file: Any) -> Path:
    """Where the file is kept: its name says what is in it."""
    digest = hashlib.sha256(file.getvalue()).hexdigest()[:16]
    return workspace / ".data" / f"{digest}{Path(file.name).suffix}"


def _how(what: str) -> list[str]:
    method, baseline, metric = st.columns(3)
    methods = RANKINGS if what == "rank" else METHODS
    words = ["--method", str(method.selectbox("Method", methods, key=f"form_method_{what}"))]
    for place, label, options, option in (
        (baseline, "Baseline", BASELINES, "--baseline"),
        (metric, "Metric", METRICS, "--metric"),
    ):
        words += [option, str(place.selectbox(label, options, key=f"form{option}"))]
    return words


def _race() -> list[str]:
    top, confidence, budget = st.columns(3)
    words = ["--top", str(int(top.number_input("Top set", 1, 4096, 8, key="form_top")))]
    sure = confidence.slider("Confidence", 0.5, 0.999, 0.95, 0.005, key="form_confidence")
    words += ["--confidence", f"{sure:g}"]
    spent = budget.number_input(
        "Exact evaluations at most (0: 56 a head)", 0, 10**9, 0, key="form_budget",
        help="A head on a window each.",
    )  # fmt: skip
    return [*words, *(["--budget", str(int(spent))] if spent else [])]
