"""Names of models, runs and data as labels: wrapped, short in the middle, and never two alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from analysis.escapes import visible

# Widths in ems, rounded up, as DejaVu Sans has them; other letters take _USUAL, Chinese ones _WIDE.
_USUAL, _WIDE = 0.7, 1.25
_GROUPS = {
    0.3: "'ijlIJ", 0.35: " ,.|/\\:;f", 0.4: "-()[]rt!", 0.5: '"*_`', 0.56: "sz?c",
    0.62: "LFkTvxyPYaoe", 0.64: "ESbdghnpqu$0123456789{}", 0.71: "KVBRXZCA", 0.79: "UHNDG&OQ",
    0.87: "w#+<=>^~M", 1.0: "m%W@…",
}  # fmt: skip
_WIDTHS = {character: width for width, group in _GROUPS.items() for character in group}
# A line may end after a space, and after what separates the parts of a name.
_PARTS = re.compile(r"[^\s/_.\-]*[\s/_.\-]*")
_GAP = "…"
NAME_EMS = 24.0  # of a model's name in a legend of several figures
TITLE_EMS = 22.0  # of a line of a panel's title


def ems(text: str) -> float:
    """About how wide a text is, in ems; rather too much than too little."""
    return sum(
        _WIDE if unicodedata.east_asian_width(c) in "WF" else _WIDTHS.get(c, _USUAL)
        for c in text
        if not unicodedata.combining(c)
    )


def fold(text: str, width: float) -> list[str]:
    """`text` in lines of at most `width` ems, broken where its parts end, or anywhere."""
    lines = [""]
    for part in filter(None, _PARTS.findall(" ".join(text.split()))):
        if lines[-1] and ems(lines[-1] + part.rstrip()) > width:
            lines.append("")
        for character in part if ems(part.rstrip()) > width else [part]:
            if lines[-1] and ems(lines[-1] + character.rstrip()) > width:
                lines.append("")
            lines[-1] += character
    return [line.strip() for line in lines]


def fitted(name: str, width: float, lines: int = 1) -> str:
    """A name in at most so many lines of `width` ems; of a longer one the middle is left out."""
    whole = visible(" ".join(name.split()))
    kept = len(whole)
    while True:
        half = kept // 2
        short = whole if kept == len(whole) else whole[: kept - half] + _GAP + whole[-half:]
        found = fold(short, width)
        if len(found) <= lines or kept <= 3:
            return "\n".join(found[:lines])
        kept -= 1


def labels(names: Iterable[str], width: float, lines: int = 1) -> dict[str, str]:
    """Each name's label, as `fitted` makes it; where two would be alike, the second is numbered."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        label, number = fitted(name, width, lines), 1
        while label in found.values():
            number += 1
            mark = f" ({number})"
            label = fitted(name, width - ems(mark), lines) + mark
        found[name] = label
    return found


def whole_names(shown: Mapping[str, str]) -> str:
    """What a caption says of labels that leave something out: the names in full."""
    pairs = [
        f"{label.replace(chr(10), '')}: {name}"
        for name, label in shown.items()
        if "".join(label.split()) != "".join(name.split())
    ]
    return f"in full, {', '.join(pairs)}" if pairs else ""


def lines_of(shown: Iterable[str]) -> int:
    """The most lines of any of the labels."""
    return max((label.count("\n") + 1 for label in shown), default=1)


def widest(shown: Iterable[str]) -> float:
    """The widest line of any of the labels, in ems."""
    return max((ems(line) for label in shown for line in label.split("\n")), default=0.0)
