"""What is written through Python rather than by a command, as functions that a child calls."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from kernels.errors import RunError

MANIFEST = '{"schema": 1, "kind": "rank", "status": "done", "parameters": {}, "models": {}, ' \
           '"tables": [], "figures": [], "summary": {}}'  # fmt: skip
# In place of Python in the jobs' commands: done at once, a whole manifest in the run folder.
COMMAND = f"""#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in --output) out="$2" ;; --output=*) out="${{1#*=}}" ;; esac
  shift
done
mkdir -p "$out"
echo '{MANIFEST}' > "$out/draft"
mv "$out/draft" "$out/manifest.json"
"""
SECONDS = 60


def study(baseline: str = "") -> None:
    """With one figure of the twenty, which are a case of their own."""
    from workbench import recipe as steps
    from workbench.demo import run_demo
    from workbench.recipe import Recipe

    draw = steps.draw
    steps.draw = lambda run, **_: draw(run, ["costs"], ["svg"], html=False)  # type: ignore[assignment]
    recipe = Recipe(
        steps=2, batch_size=2, train_documents=None, excerpts=4, windows=1, top=2, num_keys=16,
        top_k=2, latent_dim=8, baseline=bool(baseline), choice_seeds=int(not baseline),
        choice_steps=1, base="base", data="texts.jsonl",
    )  # fmt: skip
    run_demo("run", recipe=recipe)


def ship() -> None:
    from workbench.make_study import ship
    from workbench.runs import RunFolder

    ship(RunFolder.open("run"), Path("study"), Path("shipped"))


def table(score: str = "0") -> None:
    import pandas as pd

    from analysis import tables

    rows = pd.DataFrame(
        {"layer": [0, 1], "score": [float(score), 1.0], "by_document": [[1.0], [2.0]]}
    )
    rows.attrs = {"method": "ablation", "seed": int(score)}
    tables.save(rows, "results/mine")
    tables.load("results/mine")


def sweep() -> None:
    from analysis import head_importance, tables

    found = head_importance("base", "few.jsonl", checkpoint="partial.safetensors")
    tables.save(found, "swept")


def conversion() -> None:
    """A package's checkpoint, which here is the model `base` as it is."""
    from midus_model import PACKAGED, load, load_tokenizer, packaged
    from midus_model.packaged import Packaged

    os.environ["MIDUS_CACHE"] = "cache"

    def write(checkpoint: Packaged, file: Path, folder: Path) -> None:
        load_tokenizer("base").save_pretrained(folder)
        load("base").save_pretrained(folder)
        (folder / "README.md").write_text("converted\n")
        os.chmod(folder, 0o755)

    packaged._write = write
    packaged.find_spec = lambda _: True  # type: ignore[assignment,return-value]
    Packaged.file = lambda _: Path("base")  # type: ignore[method-assign]
    PACKAGED["fake"] = Packaged("Fake-1B", "no-such-package", "1.0", "no_such", 64, "none")
    load("fake")


def _command() -> None:
    script = Path("python")
    if not script.exists():
        draft = Path("python.draft")
        try:
            draft.write_text(COMMAND)
        except OSError as error:  # of a disk that is full before the job begins
            draft.unlink(missing_ok=True)
            raise RunError(f"{draft} cannot be written: {error.strerror}") from error
        draft.chmod(0o755)
        draft.replace(script)
    sys.executable = str(script.resolve())


def job() -> None:
    """The job "mine", done: started, or found as whoever was killed had left it."""
    from workbench import jobs

    _command()
    known = {job.name: job for job in jobs.jobs("jobs")}
    job = known.get("mine")
    if job is None:
        job = jobs.start(["rank", "base"], "jobs", "mine")
    elif job.status not in ("running", "done"):
        job.again()
    _until_done(job)


def job_again() -> None:
    from workbench import jobs

    _command()
    job = jobs.one("jobs", "mine")
    if job.status != "running":
        job.again()
    _until_done(job)


def job_removed() -> None:
    from workbench import jobs

    for job in jobs.jobs("jobs"):
        job.remove()


def _until_done(job) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + SECONDS
    while job.status == "running" and time.monotonic() < end:
        time.sleep(0.005)
    assert job.status == "done", (job.status, job.message)
    while not (Path("jobs/.jobs/mine/code").exists()) and time.monotonic() < end - SECONDS + 1:
        time.sleep(0.005)


def settled() -> None:
    Path("kept.json").write_text('{"settled": true}')


def broken() -> None:
    """Writes in place, reads it back as if it were whole, and leaves a draft where it is killed."""
    kept, draft = Path("kept.json"), Path(f".draft.{os.getpid()}.tmp")
    assert json.loads(kept.read_text())["settled"], "kept.json is damaged"
    draft.write_text("done")
    kept.write_text('{"settled": true, "more": 1}')
    draft.replace("result.txt")
    kept.write_text('{"settled": true}')
