"""What a table says of its agreement with exact ablation, in a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def agreement_words(attrs: Mapping[Any, Any]) -> str:
    """The agreement in a line, as captions and commands say it; "" of a table that carries none."""
    found = attrs.get("agreement")
    if not found:
        return ""
    what = "effects" if found["signed"] else "effects' size"
    words = f"agreement with exact ablation: rank correlation with {what} "
    words += _number(found, "spearman", lambda value: f"{value:.2f}")
    if found["sign"] is not None:
        words += f", same sign {_number(found, 'sign', lambda value: f'{value:.0%}')}"
    return words + (
        f" (95% intervals; {found['heads']} of {found['heads_of']} heads on {found['windows']} of "
        f"{found['windows_of']:,} windows)"
    )


def _number(found: Mapping[str, Any], name: str, form: Callable[[float], str]) -> str:
    if found[name] is None:
        return "undefined"
    low, high = found[f"{name}_low"], found[f"{name}_high"]
    return form(found[name]) + ("" if low is None else f" [{form(low)} to {form(high)}]")
