"""What is wrong with a command line, in one line: what, what was given, what would do."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

from workbench.cli import common

SHOULD = "Input should be "


class Group(TyperGroup):
    """Commands whose misuse is one line on stderr and exit code 2; help looks as typer makes it."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        given = (args, prog_name, complete_var, False, windows_expand_args)
        try:
            code = super().main(*given, **extra)
        except typer.TyperException as error:
            if not standalone_mode:
                raise
            code = self._told(error, sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)

    def _told(self, error: typer.TyperException, words: Sequence[str]) -> int:
        """Say what was wrong; returns the exit code."""
        if type(error).__name__ == "NoArgsIsHelpError":  # its help is printed already
            return error.exit_code
        name = next((word for word in words if word in self.commands), "")
        if getattr(error, "cmd", None) is self:
            name = ""
        line = f"midus {name}".rstrip()
        what = _what(error, self.commands.get(name, self), line)
        common.complain(f"{what}; {line} --help says more")
        return error.exit_code


def _what(error: typer.TyperException, command: Any, line: str) -> str:
    """A usage error of typer, which calls its own kinds by no public name, in midus' own words."""
    kind, text = type(error).__name__, " ".join(error.format_message().split()).rstrip(".")
    parameter, option = getattr(error, "param", None), str(getattr(error, "option_name", ""))
    known = {name: p for p in command.params for name in (*p.opts, *p.secondary_opts)}
    if kind == "NoSuchOption":
        near = _nearest(option, [name for name in known if name.startswith("-")])
        return f"{line} has no option {option}" + (f"; {near} would do" if near else "")
    if kind == "MissingParameter" and parameter is not None:
        return f"{line} needs {_name(parameter)}: {_help(parameter)}"
    if parameter is not None:
        return _value(error, parameter)
    if kind == "BadOptionUsage" and option in known and "requires" in text:
        return f"{option} is given no value: {_help(known[option])}"
    if text.startswith("No such command "):
        given, _, near = text.removeprefix("No such command ").partition(". Did you mean ")
        return f"midus has no command {given}" + (f"; {near.rstrip('?')} would do" if near else "")
    if "unexpected extra argument" in text:
        return f"{line} takes no more words, and was given {text.partition('(s) ')[2] or text}"
    return text[:1].lower() + text[1:]


def _value(error: typer.TyperException, parameter: Any) -> str:
    """A value that could not be read; the error's cause still holds it."""
    found = getattr(error.__cause__, "errors", None)
    problems = found() if callable(found) else []
    if not problems or not error.message.startswith(SHOULD):
        return f"{_name(parameter)}: {error.message}"
    wanted = error.message.removeprefix(SHOULD).partition(", unable")[0]
    return f"{_name(parameter)} is {str(problems[0]['input'])!r}; it must be {wanted}"


def _nearest(given: str, known: Sequence[str]) -> str:
    """The known option that is spelt most alike; "" where none is."""
    begun = [option for option in known if len(given) > 3 and option.startswith(given)]
    return [*get_close_matches(given, known, n=1), *begun, ""][0]


def _name(parameter: Any) -> str:
    """--output (-o), or MODEL for an argument."""
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    first, *others = sorted(parameter.opts, key=len, reverse=True)
    return first + (f" ({others[0]})" if others else "")


def _help(parameter: Any) -> str:
    text = inspect.cleandoc(getattr(parameter, "help", None) or "a value")
    return " ".join(text.split()).rstrip(".")
