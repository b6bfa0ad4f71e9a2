"""What lies at a path, where it is no ordinary file: reading it would wait, or never end."""

from __future__ import annotations

import stat
from pathlib import Path

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def odd_kind(path: Path) -> str | None:
    """Such as "a named pipe"; None for a file, links followed. OSError where nothing is."""
    mode = path.stat().st_mode
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no ordinary file")


def odd_entry(folder: Path) -> str | None:
    """The first entry of a folder that is neither file nor folder, and what it is."""
    for path in sorted(folder.iterdir()):
        try:
            kind = odd_kind(path)
        except OSError:  # a link to nothing
            continue
        if kind not in (None, "a folder"):
            return f"{path} is {kind}"
    return None
