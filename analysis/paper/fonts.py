"""Fonts of paper figures: DejaVu Sans, and behind it those of this machine for other scripts."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence

from matplotlib import font_manager

USUAL = "DejaVu Sans"
# Common fonts for what the usual one lacks; those that a machine has are asked in this order.
OTHERS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Heiti TC",
    "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS", "Noto Sans",
    "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai",
    "Noto Sans Symbols", "Noto Sans Symbols2", "Noto Emoji", "Symbola", "Segoe UI Symbol",
)  # fmt: skip
SHOWN = 12  # characters named in the warning
_told: set[str] = set()


@functools.cache
def families() -> list[str]:
    """The usual font, then those of `OTHERS` that this machine has."""
    here = set(font_manager.get_font_names())
    return [USUAL, *(name for name in OTHERS if name in here)]


@functools.cache
def _drawn(names: tuple[str, ...]) -> frozenset[int]:
    """What these fonts have glyphs for."""
    paths = [font_manager.findfont(name) for name in names]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


def missing(texts: Iterable[str], names: Sequence[str] | None = None) -> list[str]:
    """The characters that no font here draws, each once."""
    known = _drawn(tuple(families() if names is None else names))
    return sorted({c for text in texts for c in text if c != "\n" and ord(c) not in known})


def say_missing(texts: Iterable[str]) -> None:
    """One warning with the characters that will be boxes; each character is told of once."""
    new = [c for c in missing(texts) if c not in _told]
    if not new:
        return
    _told.update(new)
    more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
    warnings.warn(
        f"no font of this machine has {' '.join(new[:SHOWN])}{more}, which figures for print show "
        "as boxes; a font such as Noto Sans CJK or Noto Emoji, installed, would do",
        stacklevel=2,
    )
