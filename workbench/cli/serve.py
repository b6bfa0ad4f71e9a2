"""Streamlit's own command as a script, whose interruption is exit code 130 and no message.

It is run by its path and imports nothing of ours: see `workbench.cli.explore`.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from click.exceptions import Abort
    from streamlit.web.cli import main

    try:
        main(prog_name="streamlit", standalone_mode=False)
    except (Abort, KeyboardInterrupt):
        sys.exit(130)
