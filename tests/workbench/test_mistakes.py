"""Wrong command lines: one line on stderr that says what would do, and exit code 2."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workbench.cli import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rank --topp 3", "midus rank has no option --topp; --top would do; midus rank --help"),
        ("rank -z", "midus rank has no option -z; midus rank --help"),
        ("--verison", "midus has no option --verison; --version would do; midus --help"),
        ("rnak pico", "midus has no command 'rnak'; 'rank' would do; midus --help"),
        ("xyz", "midus has no command 'xyz'; midus --help"),
        ("upscale pico", "midus upscale needs --output (-o): Folder of the new model;"),
        ("upscale", "midus upscale needs MODEL: A name (pico, pico-midus, smollm2)"),
        ("rank --top x", "--top is 'x'; it must be a valid integer; midus rank --help"),
        ("amplify pico --gain x", "--gain is 'x'; it must be a valid number"),
        ("documents --show -3", "--show is '-3'; it must be greater than or equal to 0"),
        ("rank --top", "--top is given no value: Size of the top set;"),
        ("rank --evidence=maybe", "'--evidence' does not take a value"),
        ("rank pico a b", "midus rank takes no more words, and was given (a b)"),
        ("rank --to\x1b[31mp 1", "no option --to\\x1b[31mp"),
        ("bench --tokns 3", "unrecognized arguments: --tokns 3; midus bench --help"),
        ("bench importance --x", "unrecognized arguments: --x; midus bench importance --help"),
        ("bench device", "--out; midus bench device --help"),
    ],
)
def test_one_line_says_what_would_do(line: str, said: str) -> None:
    done = CliRunner().invoke(app, line.split(" "))
    assert done.exit_code == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("midus: ")
    assert said in done.stderr, done.stderr


def test_no_command_is_help_as_before() -> None:
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2 and "Usage: midus" in done.output and "midus: " not in done.output
    shown = CliRunner().invoke(app, ["rank", "--help"])
    assert shown.exit_code == 0 and "╭─ Options" in shown.output


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("upscale pico -o x --context 64", "--context does nothing without --calibration"),
        ("upscale pico -o x --bos every --chat", "--bos, --chat do nothing without --calibration"),
        ("upscale pico -o x --method llama-pro --slots 64", "--slots does nothing without"),
        ("amplify pico --heads 5:1 --gain 2 --draws 3", "--draws does nothing without --dose"),
        ("train pico --eval-limit 3", "--eval-limit does nothing without --eval-data"),
        ("train pico --log-usage", "--log-usage does nothing without --eval-data"),
    ],
)
def test_an_option_that_does_nothing_is_refused(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 2 and said in done.stderr, (done.stderr, done.exception)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- new places

# Streamlit's calls whose text is Markdown, and what makes a value fit for one.
MARKDOWN = {
    "markdown", "caption", "write", "warning", "info", "error", "success", "subheader", "header",
    "title", "toast", "toggle", "metric", "expander", "progress", "button", "checkbox",
}  # fmt: skip
SAFE = {"escape", "markdown", "number", "percent", "interval", "len", "_duration", "int"}
# Numbers, texts of ours, and what was escaped a line before.
KNOWN = {
    "block", "head", "slot", "texts", "what", "status", "word", "icon", "text", "whose", "count",
    "total", "shown", "blocks", "words", "why", "side", "view", "look", "sure",
}  # fmt: skip


def _fit(value: ast.expr, spec: object) -> bool:
    """Whether what an f-string holds is a number, or was made fit for Markdown."""
    if spec is not None or isinstance(value, ast.Constant):
        return True
    if isinstance(value, ast.Call):
        name = getattr(value.func, "attr", getattr(value.func, "id", ""))
        return name in SAFE or _fit(getattr(value.func, "value", value.func), None)
    if isinstance(value, ast.Subscript):
        return _fit(value.value, None) or "escape" in ast.unparse(value)
    if isinstance(value, ast.Attribute | ast.BinOp | ast.IfExp):
        return "escape" in ast.unparse(value)
    return isinstance(value, ast.Name) and value.id in KNOWN


def unfit(source: str) -> list[str]:
    """f-strings in calls that read Markdown with a value from outside as it came."""
    found = []
    for call in ast.walk(ast.parse(source)):
        name = getattr(getattr(call, "func", None), "attr", "")
        holder = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        if isinstance(call, ast.Call) and name in MARKDOWN and not holder.startswith("archive."):
            for part in (p for a in call.args if isinstance(a, ast.JoinedStr) for p in a.values):
                if isinstance(part, ast.FormattedValue) and not _fit(part.value, part.format_spec):
                    found.append(f"{call.lineno}: {name} of {ast.unparse(part.value)}")
    return found


def test_nothing_from_outside_is_markdown_in_the_app() -> None:
    assert unfit("st.caption(f'of {run.name}')") and unfit("st.toast(f'{job.folder}')")
    assert not unfit("st.caption(f'of {page.escape(run.name)}, {loss:.3f}')")
    found = {
        str(path.relative_to(ROOT)): wrong
        for path in sorted((ROOT / "apps").rglob("*.py"))
        if (wrong := unfit(path.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_the_command_line_writes_by_one_function() -> None:
    """`common.say` and `print_table` spell out what a terminal would obey."""
    found = []
    for path in sorted((ROOT / "workbench" / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("typer.echo", "print", "sys.stdout.write", "typer.secho"):
                found.append(f"{path.name}:{called}")
    assert found == ["__init__.py:typer.echo"] * 2 + ["common.py:typer.echo"]
