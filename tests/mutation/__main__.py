"""Which small faults in the core modules do their own tests notice?

    python -m tests.mutation [--work DIR] [--out FILE] [--sample N] [--jobs N] [modules...]

Prints a line a module: mutants tried (of so many sites), those caught, the score and its interval.
Verdicts are kept in DIR by mutant, module and tests, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(given: list[str] | None = None) -> int:
    """0 where every fault put in by hand was caught and no score is below the least."""
    summary, _, usage = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=summary)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "mutation", metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--sample", type=int, default=32, metavar="N", help="sites a module")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials side by side")
    parser.add_argument("modules", nargs="*", metavar="module", help="analysis/race.py, ...")
    asked = parser.parse_args(given)

    import tests.conftest  # noqa: F401  settings that libraries read, before they are loaded
    from tests.mutation import report
    from tests.mutation.modules import MODULES
    from tests.mutation.runs import Run

    unknown = [name for name in asked.modules if name not in MODULES]
    if unknown:
        parser.error(f"{unknown[0]} is not among the modules: {', '.join(MODULES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # trials under way end with it
    run = Run(ROOT, asked.work, asked.jobs)
    gc.freeze()
    found = []
    for file in asked.modules or MODULES:
        module = run.module(file, MODULES[file], asked.sample)
        print(report.line(module), flush=True)
        found.append(module)
    result = report.result(found, report.explanations())
    print(report.text(result))
    if asked.out:
        from kernels.files import replacing  # after all forks, which have none of our code

        with replacing(asked.out) as draft:
            draft.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if report.failures(result) else 0


if __name__ == "__main__":
    sys.exit(main())
