"""The jobs of this workspace: how far they are, and what can be done about them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from apps.parts import access, page
from kernels.errors import MidusError, RunError
from workbench import commands, jobs

SHOWN = 6
DATA = ("heldout", "stdlib", "packages")
WORDS = {
    "running": (":material/hourglass_top:", "running"),
    "done": (":material/check_circle:", "done"),
    "failed": (":material/error:", "failed"),
    "cancelled": (":material/cancel:", "cancelled"),
    "interrupted": (":material/power_off:", "interrupted"),
    "damaged": (":material/broken_image:", "damaged"),
}


def show(workspace: Path) -> None:
    """A line a job, drawn anew every second while one is running."""
    found, running = _found(workspace)
    if not found:
        return
    st.subheader("Jobs")
    st.fragment(_lines, run_every=1.0 if running else None)(workspace, running > 0)


def _found(workspace: Path) -> tuple[list[jobs.Job], int]:
    """The jobs, those that run first, whenever their clocks say they began; how many run."""
    found = jobs.jobs(workspace)
    runs = {job.name: job.status == "running" for job in found}
    return sorted(found, key=lambda job: not runs[job.name]), sum(runs.values())


def _lines(workspace: Path, expected: bool) -> None:
    found, running = _found(workspace)
    opened = st.session_state.pop("job_opened", False)
    if opened or expected != (running > 0):
        st.rerun()  # to look every second from now on, or to show the new run in the sidebar
    for job in found[: max(SHOWN, running)]:
        box = st.container(border=True, key=f"job_{job.name}")
        with box, page.messages(f"The job {job.name}"):
            _line(job)
    more = len(found) - max(SHOWN, running)
    if more > 0:
        st.caption(page.escape(f"Older jobs, in {workspace / '.jobs'}: {more}"))


def _line(job: jobs.Job) -> None:
    status = job.status
    icon, word = WORDS[status]
    said, buttons = st.columns([3, 2], vertical_alignment="center")
    said.markdown(f"{icon} **{page.escape(job.name)}**: {word}")
    said.caption(page.escape(job.command))
    if status == "running":
        fraction, text, left = job.progress
        words = page.escape(text or "starting")
        if left is not None:
            words += f", about {_duration(left)} left"
        said.progress(min(max(fraction or 0.0, 0.0), 1.0), words)
    elif job.message:
        said.caption(page.escape(job.message))
    _buttons(job, status, buttons.container(horizontal=True, horizontal_alignment="right"))


def _buttons(job: jobs.Job, status: str, place: st.delta_generator.DeltaGenerator) -> None:
    if status == "running":
        place.button("Cancel", key=f"cancel_{job.name}", on_click=_do, args=(job.cancel,))
        return
    if status == "done":
        place.button("Open", key=f"open_{job.name}", type="primary", on_click=_open, args=(job,))
    elif status != "damaged":
        place.button("Start again", key=f"again_{job.name}", on_click=_do, args=(_again, job))
    place.button("Remove", key=f"remove_{job.name}", on_click=_do, args=(job.remove,))


def _open(job: jobs.Job) -> None:
    runs = access.given().all_runs()
    names = [name for name, folder in runs.items() if folder.resolve() == job.folder.resolve()]
    if names:
        st.session_state["run_name"], st.session_state["job_opened"] = names[0], True
    else:
        st.toast(page.escape(f"{job.name} left no run folder; see {job.folder}"))


def _again(job: jobs.Job) -> None:
    """Start a job that may read what the explorer may; RunError where it would read other folders.

    Its description may come from anybody who could write the folder of runs.
    """
    given = access.given()
    for name, value in commands.checked(job.about["arguments"]).items():
        path = Path(str(value)).expanduser()
        own = str(value) in (*access.NAMED_MODELS, *DATA) or given.allows(path)
        if isinstance(value, str | Path) and not own and os.path.lexists(path):
            raise RunError(
                f"the job reads {path} as its {name}, which was not given to the explorer; "
                f"start it in a shell: {job.command}"
            )
    job.again()


def _do(action: Callable[..., None], *arguments: jobs.Job) -> None:
    try:
        action(*arguments)
    except (MidusError, OSError) as error:
        st.toast(page.sentence(error), icon=":material/error:")


def _duration(seconds: float) -> str:
    """A number of seconds as a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
