"""`python -m workbench.key_study`: measure coverage, train, and fill in docs/keys.md.

Every row is kept in the run folder as it comes; interrupted, the study goes on from where it was,
a training from its checkpoint.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kernels.errors import MidusError, RunError
from kernels.files import write_json
from midus_model.bench.report import check_page, fill_page
from workbench.key_study import report
from workbench.key_study.measure import STARTS, TRAININGS, Experiment, Setting
from workbench.records import read_sealed, sealed
from workbench.runs import RunFolder

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROWS = "keys.json"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 where something given cannot be used."""
    usual = Setting()
    parser = argparse.ArgumentParser(
        prog="python -m workbench.key_study", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/key-study"))
    parser.add_argument("--coverage-only", action="store_true", help="do not train")
    parser.add_argument("--seeds", type=int, default=usual.seeds)
    parser.add_argument("--steps", type=int, default=usual.steps, help="of every training")
    parser.add_argument("--windows", type=int, default=usual.windows, help="of held-out text")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of keys.json and keys.md")
    given = parser.parse_args(arguments)
    page = given.docs / "keys.md"
    try:
        for name in ("seeds", "steps", "windows"):
            if getattr(given, name) < 1:
                raise MidusError(f"--{name} is {getattr(given, name)}; it must be at least 1")
        check_page(page, report.TABLES)
        setting = Setting(seeds=given.seeds, steps=given.steps, windows=given.windows)
        found = run(setting, given.out, trainings=not given.coverage_only)
        write_json(given.docs / ROWS, found)
        fill_page(page, report.TABLES, found)
    except (MidusError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.setting(found), report.coverage(found), report.training(found), sep="\n")
    return 0


def run(setting: Setting, out: Path, *, trainings: bool = True) -> dict[str, Any]:
    """What is not measured yet, row by row; everything found so far."""
    work = out / "training"
    experiment = Experiment(setting, work, _say)
    folder = RunFolder.begin(
        out, "key-study", ["python", "-m", "workbench.key_study"], setting.parameters(),
        inputs=experiment.inputs(),
    )  # fmt: skip
    folder.resume()
    with folder:
        found = _kept(folder.path / ROWS)
        for part, row_of, key in _jobs(experiment, trainings):
            if any(all(row[name] == key[name] for name in key) for row in found[part]):
                continue
            _say(0, 0, f"{part}: " + ", ".join(f"{name} {value}" for name, value in key.items()))
            found[part].append(row_of(**key))
            if not found["about"]:
                found["about"] = experiment.about()
                found["about"]["tokens"] = found[part][0]["tokens"]
            folder.write_json(ROWS, sealed(found))
            shutil.rmtree(work, ignore_errors=True)
        folder.finish({part: len(found[part]) for part in ("coverage", "training")})
    return found


def _jobs(
    experiment: Experiment, trainings: bool
) -> Iterator[tuple[str, Callable[..., dict[str, Any]], dict[str, Any]]]:
    """Part, measurement, and what tells its row from others; the trainings an arm at a time."""
    for seed in range(experiment.setting.seeds):
        for keys in STARTS:
            yield "coverage", experiment.coverage, {"keys": keys, "seed": seed}
    for keys, revived in TRAININGS if trainings else ():
        for seed in range(experiment.setting.seeds):
            which = {"keys": keys, "revived": revived, "seed": seed}
            yield "training", experiment.trained, which


def _kept(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"about": {}, "coverage": [], "training": []}
    try:
        return dict(read_sealed(path))
    except RunError as error:
        raise RunError(f"{error}; remove it to begin anew") from error


def _say(done: int, total: int, text: str) -> None:
    if total == 0 or done in (total, 1) or done % max(1, total // 10) == 0:
        print(f"{text} {done}/{total}" if total else text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
