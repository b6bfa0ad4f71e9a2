"""Other processors on this one: BLAS and PyTorch asked to use the kernels of older or newer CPUs.

Products of matrices then round otherwise. `python -m tests.processors` prints what was taken and
what was decided on tables with ties, which must be the same everywhere.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from analysis.race_found import p_top, ties
from analysis.tables import head_table
from analysis.ties import best_first
from tests.analysis.test_race_ties import TABLES, many, raced

ROOT = Path(__file__).resolve().parents[1]
BLAS, TORCH = "OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY"
# Each setting, and the flag of /proc/cpuinfo without which its kernels would be illegal.
SETTINGS: dict[tuple[str, str], str] = {
    (BLAS, "Haswell"): "avx2",
    (BLAS, "Zen"): "avx2",
    (BLAS, "SkylakeX"): "avx512bw",
    (TORCH, "default"): "",
    (TORCH, "avx2"): "avx2",
    (TORCH, "avx512"): "avx512bw",
}
# What `make verify` runs under each of them.
NUMERIC = (
    "tests/analysis/test_race.py",
    "tests/analysis/test_race_ties.py",
    "tests/analysis/test_ties.py",
    "tests/analysis/test_ranking.py",
    "tests/analysis/test_tables.py",
    "tests/analysis/test_statistics.py",
    "tests/analysis/test_importance.py",
    "tests/analysis/test_sweep.py",
    "tests/analysis/test_contrasts.py",
    "tests/analysis/test_mixed_model.py",
    "tests/analysis/test_role_slopes.py",
    "tests/analysis/test_amplification.py",
    "tests/analysis/test_evidence.py",
    "tests/kernels/test_eager.py",
)
# What OpenBLAS calls the kernels it took; many builds hold one set for both of these.
TAKEN = {"Zen": ("Zen", "Haswell")}
_NAMES = tuple(
    f"{prefix}openblas_get_corename{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")
)


def available() -> list[tuple[str, str]]:
    """The settings that this machine's CPU can run, as (variable, value)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        flags = []
    return [
        (variable, value)
        for (variable, value), flag in SETTINGS.items()
        if (not flag or flag in flags) and (variable != BLAS or blas_cores())
    ]


def blas_cores() -> dict[str, str]:
    """The kernels that every OpenBLAS of this process took, by the library's name."""
    import scipy.linalg  # noqa: F401  # has an OpenBLAS of its own

    found = {}
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    for path in sorted({line.split()[-1] for line in maps if "openblas" in line}):
        library = ctypes.CDLL(path)
        for name in _NAMES:
            if hasattr(library, name):
                ask = getattr(library, name)
                ask.restype = ctypes.c_char_p
                found[Path(path).name] = ask().decode()
                break
    return found


def refused(setting: tuple[str, str]) -> str:
    """What is wrong with a setting, or nothing: asked of the libraries, not of the environment."""
    variable, value = setting
    if variable == TORCH:
        import torch

        found = torch.backends.cpu.get_cpu_capability()
        return "" if found.lower() == value else f"PyTorch took {found}, not {value}"
    cores = blas_cores()
    if not cores:
        return f"no OpenBLAS is loaded that could take {value}"
    wrong = {name: core for name, core in cores.items() if core not in TAKEN.get(value, (value,))}
    return f"OpenBLAS took {wrong}, not {value}" if wrong else ""


def environment(settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    """This process's environment with these settings, and neither of the others."""
    kept = {name: text for name, text in os.environ.items() if name not in (BLAS, TORCH)}
    return kept | dict(settings) | {"OMP_NUM_THREADS": "1"}


def elsewhere(*settings: tuple[str, str]) -> dict[str, Any]:
    """What `python -m tests.processors` prints under these settings."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.processors", *map("=".join, settings)],
        cwd=ROOT, env=environment(settings), capture_output=True, text=True,
    )  # fmt: skip
    if not done.stdout:
        raise RuntimeError(f"{settings}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


# ---------------------------------------------------------------- what is decided


def of_races() -> dict[str, Any]:
    """Races and a table of scores, full of ties: numpy alone, in half a second."""
    found: dict[str, Any] = {}
    for make in TABLES:
        for values, top, seed in many(make, 12):
            race = raced(values, top, seed=seed)
            order = race.ranking()
            found[f"race {make} {seed}"] = [
                race.stopped, order.tolist(), race.counts.tolist(), race.scores.tolist(),
                p_top(race).round(3).tolist(), ties(race, order),
            ]  # fmt: skip
    table = tied_table()
    found["scores"] = table["score"].tolist()
    found["sure"] = [(table["ci_low"] > 0).tolist(), (table["ci_high"] < 0).tolist()]
    found["order"] = best_first(table["score"]).tolist()
    return found


def of_tables() -> dict[str, Any]:
    """A sorted table, an amplification and a contrast; these import PyTorch."""
    from analysis.amplification import amplification
    from analysis.contrasts import amplification_contrast
    from analysis.ranking import _sorted

    before, after = tied_table(), tied_table(gain=True)
    ranked = _sorted(before.copy(), 7, 31)
    change = amplification(before, after)
    contrast = amplification_contrast(
        change, [(0, 1), (0, 3), (2, 2)], caliper=1.0, unmatched="drop", draws=200
    )
    columns = ("layer", "head", "tied_with_next", "p_top")
    return {
        "sorted": [ranked[name].tolist() for name in columns],
        "amplified": [(change["ci_low"] > 0).tolist(), best_first(change["score"]).tolist()],
        "contrast": [contrast["p"].tolist(), contrast.attrs["pairs"]],
    }


def tied_table(gain: bool = False) -> pd.DataFrame:
    """35 heads, five of each kind."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 90, 31)
    levels = np.repeat(rng.normal(0.2, 1, (7, 31)), 5, axis=0)[rng.permutation(35)]
    documents = [
        {"id": str(i), "tokens": int(n), "sha256": f"{i:064d}"} for i, n in enumerate(tokens)
    ]
    sites = [
        SimpleNamespace(layer=i // 5, kind="attention", head=i % 5, source_layer=i // 5)
        for i in range(35)
    ]
    attrs = {"metric": "loss", "baseline": "mean", "method": "ablation", "seed": 0}
    scores = levels + levels[0] if gain else levels
    return head_table(sites, scores, tokens, attrs | {"documents": documents})


def main() -> int:
    settings = [tuple(word.split("=")) for word in sys.argv[1:]]
    found = of_races()
    if any(variable == TORCH for variable, _ in settings):
        found |= of_tables()
    wrong = [text for setting in settings if (text := refused(setting))]  # type: ignore[arg-type]
    print(json.dumps({"wrong": wrong, "decisions": found}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
