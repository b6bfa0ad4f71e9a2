"""Small real disks: a tmpfs of a given size, where this process may mount one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096
ROOMY = "256m"


def mountable(folder: Path) -> str:
    """Why no tmpfs can be mounted here; empty where one can."""
    place = folder / "disk"
    place.mkdir()
    try:
        with mounted(place, PAGE):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no tmpfs can be mounted: {error}"


@contextmanager
def mounted(place: Path, size: int) -> Iterator[None]:
    """A tmpfs of `size` bytes at the folder `place`."""
    _do("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield
    finally:
        _do("umount", str(place))


def make_room(place: Path) -> None:
    _do("mount", "-o", f"remount,size={ROOMY}", str(place))


def taken(root: Path) -> int:
    """Bytes of a tmpfs that the files below `root` take: whole pages."""
    sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
