"""Command lines that were read from a file, checked before they are run.

Whoever can write a folder of runs can write what stands there: only commands that write one run
folder are run, that folder is given by the caller, and no option may name another place to write.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import Any

from kernels.errors import RunError

OUTPUT = "output"
ELSEWHERE = ("save",)  # parameters that name another place to write
LONGEST = 2**16  # characters of all words


def line(words: Sequence[str], output: str | os.PathLike[str]) -> list[str]:
    """The words of a command line that writes the run folder `output`, and nothing else.

    Raises RunError as `checked` does.
    """
    checked(words)
    name, *rest = words
    return [name, f"--{OUTPUT}", str(output), *rest]


def checked(words: Sequence[str]) -> dict[str, Any]:
    """What `midus WORDS` gives the command, by parameter; nothing is run.

    Raises RunError, one line, for a command that writes no run folder, for words that it does not
    understand, and for an option that says where to write.
    """
    import typer.main

    from workbench.cli import app

    if not words or sum(map(len, words)) > LONGEST or any("\0" in word for word in words):
        raise RunError("no command line of midus: it is empty, too long, or no text")
    mark = secrets.token_hex(16)
    group: Any = typer.main.get_command(app)
    name, *rest = words
    command = group.commands.get(name)
    if command is None or OUTPUT not in [parameter.name for parameter in command.params]:
        known = [n for n, c in group.commands.items() if OUTPUT in [p.name for p in c.params]]
        raise RunError(f"{name!r} is no command with a run folder; these are {', '.join(known)}")
    if any(word in ("--help", "-h") for word in rest):
        raise RunError(f"{name} --help starts nothing")
    try:
        context = command.make_context(name, [f"--{OUTPUT}", mark, *rest])
    except Exception as error:  # click's own, which typer has under names of its own too
        said = getattr(error, "message", "") or type(error).__name__
        raise RunError(f"midus {name} does not understand its words: {said}") from error
    found = dict(context.params)
    context.close()
    asked = [option for option in ELSEWHERE if found.get(option) is not None]
    if str(found.pop(OUTPUT)) != mark:  # of two the later one counts
        asked.append(OUTPUT)
    if asked:
        raise RunError(f"--{asked[0]} says where to write; a job has its own folder")
    return found
