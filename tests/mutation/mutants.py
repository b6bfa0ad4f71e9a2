"""Mutants of a source file, made by cosmic-ray's operators, and a sample of them that holds still.

A site is a place in the source that one kind of operator can change; a mutant changes one site in
one way. Sites are drawn by the hash of what stands there, so that a change elsewhere in the file
leaves the sample as it was.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

# A binary operator stands for one of its own kind only: what raises TypeError on every call says
# nothing of the tests. `==` for `is` and the like are left out too, being the same of small values.
FAMILIES = (
    {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"},
    {"BitOr", "BitAnd", "BitXor"},
    {"RShift", "LShift"},
    {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"},
    {"Is", "IsNot"},
    {"In", "NotIn"},
    {"UAdd", "USub", "Invert", "Not", "Nothing"},
)
REPLACED = re.compile(r"Replace(Binary|Comparison|Unary)Operator_(\w+)_(\w+)|(\w+)")


@dataclass(frozen=True)
class Mutant:
    """One changed place: `text` is the line as it is, `changed` as it became."""

    file: str
    line: int
    operator: str
    text: str
    changed: str
    source: str  # of the whole file

    @property
    def key(self) -> str:
        """What it is, wherever its line has moved to."""
        return f"{self.file} | {self.operator} | {self.text} | {self.changed}"


@cache
def operators() -> dict[str, Any]:
    """The operators by name, those that take no arguments and change meaning."""
    from cosmic_ray.operators.provider import OperatorProvider

    provider = OperatorProvider()
    return {
        name: provider[name]()
        for name in provider
        if not provider[name].arguments() and sensible(name)
    }


def sensible(name: str) -> bool:
    """Whether an operator's replacement is of the same family as what it replaces."""
    kind, old, new, _ = REPLACED.fullmatch(name).groups()  # type: ignore[union-attr]
    return kind is None or any({old, new} <= family for family in FAMILIES)


def kind_of(name: str) -> str:
    """The kind of operator: the replacements of one sign are of one kind."""
    kind, old, _, other = REPLACED.fullmatch(name).groups()  # type: ignore[union-attr]
    return other or f"{kind} {old}"


Place = tuple[tuple[int, int], tuple[int, int]]  # (line, column) of start and end


@dataclass(frozen=True)
class Site:
    """A place and the ways to change it: operators, and at which of their places in the file."""

    place: Place
    ways: list[tuple[str, int]]


def sites(file: str, source: str) -> list[Site]:
    """Every site of a file, in the order of a hash of what stands there."""
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes, silent = list(ast_nodes(get_ast(source))), annotations(source)
    found: dict[tuple[Place, str], list[tuple[str, int]]] = {}
    for name, operator in operators().items():
        places = [(node, p) for node in nodes for p in operator.mutation_positions(node)]
        for occurrence, (node, place) in enumerate(places):
            if getattr(node.parent, "type", "") == "parameters":
                continue  # a `*` that stands alone there is no product
            if not any(start <= place[0] and place[1] <= end for start, end in silent):
                found.setdefault((place, kind_of(name)), []).append((name, occurrence))
    lines, seen, ranked = source.splitlines(), Counter[str](), []
    for (place, kind), ways in sorted(found.items()):
        text = lines[place[0][0] - 1]
        what = f"{file} {kind} {place[0][1] - len(text) + len(text.lstrip())} {text.strip()}"
        ways = sorted(ways, key=lambda way: _hash(what + way[0]))
        ranked.append((_hash(f"{what} {seen[what]}"), Site(place, ways)))
        seen[what] += 1
    return [site for _, site in sorted(ranked, key=lambda item: item[0])]


def mutants(file: str, source: str, site: Site) -> Iterator[Mutant]:
    """A site's mutants that change what the file does."""
    meaning = without_annotations(source)
    for name, occurrence in site.ways:
        changed = _changed(source, operators()[name], occurrence)
        try:
            if without_annotations(changed) == meaning:
                continue
        except SyntaxError:
            continue
        at = site.place[0][0]
        yield Mutant(file, at, name, *_lines(source, changed, at), changed)


def sample(file: str, source: str, size: int) -> tuple[list[Mutant], int]:
    """One mutant of each of `size` sites, and how many sites there are."""
    every = sites(file, source)
    found = (one for site in every for one in islice(mutants(file, source, site), 1))
    return list(islice(found, size)), len(every)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _changed(source: str, operator: Any, occurrence: int) -> str:
    """The source with the operator applied at its n-th place."""
    from cosmic_ray.ast import Visitor, get_ast

    class Once(Visitor):
        left = occurrence

        def visit(self, node: Any) -> Any:
            for index, _ in enumerate(list(operator.mutation_positions(node))):
                if self.left == 0:
                    node = operator.mutate(node, index)
                self.left -= 1
            return node

    return Once().walk(get_ast(source)).get_code()


def _lines(source: str, changed: str, at: int) -> tuple[str, str]:
    """The line at `at` in both, stripped; of a removed line the new one is empty."""
    before, after = source.splitlines(), changed.splitlines()
    if len(before) != len(after):
        return before[at - 1].strip(), ""
    return before[at - 1].strip(), after[at - 1].strip()


def annotations(source: str) -> list[Place]:
    """Where the annotations of a file stand."""
    found: list[Place] = []
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if part is not None:
                start, end = part.lineno, part.end_lineno
                found.append(((start, part.col_offset), (end, part.end_col_offset)))
    return found


def without_annotations(source: str) -> str:
    """What a file does, as text: its syntax tree but for annotations, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.dump(tree)


def statement_lines(source: str, line: int) -> set[int]:
    """The lines of the innermost statement at `line`; of a compound one, its head's."""
    best = {line}
    size = 1 << 30
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt | ast.ExceptHandler):
            continue
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        end = node.end_lineno or node.lineno
        body = getattr(node, "body", None)
        if body:
            end = max(node.lineno, body[0].lineno - 1)
        if start <= line <= end and end - start < size:
            best, size = set(range(start, end + 1)), end - start
    return best


def read(root: Path, file: str) -> str:
    """A source file of the repository."""
    return (root / file).read_text(encoding="utf-8")
