"""What to type next: commands as they can be pasted, and only such as will work."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any


def program() -> str:
    """`midus` as the shell finds it; in an environment that is not activated, by its place."""
    beside = Path(sys.executable).with_name("midus")
    if shutil.which("midus") is None and beside.exists():
        return shlex.quote(os.path.relpath(beside))
    return "midus"


def typed(command: str, *words: object) -> str:
    """A command of midus with these words, quoted where a shell needs it."""
    return f"{program()} {command} {shlex.join(map(str, words))}".rstrip()


def of_run(place: Path) -> list[str]:
    """What can be done with a run folder: its figures, where it has any, and the explorer."""
    from workbench.drawing import drawable
    from workbench.runs import RunFolder

    figures = [typed("figures", place)] if drawable(RunFolder.open(place)) else []
    return [*figures, typed("explore", "--run", place)]


def deeper(model: Any, name: str, ranking: Path) -> list[str]:
    """Memory for a ranking's heads, where the model can be given any."""
    from kernels.errors import MidusError
    from midus_model.upscale import check_base
    from workbench.runs import free_place

    try:
        check_base(model)
    except MidusError:
        return []
    place = free_place(ranking.parent.parent, f"{Path(name).name or 'model'}-deeper")
    return [typed("upscale", name, "-o", place, "--heads", ranking)]


def line(*commands: str) -> str:
    """The closing words of a command; "" where nothing is next."""
    return f"Next: {', or '.join(commands)}" if commands else ""
