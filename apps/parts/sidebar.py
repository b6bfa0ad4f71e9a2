"""The sidebar: which run is shown, what it is, and the work that goes on."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from apps.parts import access, page, placing
from workbench import jobs


def choose_run(given: access.Given) -> access.Run:
    """The choice among the runs that may be read; it is kept in the page's address."""
    runs = given.all_runs()
    with st.sidebar:
        name = _choose(list(runs))
        run = access.open_run(name, runs[name])
        _describe(run)
        placing.show()
        _working(given.workspace)
    status = run.manifest.get("status")
    if status != "done":
        st.warning(
            f"The run {page.escape(run.name)} is marked '{page.escape(str(status))}': its tables "
            "may be incomplete. Reload the page once it has finished."
        )
    return run


def _choose(names: list[str]) -> str:
    """The run of that name; where there is one only, nothing is asked."""
    if len(names) == 1:
        asked = st.query_params.get("run_name", names[0])
        if asked != names[0]:
            st.warning(
                f"The link asks for the run {page.escape(asked)}, which is not there. Start the "
                "explorer with --run FOLDER or --runs FOLDER to have it here.",
                icon=":material/link_off:",
            )
        st.markdown(f"**{page.escape(names[0])}**")
        return names[0]
    return page.choose(
        "Run",
        names,
        "run_name",
        what="the run",
        help="The run folders given to the explorer, those it made, and the shipped study.",
    )


def _describe(run: access.Run) -> None:
    """The run's own account of itself, under the choice."""
    manifest = run.manifest
    models = manifest.get("models") or {}
    lines = [
        f"{manifest.get('kind', 'run')}, {manifest.get('status', 'status not recorded')}",
        str(manifest.get("created", "date not recorded")).replace("T", " ")[:16],
        *(f"{label}: {access.short(name)}" for label, name in models.items()),
    ]
    st.caption("  \n".join(page.escape(line) for line in lines))
    # Drawn when it is opened: the browser takes a second over the libraries that show code.
    made = st.expander("How it was made", key="made", on_change="rerun")
    if not made.open:
        return
    with made:
        st.code(" ".join(map(str, manifest.get("command") or ["command not recorded"])),
                language=None, wrap_lines=True)  # fmt: skip
        st.json(
            {key: manifest[key] for key in ("parameters", "versions", "midus") if key in manifest},
            expanded=False,
        )


def _working(workspace: Path) -> None:
    """How many jobs run now, on every page."""
    running = [job for job in jobs.jobs(workspace) if job.status == "running"]
    if running:
        word = "1 job is" if len(running) == 1 else f"{len(running)} jobs are"
        st.info(f"{word} running: see the page Choose.", icon=":material/hourglass_top:")
