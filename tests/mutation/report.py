"""What a mutation run found: scores with their intervals, survivors, and why some may live."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.mutation.mutants import Mutant
from tests.mutation.runs import Module

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = Path(__file__).with_name("explained.json")
LEAST = 0.85  # score of a module
HELD = (
    "analysis/race.py", "analysis/ranking.py", "analysis/statistics.py", "analysis/intervals.py",
    "analysis/engine.py", "analysis/gates.py", "analysis/ablation.py",
)  # fmt: skip


def explanations() -> list[dict[str, str]]:
    """Why mutants may survive: file, operator, text, changed, why."""
    return json.loads(EXPLAINED.read_text(encoding="utf-8"))


def key_of(entry: dict[str, str]) -> str:
    return " | ".join(entry[name] for name in ("file", "operator", "text", "changed"))


def result(modules: Sequence[Module], explained: Sequence[dict[str, str]]) -> dict[str, Any]:
    """The run as JSON: by module, with each survivor, and idle explanations."""
    reasons = {key_of(entry): entry["why"] for entry in explained}
    files = {module.file for module in modules}

    def survivor(mutant: Mutant, by: str) -> dict[str, Any]:
        return {
            "line": mutant.line,
            "operator": mutant.operator,
            "text": mutant.text,
            "changed": mutant.changed,
            "unseen": bool(by),
            "why": reasons.get(mutant.key),
        }

    rows = {
        module.file: {
            **score(module),
            "sites": module.sites,
            "by_hand": len(module.by_hand),
            "by_hand_caught": sum(how == "caught" for _, how, _ in module.by_hand),
            "survivors": [
                survivor(one, by)
                for one, how, by in [*module.sampled, *module.by_hand]
                if how == "survived"
            ],
        }
        for module in modules
    }
    verdicts = {one.key: how for m in modules for one, how, _ in m.sampled}
    stale = [
        key_of(entry)
        for entry in explained
        if entry["file"] in files
        and (how := verdicts.get(key_of(entry))) != "survived"
        and (how == "caught" or not _is_there(entry))
    ]
    return {"schema": 1, "modules": rows, "explanations_without_survivor": stale}


def _is_there(entry: dict[str, str]) -> bool:
    """Whether the file still has the line that an explanation is of."""
    lines = (ROOT / entry["file"]).read_text(encoding="utf-8").splitlines()
    return entry["text"] in map(str.strip, lines)


def score(module: Module) -> dict[str, Any]:
    """Tried, caught, their share and its 95% interval (Clopper and Pearson)."""
    from scipy import stats

    tried = len(module.sampled)
    caught = sum(how == "caught" for _, how, _ in module.sampled)
    low, high = 0.0, 1.0
    if tried:
        low, high = stats.binomtest(caught, tried).proportion_ci(0.95)
    share = round(caught / tried, 3) if tried else None
    return {
        "tried": tried, "caught": caught, "score": share,
        "low": round(float(low), 3), "high": round(float(high), 3),
    }  # fmt: skip


def line(module: Module) -> str:
    """A module in one line."""
    found = score(module)
    hand = sum(how == "caught" for _, how, _ in module.by_hand)
    share = "-" if found["score"] is None else f"{found['score']:.0%}"
    return (
        f"{module.file:38} {found['caught']:3} of {found['tried']:3} mutants caught, {share:>4} "
        f"[{found['low']:.0%}, {found['high']:.0%}], of {module.sites:4} sites; "
        f"by hand {hand} of {len(module.by_hand)}; {module.seconds:.0f} s"
    )


def text(found: dict[str, Any]) -> str:
    """Survivors a line each, and what is amiss."""
    lines = []
    for file, row in found["modules"].items():
        for one in row["survivors"]:
            why = one["why"] or ("no test runs it" if one["unseen"] else "NOT EXPLAINED")
            lines.append(f"{file}:{one['line']} {one['operator']}: {one['text']}")
            lines.append(f"    -> {one['changed']}\n    {why}")
    for key in found["explanations_without_survivor"]:
        lines.append(f"an explanation that fits no survivor: {key}")
    return "\n".join([*lines, *failures(found)])


def failures(found: dict[str, Any]) -> list[str]:
    """What makes the run fail, a line each."""
    lines = []
    for file, row in found["modules"].items():
        if row["by_hand_caught"] < row["by_hand"] and any(
            one["operator"] == "by hand" and not one["why"] for one in row["survivors"]
        ):
            lines.append(f"{file}: a fault put in by hand was not noticed")
        if file in HELD and row["tried"] and row["score"] < LEAST:
            lines.append(f"{file}: {row['score']:.0%} of mutants caught, less than {LEAST:.0%}")
    return lines
