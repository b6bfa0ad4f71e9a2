"""The explorer: head importance, memory slots and amplification of finished runs, in a browser.

    streamlit run apps/explorer.py
    streamlit run apps/explorer.py -- --run runs/demo runs/larger

Opens on the shipped study unless run folders are given, and reads no other folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

# Streamlit puts this script's folder first on the path; the packages lie one folder up.
ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from apps import shared  # noqa: E402

VIEWS = Path(__file__).resolve().parent / "views"
PAGES = (
    ("heads.py", "Head importance", ":material/grid_on:", "heads"),
    ("memory.py", "Memory slots", ":material/memory:", "memory"),
    ("amplification.py", "Amplification", ":material/trending_up:", "amplification"),
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
    """Choose the run in the sidebar, then draw the page that the address names."""
    st.set_page_config(page_title="MIDUS explorer", page_icon=ICON, layout="wide")
    page = st.navigation(
        {
            "MIDUS explorer": [
                st.Page(VIEWS / file, title=title, icon=icon, url_path=path, default=i == 0)
                for i, (file, title, icon, path) in enumerate(PAGES)
            ]
        }
    )
    st.title(page.title)
    given, complaint = shared.given_runs(sys.argv[1:])
    if complaint:
        st.warning(complaint)
    with shared.messages("The run"):
        st.session_state["run"] = shared.choose_run(given)
        page.run()


if __name__ == "__main__":
    main()
