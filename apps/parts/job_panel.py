"""The jobs of this workspace: how far they are, and what can be done about them."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from apps.parts import access, page
from kernels.errors import MidusError
from workbench import jobs

SHOWN = 6
WORDS = {
    "running": (":material/hourglass_top:", "running"),
    "done": (":material/check_circle:", "done"),
    "failed": (":material/error:", "failed"),
    "cancelled": (":material/cancel:", "cancelled"),
    "interrupted": (":material/power_off:", "interrupted"),
}


def show(workspace: Path) -> None:
    """A line a job, drawn anew every second while one is running."""
    found = jobs.jobs(workspace)
    if not found:
        return
    st.subheader("Jobs")
    running = any(job.status == "running" for job in found)
    st.fragment(_lines, run_every=1.0 if running else None)(workspace, running)


def _lines(workspace: Path, expected: bool) -> None:
    found = jobs.jobs(workspace)
    opened = st.session_state.pop("job_opened", False)
    if opened or expected != any(job.status == "running" for job in found):
        st.rerun()  # to look every second from now on, or to show the new run in the sidebar
    for job in found[:SHOWN]:
        with st.container(border=True, key=f"job_{job.name}"):
            _line(job)
    if len(found) > SHOWN:
        st.caption(page.escape(f"Older jobs, in {workspace / '.jobs'}: {len(found) - SHOWN}"))


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
    else:
        place.button("Start again", key=f"again_{job.name}", on_click=_do, args=(job.again,))
    place.button("Remove", key=f"remove_{job.name}", on_click=_do, args=(job.remove,))


def _open(job: jobs.Job) -> None:
    runs = access.given().all_runs()
    names = [name for name, folder in runs.items() if folder.resolve() == job.folder.resolve()]
    if names:
        st.session_state["run_name"], st.session_state["job_opened"] = names[0], True
    else:
        st.toast(page.escape(f"{job.name} left no run folder; see {job.folder}"))


def _do(action: object) -> None:
    try:
        action()  # type: ignore[operator]
    except (MidusError, OSError) as error:
        st.toast(page.sentence(error), icon=":material/error:")


def _duration(seconds: float) -> str:
    """A number of seconds as a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
