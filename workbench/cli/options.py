"""Options that many commands share, each declared once and added by a decorator.

A decorator takes the place of one parameter of the command: `placed` of `runs_model`, `read` of
`reads_text`, `within` of `measures`. Typer sees the options, the command gets what is made of them:

    @common.reports
    @options.runs_model
    @options.reads_text
    def roles(model: common.Model, data: common.Data, *, placed: Placed, read: Reader) -> None:
        loaded = placed.load(model)
        texts = read(data, model=loaded)
"""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from workbench.cli import common

Command = Callable[..., None]
CLEARLY = 1.1  # needed over free memory from which a warning is due


@dataclass
class Placed:
    """Where a command's models run, and in what precision."""

    device: Annotated[
        str,
        typer.Option(
            help="auto (an accelerator where there is one), cpu, cuda, cuda:1, mps, ...: where "
            "models run."
        ),
    ] = "auto"
    dtype: Annotated[
        str,
        typer.Option(help="auto (as stored), float32, bfloat16, float16: precision of models."),
    ] = "auto"

    @property
    def parameters(self) -> dict[str, Any]:
        """What the run's manifest says of it."""
        return asdict(self)

    def load(self, name: str) -> Any:
        """The model of that name, where and as it was asked for."""
        from midus_model import load

        return load(name, device=self.device, dtype=self.dtype)

    def tell(self, *models: Any, texts: Any = None, gradients: bool = False, more: int = 0) -> None:
        """The first line of a run: where it runs, how precisely, memory needed and free.

        texts: what the models read; gradients: whether with a backward pass; more: bytes beside.
        """
        from analysis.memory_plan import arrays_bytes
        from midus_model.placement import held_bytes

        needs = sum(map(held_bytes, models)) + more
        if texts is not None:
            longest = min(texts.context, max(len(item.ids) for item in texts))
            needs += arrays_bytes(models[0], longest, gradients)
        tell(models[0], needs)


def tell(model: Any, needs: int, computed: str = "", device: Any = None) -> None:
    """Say where a model runs (or will, on `device`), and warn where memory will not do."""
    from analysis.distributed import is_main
    from midus_model.placement import free_bytes, input_device, where

    if not is_main():
        return
    device = device or input_device(model)
    common.say(where(model, needs, computed, device))
    free = free_bytes(device)
    if free is not None and needs > CLEARLY * free:
        warnings.warn(
            "memory may run out: a smaller --context, another --dtype or another --device would do",
            stacklevel=2,
        )


@dataclass
class Reader:
    """How a command's texts are read; called, it is `analysis.documents` with these options."""

    context: Annotated[
        int | None,
        typer.Option(help="Tokens that a model sees at once. [default: the model's, at most 1024]"),
    ] = None
    bos: Annotated[
        str, typer.Option(help="Which windows begin with a start token: first, every, none.")
    ] = "first"
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts into the model's chat template.")
    ] = False
    text_column: Annotated[
        str | None, typer.Option("--text-column", help="Column of a table that holds the text.")
    ] = None

    @property
    def parameters(self) -> dict[str, Any]:
        """What the run's manifest says of it."""
        return asdict(self)

    @property
    def given(self) -> dict[str, Any]:
        """Those that are not as they are by default."""
        return {k: v for k, v in asdict(self).items() if v != getattr(type(self), k)}

    @property
    def words(self) -> list[str]:
        """The same on a command line."""
        return words(**self.given)

    def __call__(self, data: Any, *, model: Any, **more: Any) -> Any:
        from analysis.documents import documents

        return documents(data, model=model, **taken(documents, self.given), **more)


@dataclass
class Within:
    """A time budget; called with a function, it is that function's arguments.

    A command of several measurements gives each the whole of it, so that an error's "give about"
    is what to give here.
    """

    within: Annotated[
        str | None,
        typer.Option(
            help="Time that a measurement may take, each where there are several: 10m, 600 "
            "(seconds), 1h30m."
        ),
    ] = None

    @property
    def parameters(self) -> dict[str, Any]:
        """What the run's manifest says of it."""
        return {"within": parse_time(self.within)}

    def __call__(self, function: Callable[..., Any]) -> dict[str, Any]:
        seconds = parse_time(self.within)
        return {} if seconds is None else taken(function, {"within": seconds})


def taken(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given`, all of which the function takes; MidusError names an option that it does not."""
    from kernels.errors import MidusError

    known = inspect.signature(function).parameters
    for name in given:
        if name not in known:
            option = "--" + name.replace("_", "-")
            raise MidusError(f"{option} does not apply to {function.__name__}; leave it out")
    return given


def words(**given: Any) -> list[str]:
    """Options as the words of a command line; what is None or False is left out.

    >>> words(text_column="a", chat=True, limit=None)
    ['--text-column', 'a', '--chat']
    """
    found = []
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if value is not None and value is not False:
            found += [option] if value is True else [option, str(value)]
    return found


def unused(needs: str, **given: bool) -> None:
    """Refuse options, by name whether they were given, that do nothing without `needs`."""
    from kernels.errors import MidusError

    found = ["--" + name.replace("_", "-") for name, asked in given.items() if asked]
    if found:
        them = "it" if len(found) == 1 else "them"
        verb = "does" if len(found) == 1 else "do"
        raise MidusError(
            f"{', '.join(found)} {verb} nothing without {needs}; leave {them} out, or give that too"
        )


def parameters(*parts: Placed | Reader | Within) -> dict[str, Any]:
    """What a run's manifest says of its shared options."""
    return {name: value for part in parts for name, value in part.parameters.items()}


UNITS = {"h": 3600, "m": 60, "s": 1}


def parse_time(text: str | None) -> float | None:
    """600, 90s, 10m, 1.5h or 1h30m in seconds.

    >>> parse_time("1h30m")
    5400.0
    """
    from kernels.errors import MidusError

    if text is None:
        return None
    number = r"\d+(?:\.\d+)?"
    given = text.strip().lower()
    parts = re.findall(rf"({number})([hms])", given)
    if re.fullmatch(number, given):
        parts = [(given, "s")]
    elif not re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", given):
        parts = []
    seconds = sum(float(count) * UNITS[unit] for count, unit in parts)
    if not seconds:
        raise MidusError(f"--within is {text!r}; give a time such as 600 (seconds), 10m or 1h30m")
    return seconds


# ---------------------------------------------------------------- the decorators


def _adds(name: str, made: Callable[..., Any]) -> Callable[[Command], Command]:
    """A decorator: the options of `made` in the place of the command's parameter `name`."""
    asked = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(made, eval_str=True).parameters.values()
    ]

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != name]

        @functools.wraps(command)
        def run(*args: Any, **given: Any) -> None:
            options = {p.name: given.pop(p.name) for p in asked if p.name in given}
            command(*args, **given, **{name: made(**options)})

        signature = signature.replace(parameters=[*own, *asked])
        vars(run).update(
            __signature__=signature,
            __annotations__={p.name: p.annotation for p in signature.parameters.values()},
        )
        return run

    return decorate


runs_model = _adds("placed", Placed)
reads_text = _adds("read", Reader)
measures = _adds("within", Within)
