"""What every page stands in: the run chosen in the sidebar, then the page the address names."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

from apps.parts import access, live, page, sidebar

VIEWS = Path(__file__).resolve().parent / "views"
PAGES = (
    ("overview.py", "Overview", ":material/dashboard:", "overview"),
    ("heads.py", "Heads", ":material/grid_on:", "heads"),
    ("choose.py", "Choose", ":material/checklist:", "choose"),
    ("amplify.py", "Amplify", ":material/tune:", "amplify"),
    ("memory.py", "Memory", ":material/memory:", "memory"),
    ("compare.py", "Compare", ":material/compare:", "compare"),
    ("report.py", "Report", ":material/article:", "report"),
)
# Drawn here: Streamlit fetches any named icon of a page for the browser's tab from the network.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32" viewBox="0 0 32 32">'
    '<g fill="#0b5c8f"><rect x="2" y="2" width="8" height="8"/>'
    '<rect x="12" y="12" width="8" height="8"/><rect x="22" y="22" width="8" height="8"/></g>'
    '<g fill="#9fc6e0"><rect x="12" y="2" width="8" height="8"/>'
    '<rect x="22" y="2" width="8" height="8"/><rect x="2" y="12" width="8" height="8"/>'
    '<rect x="22" y="12" width="8" height="8"/><rect x="2" y="22" width="8" height="8"/></g>'
    '<rect x="12" y="22" width="8" height="8" fill="#c2571a"/></svg>'
)


def main() -> None:
    """Draw one page."""
    st.set_page_config(page_title="MIDUS explorer", page_icon=ICON, layout="wide")
    chosen = st.navigation(
        {
            "MIDUS explorer": [
                st.Page(VIEWS / file, title=title, icon=icon, url_path=path, default=i == 0)
                for i, (file, title, icon, path) in enumerate(PAGES)
            ]
        }
    )
    st.title(chosen.title)
    given, complaint = access.given_folders(sys.argv[1:])
    access.set_given(given)
    if complaint:
        st.warning(page.escape(complaint))
    with page.messages("The run"):
        st.session_state["run"] = sidebar.choose_run(given)
        chosen.run()
    live.warm()


if __name__ == "__main__":
    main()
