"""The long check of a commit: full matrices, fuzzing, small faults that tests must notice, the
kernels of other processors, the explorer's speed, every README command, a real checkpoint from
first to last, a clean install of the wheel.

`make verify`, or `python -m tests.verify`. Steps that passed are kept in runs/verify/ for the same
commit and the same files, so an interrupted run goes on where it stopped; `--fresh` forgets them.
At the end docs/verification.json says what was checked, on which versions, and how long it took.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests import processors

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "runs" / "verify"
RESULT = ROOT / "docs" / "verification.json"
SPEED = KEPT / "explorer-speed.json"
MUTATION = KEPT / "mutation.json"
README, REAL_MODELS = ROOT / "README.md", ROOT / "docs" / "real-models.md"
EXAMPLES = 300  # of every property, ten times those of the short tests
# Commands that serve until they are stopped; they count as working once they still run after this.
SERVERS = ("midus explore", "make explore", "streamlit run")
SERVER_SECONDS = 20
STEP_SECONDS = 2 * 3600
VERSIONS = ("midus-workbench", "torch", "transformers", "triton", "numpy", "pandas", "streamlit")


class StepFailed(RuntimeError):
    """A step that did not pass; the message says what to look at."""


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: to a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def git(*arguments: str) -> bytes:
    """Output of a git command in the repository; empty where there is no git or no commit."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    return done.stdout if done.returncode == 0 else b""


def state_of_tree() -> tuple[str, str, bool]:
    """Commit, a hash of every tracked or new file, and whether the tree differs from the commit."""
    commit = git("rev-parse", "HEAD").decode().strip()
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split(b"\0")
    own = RESULT.relative_to(ROOT).as_posix()
    digest = hashlib.sha256(sys.version.encode())
    for name in sorted({name.decode() for name in names if name} - {own}):
        path = ROOT / name
        if path.is_file():
            digest.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
    changed = git("status", "--porcelain", "--", ".", f":!{own}")
    return commit, digest.hexdigest(), bool(changed.strip())


def environment(bin_folder: Path) -> dict[str, str]:
    """This process's environment with a virtual environment's commands first on the path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = f"{bin_folder}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "VIRTUAL_ENV": str(bin_folder.parent), "MPLBACKEND": "Agg"}


def run(command: str, log: Path, folder: Path = ROOT, bin_folder: Path | None = None) -> None:
    """Run a shell command, its output added to `log`; raises StepFailed."""
    serves = any(name in command for name in SERVERS)
    limit = SERVER_SECONDS if serves else STEP_SECONDS
    with log.open("a", encoding="utf-8") as out:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env=environment(bin_folder or Path(sys.executable).parent),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = 0 if serves else 124
        except BaseException:
            stop(process)
            raise
        stop(process)
    if code != 0:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise StepFailed(f"exit {code}: {command}\n{tail}\nwhole output: {log}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process group that `run` started, if anything of it is left."""
    for number in (15, 9):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def matrices(log: Path) -> None:
    """Every test marked `verify`; that there are none yet is no failure (pytest's exit code 5)."""
    command = f"{shlex.quote(sys.executable)} -m pytest -q -n 2 -m verify || test $? -eq 5"
    run(command, log)


def fuzzing(log: Path) -> None:
    """Every property test, on many more examples and other ones each time."""
    command = f"{shlex.quote(sys.executable)} -m pytest -q -n 2 -m hypothesis tests"
    run(f"MIDUS_EXAMPLES={EXAMPLES} {command}", log)


def mutation(log: Path) -> None:
    """Small faults in the core modules: which do their tests notice?"""
    MUTATION.unlink(missing_ok=True)
    out = shlex.quote(str(MUTATION))
    run(f"{shlex.quote(sys.executable)} -m tests.mutation --jobs 2 --out {out}", log)


def mutation_scores() -> dict[str, dict[str, Any]]:
    """By module: tried, caught, score with its 95% interval, faults by hand, survivors."""
    return dict(json.loads(MUTATION.read_text(encoding="utf-8"))["modules"])


def numbers(variable: str, value: str, log: Path) -> None:
    """The numeric tests with the kernels of another processor, once these were taken."""
    python, setting = shlex.quote(sys.executable), f"{variable}={value}"
    run(f"export {setting}; {python} -m tests.processors {setting} >/dev/null", log)
    run(f"export {setting}; {python} -m pytest -q -n 2 {' '.join(processors.NUMERIC)}", log)


def explorer_speed(log: Path) -> None:
    """The explorer's percentiles in a browser; what they were is part of the result."""
    SPEED.unlink(missing_ok=True)
    out = shlex.quote(str(SPEED))
    run(f"{shlex.quote(sys.executable)} -m tests.apps.speed --out {out}", log)


def percentiles() -> dict[str, dict[str, list[float]]]:
    """Median and 95th percentile, in seconds, by run and by what was done."""
    found = json.loads(SPEED.read_text(encoding="utf-8"))
    return {
        name: {
            what: [round(float(np.quantile(seconds, q)), 3) for q in (0.5, 0.95)]
            for what, seconds in times.items()
        }
        for name, times in found.items()
        if name != "machine"
    }


def commands_of(page: Path) -> list[str]:
    """The commands of a page's shell blocks, in order, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    joined = "\n".join(blocks).replace("\\\n", " ")
    lines = (line.removeprefix("$ ").strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def readme_python() -> list[str]:
    """README.md's Python blocks."""
    text = README.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def python_blocks(log: Path) -> None:
    """README.md's Python, top to bottom as one script, outside the repository."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "readme.py"
        script.write_text("\n".join(readme_python()), encoding="utf-8")
        run(f"{shlex.quote(sys.executable)} readme.py", log, Path(folder))


def real_models(log: Path) -> None:
    """Every command of the page on a real checkpoint, in order, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        run(f"make -C {shlex.quote(str(ROOT))} smollm2", log)
        for command in commands_of(REAL_MODELS):
            if not command.startswith("make "):
                run(command, log, Path(folder))


def clean_install(log: Path) -> None:
    """Build the wheel, install it alone in a new environment, and use it from another folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # From a copy: setuptools leaves build/ and *.egg-info where it builds.
        source = folder / "source"
        names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split(b"\0")
        for one in sorted({part.decode() for part in names if part}):
            if (ROOT / one).is_file():
                (source / one).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / one, source / one)
        python = shlex.quote(sys.executable)
        run(f"{python} -m build --wheel --outdir {shlex.quote(name)} source", log, folder)
        (wheel,) = folder.glob("midus_workbench-*.whl")
        venv.create(folder / "env", with_pip=True)
        commands = folder / "env" / "bin"
        for command in (
            f"python -m pip install -q {wheel.name} -c source/constraints.txt",
            "python -c \"import importlib.util as u; assert u.find_spec('tests') is None\"",
            'python -c "import transformers, kernels, analysis; print(analysis.rank_heads())"',
            "midus --help",
            "midus costs pico",
        ):
            run(command, log, folder, commands)


def steps() -> dict[str, Callable[[Path], None]]:
    """Every step by name, in the order they are run."""
    found: dict[str, Callable[[Path], None]] = {
        "matrices": matrices,
        "fuzzing": fuzzing,
        "mutation": mutation,
        **{f"numbers, {a}={b}": partial(numbers, a, b) for a, b in processors.available()},
        "explorer's speed": explorer_speed,
        "real models": real_models,
        "wheel": clean_install,
    }
    if readme_python():
        found["README python"] = python_blocks
    for command in commands_of(README):
        if command != "make verify":  # this is it
            found[f"README $ {command}"] = partial(run, command)
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def kept_steps(path: Path, digest: str) -> dict[str, dict[str, Any]]:
    """What passed before on exactly these files."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known["steps"] if known.get("files") == digest else {}


def main() -> int:
    """Run what is not done yet; 0 when every step has passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fresh", action="store_true", help="run finished steps again")
    fresh = parser.parse_args().fresh
    commit, digest, changed = state_of_tree()
    state = KEPT / "state.json"
    done = {} if fresh else kept_steps(state, digest)
    failed = []
    todo = steps()
    for number, (name, step) in enumerate(todo.items(), 1):
        print(f"[{number}/{len(todo)}] {name}: ", end="", flush=True)
        if name in done:
            print(f"passed before ({done[name]['seconds']} s)")
            continue
        KEPT.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        try:
            log = KEPT / f"{number:02d}.txt"
            log.unlink(missing_ok=True)
            step(log)
        except StepFailed as error:
            print(f"FAILED\n{error}")
            failed.append(name)
            continue
        done[name] = {"seconds": round(time.monotonic() - start, 1)}
        write_json(state, {"files": digest, "steps": done})
        print(f"passed ({done[name]['seconds']} s)")
    if failed:
        print(f"{len(failed)} of {len(todo)} steps failed; run again to repeat only those")
        return 1
    write_json(
        RESULT,
        {
            "schema": 1,
            "commit": commit or None,
            "uncommitted_changes": changed,
            "files_sha256": digest,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "steps": [{"name": name, **done[name]} for name in todo],
            "explorer_seconds_median_and_p95": percentiles(),
            "mutation": mutation_scores(),
            "seconds": round(sum(done[name]["seconds"] for name in todo), 1),
        },
    )
    print(f"all {len(todo)} steps passed; {RESULT.relative_to(ROOT)} says so")
    return 0


if __name__ == "__main__":
    sys.exit(main())
