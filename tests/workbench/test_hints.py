"""Every command that is named anywhere exists, and what is said to be next works as printed."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from midus_model import load, load_tokenizer, upscale
from workbench import hints
from workbench.cli import app, explore

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("kernels", "midus_model", "analysis", "workbench", "apps")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
NAMED = re.compile(r"(?:^|[\s`(/])midus ([a-z]+)((?: [^`\n;,]*)?)")
# What follows the name in plain sentences, in which no command is meant.
PROSE = {"brings", "in", "the", "note", "and", "is", "has", "takes", "explorer", "itself",
         "again", "with", "when"}  # fmt: skip


def midus(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


# ---------------------------------------------------------------- what is named anywhere


def texts() -> Iterator[tuple[str, str]]:
    """(place, text) of every string in the packages, and of the pages for readers."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            inside = {
                id(p) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for p in n.values
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "typed":
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", _typed(node)
                elif isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "X" for p in node.values]
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and id(node) not in inside:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", str(node.value)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        if path.name != "log.md":  # which tells of what was
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def _typed(call: ast.Call) -> str:
    """What `hints.typed` writes, as far as it stands in the source."""
    return "midus " + " ".join(
        word.value if isinstance(word, ast.Constant) and isinstance(word.value, str) else "X"
        for word in call.args
    )


def mentions() -> Iterator[tuple[str, str, list[str]]]:
    """(place, command, its options) of every `midus ...`."""
    for place, text in texts():
        for name, rest in NAMED.findall(text):
            if name not in PROSE:
                yield place, name, re.findall(r"(?:^|\s)(--?[a-z][\w-]*)", rest.partition("#")[0])


def options_of(name: str) -> set[str]:
    """The options of a command; those of `midus bench` are argparse's own."""
    if name == "bench":
        from midus_model.bench.__main__ import parser
        from midus_model.bench.device.__main__ import parser as device

        own = {o for made in (parser(), device()) for a in made._actions for o in a.option_strings}
        return own | {"--dtype"}
    own = {o for p in COMMANDS[name].params for o in (*p.opts, *p.secondary_opts)}
    return own | {"--help", "-h"}


def test_every_command_and_option_that_is_named_exists() -> None:
    found = list(mentions())
    assert len({name for _, name, _ in found}) >= 12 and len(found) > 60
    assert [(place, name) for place, name, _ in found if name not in COMMANDS] == []
    wrong = [
        (place, name, option)
        for place, name, given in found
        for option in given
        if option not in options_of(name)
    ]
    assert wrong == []


def test_a_command_that_does_not_exist_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [("x", "neither run has losses; midus study makes them; `midus rank --colour red`")]
    monkeypatch.setattr(f"{__name__}.texts", lambda: iter(said))
    assert list(mentions()) == [("x", "study", []), ("x", "rank", ["--colour"])]


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_can_be_parsed(name: str) -> None:
    shown = midus(name, "--help")
    assert shown.exit_code == 0 and "Example" in shown.output
    if name == "bench":
        line = shown.output.split("Example: ")[1]
        from midus_model.bench.__main__ import parser

        assert parser().parse_args(shlex.split(line)[2:]).quick
        return
    lines = re.findall(r"`midus ([^`]+)`", COMMANDS[name].help.partition("Example")[2])
    assert lines and all(shlex.split(line)[0] == name for line in lines)
    for line in lines:
        COMMANDS[name].make_context(name, shlex.split(line)[1:])  # raises where it is no such line


# ---------------------------------------------------------------- what is next


def test_a_hint_is_quoted_and_named_as_the_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints.shutil, "which", lambda name: "/usr/bin/midus")
    assert hints.typed("figures", tmp_path / "my run's $x") == (
        f"midus figures {shlex.quote(str(tmp_path / 'my run'))[:-1]}'\"'\"'s $x'"
    )
    beside = tmp_path / "bin" / "midus"
    beside.parent.mkdir()
    beside.touch()
    monkeypatch.setattr(hints.shutil, "which", lambda name: None)
    monkeypatch.setattr(hints.sys, "executable", str(beside.with_name("python")))
    monkeypatch.chdir(tmp_path)
    assert hints.typed("costs") == "bin/midus costs"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with little text; the explorer only says that it was started."""
    rows = [{"text": f"def f{i}(x):\n    return x + {i}\n"} for i in range(24)]
    (tmp_path / "my $texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hints.shutil, "which", lambda name: "/usr/bin/midus")
    monkeypatch.setattr(explore, "_become", lambda line: None)
    return tmp_path


def next_of(said: str) -> list[str]:
    """The commands after "Next:", on its line or, within a frame, each on one of its own."""
    lines, found = [line.strip("│ ") for line in said.splitlines()], []
    for place, line in enumerate(lines):
        if line == "Next:":
            found += takewhile(lambda text: text.startswith("midus "), lines[place + 1 :])
        elif "Next: " in line:
            found += line.partition("Next: ")[2].split(", or ")
    return found


def follow(*words: object, most: int, seen: set[str] | None = None) -> set[str]:
    """Run a command, then what it says is next, and so on; returns the commands that were run.

    A kind of command is followed once; `most` commands one after another.
    """
    seen = set() if seen is None else seen
    done = midus(*words)
    assert done.exit_code == 0, (words, done.output, done.exception)
    seen.add(str(words[0]))
    for line in next_of(done.stdout) if most > 1 else ():
        first, *given = shlex.split(line)
        assert first == "midus", line
        if given[0] not in seen:
            follow(*given, most=most - 1, seen=seen)
    return seen


def test_what_is_next_works_as_it_is_printed(there: Path) -> None:
    line = ("rank", "pico", "--data", "my $texts.jsonl", "--limit", 8, "--top", 2)
    line += ("--method", "gradient", "-o", "a $run's")
    assert follow(*line, most=2) == {"rank", "upscale", "explore"}


def test_no_figures_are_promised_of_a_run_that_has_none(there: Path) -> None:
    fresh = upscale(load("pico"), blocks=1, num_keys=8, top_k=2, latent_dim=8)
    fresh.save_pretrained("fresh")
    load_tokenizer("pico").save_pretrained("fresh")
    texts = ("--data", "my $texts.jsonl")
    assert follow("doctor", "fresh", *texts, "--no-timing", "-o", "d", most=2) == {
        "doctor", "explore",
    }  # fmt: skip
    done = midus("rank", "fresh", *texts, "--top", 2, "-o", "r")  # no base, so nothing is grown
    assert done.exit_code == 0 and "Next: midus explore --run r\n" in done.stdout
    refused = midus("figures", "d")
    assert refused.exit_code == 2 and "midus explore --run d" in refused.stderr


TEXTS = ("--data", "my $texts.jsonl")
CHAINS = (
    ("rank", "pico", *TEXTS, "--top", 2),
    ("importance", "pico", *TEXTS),
    ("roles", "pico", *TEXTS),
    ("amplify", "pico", "--heads", "5:1", "--gain", 1.5, *TEXTS, "--save", "louder"),
    ("memory", "pico-midus", *TEXTS),
    ("costs", "pico-midus"),
    ("doctor", "pico-midus", *TEXTS),
    ("demo", "--steps", 2),
)


@pytest.mark.verify
@pytest.mark.parametrize("line", CHAINS, ids=lambda line: line[0])
def test_every_chain_of_next_steps_works(line: tuple[object, ...], there: Path) -> None:
    assert len(follow(*line, "-o", line[0], most=6)) > 1
