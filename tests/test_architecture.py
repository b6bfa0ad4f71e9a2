"""The house's own rules: imports run downward, the name `kernels` is safe, files stay small."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("kernels", "midus_model", "analysis", "workbench", "apps")  # lowest first
MAX_LINES = 600
CORE_OF_KERNELS = {"torch", "triton", "numpy"}  # the last two only where they are used
CORE_OF_MODEL = CORE_OF_KERNELS | {"transformers", "safetensors"}
# What runs code out of a file, or out of a stranger's repository.
UNSAFE_NAMES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
UNSAFE_ARGUMENTS = {"trust_remote" + "_code", "allow" + "_pickle"}
UNSAFE_CALLS = {"torch.load", "torch.hub.load", "pd.read_pickle", "pandas.read_pickle"}
UNSAFE_BUILTINS = {"eval", "exec", "compile"}
# What each loading call of a library must say; without it, transformers asks on standard input.
TRUST_NONE = ("trust_remote" + "_code", False)
LOADING_CALLS = {
    "from_pretrained": TRUST_NONE,
    "pipeline": TRUST_NONE,
    "load_adapter": ("use_safetensors", True),
    "snapshot_download": ("local_files_only", True),
}


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def every_file() -> list[Path]:
    return [path for package in (*LAYERS, "tests") for path in files(package)]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, those inside functions too."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield node.lineno, ".".join([*base, *([node.module] if node.module else [])])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.mark.parametrize("package", LAYERS)
def test_package_is_a_package(package: str) -> None:
    assert (ROOT / package / "__init__.py").is_file(), f"the wheel would leave out {package}"
    folders = {path.parent for path in files(package)}
    assert all((folder / "__init__.py").is_file() for folder in folders)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_run_downward_only(package: str) -> None:
    above = {*LAYERS[LAYERS.index(package) + 1 :], "tests"}
    wrong = [
        f"{where(path, line)} imports {name}"
        for path in files(package)
        for line, name in imported(path)
        if name.split(".")[0] in above
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("package", "allowed"), [("kernels", CORE_OF_KERNELS), ("midus_model", CORE_OF_MODEL)]
)
def test_core_needs_little(package: str, allowed: set[str]) -> None:
    """So that both run on a bare GPU machine, and `kernels` inside transformers' own import."""
    ours = set(LAYERS[: LAYERS.index(package) + 1])
    wrong = [
        f"{where(path, line)} imports {name}"
        for path in files(package)
        for line, name in imported(path)
        if name.split(".")[0] not in sys.stdlib_module_names | allowed | ours
    ]
    assert not wrong


def test_kernels_has_no_version() -> None:
    """transformers reads `kernels.__version__` of Hugging Face's package of that name."""
    assert not hasattr(importlib.import_module("kernels"), "__version__")
    text = "".join(path.read_text(encoding="utf-8") for path in files("kernels"))
    assert "__version__" not in text


def test_nothing_in_apps_is_named_like_a_package() -> None:
    """Streamlit puts the script's folder first on the path: apps/x.py would hide a package x."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {
        requirement.split(";")[0].split(">")[0].split("[")[0].strip().replace("-", "_")
        for requirement in project["dependencies"]
    }
    taken = {*LAYERS, "tests", *needed} | set(sys.stdlib_module_names)
    entries = {path.stem for path in (ROOT / "apps").iterdir() if not path.name.startswith("__")}
    assert not entries & taken


def run(code: str, folder: Path, path: str | None) -> str:
    """What a new interpreter prints for `code`, run in `folder` with PYTHONPATH `path`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = path
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


IMPORT_ALL = """
import transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM
import kernels
print(kernels.__file__)
"""


def test_transformers_imports_from_a_bare_checkout() -> None:
    printed = run(IMPORT_ALL, ROOT, str(ROOT))
    assert Path(printed.strip()) == ROOT / "kernels" / "__init__.py"


def test_transformers_imports_beside_the_installed_distribution(tmp_path: Path) -> None:
    """With the distribution's own metadata, which transformers looks up, and from elsewhere."""
    installed = "import importlib.metadata as m; print(m.version('midus-workbench'))"
    try:
        run(installed, tmp_path, None)
    except AssertionError:
        pytest.skip("midus-workbench is not installed here; `make test` installs it")
    assert run(IMPORT_ALL, tmp_path, None).strip()


@pytest.mark.parametrize("package", LAYERS[:4])
def test_public_names_have_docstrings(package: str) -> None:
    """Every function and class in a module's __all__ says what it does."""
    silent = []
    for path in files(package):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if path.name == "__main__.py" or not declares_all(path):
            continue
        module = importlib.import_module(name)
        for public in module.__all__:
            thing = getattr(module, public)
            if callable(thing) and not (thing.__doc__ or "").strip():
                silent.append(f"{name}.{public}")
    assert not silent


def declares_all(path: Path) -> bool:
    return any(
        isinstance(target, ast.Name) and target.id == "__all__"
        for node in parse(path).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    )


@pytest.mark.parametrize("package", LAYERS[:3])
def test_library_packages_say_what_is_public(package: str) -> None:
    assert declares_all(ROOT / package / "__init__.py")


def unsafe(path: Path) -> Iterator[int]:
    """Lines of a file that load what could run code."""
    yield from (n for n, name in imported(path) if name.split(".")[0] in UNSAFE_NAMES)
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.keyword) and node.arg in UNSAFE_ARGUMENTS:
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield node.value.lineno
            continue
        constant = isinstance(node, ast.Constant) and node.value in UNSAFE_ARGUMENTS
        if constant or (isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_CALLS):
            yield node.lineno


def test_nothing_unsafe_is_loaded() -> None:
    """No pickles, no `torch.load`, no code from model repositories: weights are safetensors."""
    assert not [where(path, line) for path in every_file() for line in unsafe(path)]


def unguarded(tree: ast.AST) -> Iterator[int]:
    """Lines that load without saying that nothing is trusted, or run a text as code."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        called = node.func.id if isinstance(node.func, ast.Name) else called
        said = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        name, value = LOADING_CALLS.get(called, ("", None))
        unsaid = called in LOADING_CALLS and said.get(name) is not value
        run = isinstance(node.func, ast.Name) and called in UNSAFE_BUILTINS
        shell = said.get("shell") is True or ast.unparse(node.func) == "os.system"
        if unsaid or run or shell:
            yield node.lineno


def test_every_loading_call_says_that_nothing_is_trusted() -> None:
    found = [(path, line) for p in LAYERS for path in files(p) for line in unguarded(parse(path))]
    assert not [where(path, line) for path, line in found]


@pytest.mark.parametrize(
    ("code", "caught"),
    [
        ("AutoConfig.from_pretrained(place)", True),
        ("AutoConfig.from_pretrained(place, trust_remote" + "_code=trust)", True),
        ("from_pretrained(place, trust_remote" + "_code=False)", False),
        ("model.load_adapter(place)", True),
        ("model.load_adapter(place, use_safetensors=True)", False),
        ("subprocess.run(line, shell=True)", True),
        ("os.system(line)", True),
        ("eval(text)", True),
        ("model.eval()", False),
        ("re.compile(text)", False),
    ],
)
def test_a_call_that_trusts_is_caught(code: str, caught: bool) -> None:
    assert bool(list(unguarded(ast.parse(code)))) is caught


def test_the_tests_that_the_security_page_names_are_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+\.py): ([\w,\s]+)`", text)
    assert len(named) > 15
    for file, names in named:
        found = [path for path in files("tests") if path.name == file]
        code = "".join(path.read_text(encoding="utf-8") for path in found)
        for name in names.replace(",", " ").split():
            assert f"def test_{name}" in code, f"{file}: {name}"


def test_files_stay_small() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in every_file()}
    assert not {str(p.relative_to(ROOT)): n for p, n in lines.items() if n >= MAX_LINES}


def test_constraints_are_plain_versions() -> None:
    """Exact, without local suffix or address, so that pip may take the build its settings offer."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin and "+" not in pin and "/" not in pin for pin in pins)
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    own = f"{project['name']}["  # an extra that another takes in
    asked = [one for one in asked if not one.startswith(own)]
    names = {one.split(";")[0].split(">")[0].strip().lower().replace("_", "-") for one in asked}
    assert names <= pinned
