"""What a measurement will take, said before: from its first pieces, and corrected as it goes.

Every measurement is `timed`. Where it starts, it says what it has to do in passes (one token once
through the whole model); a short forward pass is timed, and the product is told through `progress`,
or, from Python without one, as a single EstimateWarning where it is above a minute. Each piece of
real work then reports what it did (`did`), and the estimate is told anew where it turns out wrong.

A measurement inside another one belongs to it: one estimate, one time budget (`analysis.within`).
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch

from analysis.distributed import agreed, is_main
from analysis.documents import Documents, Window
from analysis.engine import Progress, batch_of, window_values
from analysis.shortened import lessened, passes_of
from kernels.errors import MidusError
from midus_model import input_device

LONG = 60.0  # seconds from which on it is said what would be cheaper
OFF = 1.5  # an estimate that is wrong by that factor is told anew
PROBED = 2.5  # seconds that a longer forward pass may take, to have a better guess
FIRST, MOST = 8, 256  # tokens of the first forward pass that is timed, and of the last
FIRST_ORDER = 3.0  # passes of a gradient at all gates
TIMED = 1.0  # seconds of a stage after which its own speed counts

clock: Callable[[], float] = time.monotonic  # tests put another one here

P = ParamSpec("P")
R = TypeVar("R")


def now() -> float:
    """Seconds of the clock that measurements go by."""
    return clock()


class EstimateWarning(UserWarning):
    """A measurement that takes longer than a minute; it says what would be cheaper."""


class Cheaper(NamedTuple):
    """An argument that makes it cheaper, in Python and on the command line, and what that takes."""

    python: str
    shell: str
    seconds: float | None  # None: as long as it says itself


Options = Callable[[float, float], Sequence[Cheaper]]


@dataclass
class Stage:
    """A kind of work: passes (tokens times forward passes) in all, done, and what these took.

    `trial`: seconds a pass, where a sample of it was timed beforehand.
    """

    total: float = 0.0
    done: float = 0.0
    seconds: float = 0.0
    trial: float | None = None


@dataclass
class Work:
    """One measurement as its user called it, with what it calls in turn.

    within: seconds that it may take; repeat: what an earlier measurement within a time chose, to be
    chosen again without a clock; record: what was chosen here, for such a repetition; facts: the
    same for a reader; rate: seconds a pass, as first timed; quiet: inside another measurement.
    """

    progress: Progress | None
    within: float | None = None
    repeat: Mapping[str, Any] | None = None
    quiet: bool = False
    text: str = ""
    stages: dict[str, Stage] = field(default_factory=dict)
    options: Sequence[Cheaper] = ()
    rate: float | None = None
    told: float | None = None
    record: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = self.last = now()
        self.reserve = 0.0  # seconds kept for what follows the last piece
        self.warned = False

    # ------------------------------------------------------------ time

    @property
    def limited(self) -> bool:
        """Whether documents, windows and heads are chosen to fit a time."""
        return self.within is not None or self.repeat is not None

    @property
    def begun(self) -> bool:
        """Whether what there is to do was said."""
        return self.told is not None

    @property
    def time_left(self) -> float:
        """Seconds until the work has to end."""
        return float("inf") if self.within is None else self.within - (now() - self.started)

    def speed(self, stage: str) -> float:
        """Seconds a pass of a stage: its own where that is known, else those of the first probe."""
        found = self.stages.get(stage)
        if found is not None and found.done and (found.seconds >= TIMED or self.within is not None):
            return found.seconds / found.done
        known = None if found is None else found.trial
        return known or self.rate or 0.0

    def left(self, but: str = "") -> float:
        """Seconds that the rest takes, without one stage where that is named."""
        return sum(
            max(0.0, stage.total - stage.done) * self.speed(name)
            for name, stage in self.stages.items()
            if name != but
        )

    def fits(self, stage: str, passes: float) -> bool:
        """Whether so much more of a stage, and all other stages, end within the time.

        All processes give one answer.
        """
        if self.within is None:
            return True
        ahead = passes * self.speed(stage) + self.left(but=stage) + self.reserve
        return bool(agreed(int(ahead <= self.time_left)))

    def goes_on(self, stage: str, done: int, passes: float) -> bool:
        """Whether a stage goes on after `done` pieces, with one of so many passes."""
        if self.repeat is not None:
            last = self.repeat.get("cut", {}).get(stage)
            return last is None or done < last
        return self.fits(stage, passes)

    def holds(self, name: str, like: str, passes: float) -> bool:
        """Whether the time holds one more thing, as fast as stage `like`; repeated as it was."""
        known = self.repeat.get(name) if self.repeat is not None else None
        found = self.fits(like, passes) if known is None else bool(known)
        self.record[name] = found
        return found

    # ------------------------------------------------------------ what is done

    def begin(
        self,
        text: str,
        rate: float,
        stages: Mapping[str, float],
        options: Sequence[Cheaper] = (),
    ) -> None:
        """Say what there is to do, and what it takes."""
        self.text, self.rate, self.options = text, rate, options
        for name, total in stages.items():
            self.stages.setdefault(name, Stage()).total = float(total)
        self.last = now()
        self._tell(self.left())

    def did(self, stage: str, passes: float) -> None:
        """So much more of a stage is done; the time since the last such report is its."""
        if not self.begun:
            return
        at = now()
        part = self.stages.setdefault(stage, Stage())
        part.done += passes
        part.seconds += at - self.last
        self.last = at
        if self.told is None or part.seconds < TIMED:
            return
        whole = at - self.started + self.left()
        if max(whole, self.told) > LONG and not self.told / OFF < whole < self.told * OFF:
            self._tell(whole, self.left())

    def skipped(self, stage: str, passes: float) -> None:
        """So much of a stage was done before, and is not done again."""
        if stage in self.stages:
            self.stages[stage].total -= passes

    def rest(self) -> None:
        """What took place since the last report belongs to no stage."""
        self.last = now()

    def leave_out(self, what: str) -> None:
        """Note something that the time did not hold."""
        self.facts.setdefault("left_out", []).append(what)

    def cut(self, stage: str, done: int) -> None:
        """Note after how many pieces the time ended a stage."""
        self.record.setdefault("cut", {})[stage] = done

    def finish(self, table: Any) -> None:
        """Put into the table's attrs what was asked and chosen, and say what was left out."""
        used = now() - self.started
        table.attrs["within"] = {
            "seconds": self.within,
            "used": round(used, 3),
            **self.facts,
            "repeat": dict(self.record),
        }
        if self.progress and not self.quiet and is_main() and (line := left_out(table.attrs)):
            self.progress(0, 0, line)

    # ------------------------------------------------------------ what is said

    def _tell(self, whole: float, left: float | None = None) -> None:
        first, self.told = self.told is None, whole
        if self.quiet or not is_main():
            return
        line = f"{self.text}: about {duration(whole if left is None else left)}"
        line += "" if left is None else " left"
        cheaper = () if self.limited or whole <= LONG else self.options
        if self.progress and (first or whole > LONG):
            self.progress(0, 0, "; ".join([line, *(_said(one, "shell") for one in cheaper)]))
        elif not self.progress and whole > LONG and not self.warned and not self.limited:
            self.warned = True
            line = "; ".join([line, *(_said(one, "python") for one in cheaper)])
            warnings.warn(line, EstimateWarning, stacklevel=2)


def _said(option: Cheaper, how: str) -> str:
    name = option.python if how == "python" else option.shell
    if option.seconds is None:
        return f"{name} fits the time"
    return f"{name} about {duration(option.seconds)}"


def _asked(within: Any) -> tuple[float | None, Mapping[str, Any] | None]:
    """`within=` as seconds, or as what an earlier measurement chose."""
    if within is None:
        return None, None
    if isinstance(within, Mapping):
        repeat = within.get("repeat")
        if not isinstance(repeat, Mapping):
            raise MidusError("within is a dict without 'repeat'; give a table's .attrs['within']")
        return None, repeat
    number = isinstance(within, int | float) and not isinstance(within, bool)
    if not number or not 0 < within < float("inf"):
        raise MidusError(f"within is {within!r}; it must be a number of seconds, such as 600")
    return float(within), None


def left_out(attrs: Mapping[str, Any]) -> str | None:
    """In one line what a measurement within a time had to leave out; None for another."""
    found = attrs.get("within")
    if not found:
        return None
    asked = "" if found["seconds"] is None else f"within {duration(found['seconds'])}: "
    parts = []
    for name in (name for name in ("documents", "windows", "heads") if name in found):
        # Shorter windows may be more of them than there were.
        whole = f" of {found[f'{name}_of']:,}" if found[name] <= found[f"{name}_of"] else ""
        parts.append(f"{found[name]:,}{whole} {name}")
    rest = "; ".join(found.get("left_out", ())) or "nothing"
    return f"{asked}measured {', '.join(parts)} in {duration(found['used'])}; left out: {rest}"


_current: ContextVar[Work | None] = ContextVar("work", default=None)


def current() -> Work | None:
    """The measurement that is under way, if any."""
    return _current.get()


def did(stage: str, passes: float) -> None:
    """Tell the measurement under way of work done; nothing without one."""
    if (work := _current.get()) is not None:
        work.did(stage, passes)


def timed(function: Callable[P, R]) -> Callable[P, R]:
    """A measurement that says what it will take, and keeps to `within=` where it has that argument.

    One that is called inside another belongs to it, unless it is given a time of its own.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        outer, within = _current.get(), kwargs.get("within")
        if outer is not None and within is None:
            return function(*args, **kwargs)
        progress: Any = kwargs.get("progress")
        mine = Work(progress, *_asked(within), quiet=outer is not None)
        token = _current.set(mine)
        try:
            found = function(*args, **kwargs)
        finally:
            _current.reset(token)
            if outer is not None:
                outer.rest()
        if mine.limited:
            mine.finish(found)
        return found

    return run


def expect(
    text: str,
    model: Any,
    docs: Documents,
    stages: Mapping[str, float],
    options: Options | None = None,
    *,
    limit: bool = True,
) -> None:
    """Say what the measurement under way takes; nothing where that was said, or outside of one.

    Args:
        text: what is measured.
        stages: by name, the passes that it takes: tokens times forward passes.
        options: from seconds in all and those of one forward pass over all documents, what else
            would be cheaper.
        limit: whether fewer documents are.
    """
    work = _current.get()
    if work is None or work.begun:
        return
    rate = seconds_a_pass(model, docs) if work.rate is None else work.rate
    whole = rate * sum(stages.values())
    found = list(fewer_documents(docs, whole)) if limit else []
    found += options(whole, rate * passes_of(docs)) if options else []
    found = [one for one in found if one.seconds is None or one.seconds <= 0.7 * whole]
    work.begin(text, rate, stages, found)


def fewer_documents(docs: Documents, seconds: float) -> list[Cheaper]:
    """A sixth of the documents, and what they take by their tokens."""
    few = len(docs) // 6
    if few < 1:
        return []
    share = passes_of(lessened(docs, limit=few)) / passes_of(docs)
    return [Cheaper(f"limit={few}", f"--limit {few}", seconds * share)]


def a_first_order_method(forward: float) -> list[Cheaper]:
    """Attribution patching, from what a forward pass over all documents takes."""
    return [Cheaper("method='taylor'", "--method taylor", (FIRST_ORDER + 1) * forward)]


def a_time(seconds: float) -> list[Cheaper]:
    """The time budget, of a measurement that takes one."""
    minutes = next((m for m in (10, 5, 2, 1) if m * 60 <= seconds / 1.5), 1)
    return [Cheaper(f"within={60 * minutes}", f"--within {minutes}m", None)]


@torch.no_grad()
def seconds_a_pass(model: Any, docs: Documents) -> float:
    """Seconds a token in a forward pass over part of a window, the vocabulary included.

    Begins with a few tokens and takes more as long as that is quick: of few tokens, reading the
    weights is most of it. The slowest of several processes counts.
    """
    item = max(docs.items, key=lambda one: len(one.ids))
    most = min(len(item.ids), docs.context, MOST)
    length, took = min(FIRST, most), 0.0
    device = input_device(model)
    if device.type != "cpu":  # kernels are loaded and compiled at the first call
        _forward(model, item.ids[:most], device)
    while True:
        start = now()
        _forward(model, item.ids[:length], device)
        took = now() - start
        longer = min(4 * length, most)
        if length == most or took * longer / length > PROBED:
            break
        length = longer
    return slowest(took) / length


def _forward(model: Any, ids: torch.Tensor, device: torch.device) -> None:
    window = Window(0, 0, 0, ids, torch.ones(len(ids) - 1, dtype=torch.bool))
    batch = batch_of([window], device)
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    window_values(model, hidden, batch, rows=MOST).cpu()


def slowest(seconds: float) -> float:
    """The longest of the times that the processes took."""
    return max(-agreed(-int(seconds * 1e9)), 1) / 1e9


def vocabulary_share(model: Any) -> float:
    """What the projection to the vocabulary takes of a forward pass, by parameters."""
    config = model.config
    rows = config.vocab_size * config.hidden_size
    body = sum(parameter.numel() for parameter in model.model.layers.parameters())
    return rows / max(rows + body, 1)


def duration(seconds: float, up: bool = False) -> str:
    """A number of seconds as a person says it; `up`: never less than it is."""
    near: Callable[[float], int] = math.ceil if up else round
    if seconds < 90:
        return f"{max(1, near(seconds))} s"
    minutes = near(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(5 * near(seconds / 300), 60)
    if hours >= 48:
        return f"{near((hours + minutes / 60) / 24)} days"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
