"""A folder as it lies on the disc: copied, and known again."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

RANDOM = re.compile(r"(?<=\.)[0-9a-f]{8,12}(?=\.)")  # in the names of drafts
LOGS = ("log.jsonl", "code", "output.txt", "progress.json", "python.draft")


def digest(root: Path) -> str:
    """Of every byte below `root`, drafts' random names made equal: the same disc, the same end."""
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        whole.update(RANDOM.sub("*", str(path.relative_to(root))).encode())
        if path.is_file() and path.name not in LOGS:
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def copy(source: Path, target: Path) -> None:
    """`target` as `source` is, whatever lay there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
