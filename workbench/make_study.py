"""Make what is shipped: the finished study and pico-midus.

`python -m workbench.make_study` runs the demo's recipe at greater length, with LLaMA Pro trained
on the same rows beside MIDUS, and writes `workbench/study/` and `midus_model/pico_midus/`.
The checksum of new weights is entered in `midus_model.loading.WEIGHTS`.
Interrupted, it goes on from where it was.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from kernels import files, locks
from kernels.errors import MidusError
from midus_model import SHIPPED, load, load_tokenizer
from midus_model.bench.report import fill_in
from workbench.recipe import Recipe, Study
from workbench.runs import RunFolder
from workbench.study_page import page
from workbench.training.saving import save_model

STUDY_DIR = Path(__file__).resolve().parent / "study"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "amplification.md"
STUDY = Recipe(
    steps=240, train_documents=None, excerpts=96, windows=2, baseline=True, evidence=True,
    choice_seeds=3,
)  # fmt: skip


def make(work: Path, recipe: Recipe, progress: Any = None) -> RunFolder:
    """Run the recipe in `work`; a run of the same recipe there is gone on with."""
    study = Study(recipe, progress)
    run = RunFolder.begin(
        work, "study", ["python", "-m", "workbench.make_study"], recipe.parameters(),
        inputs=study.inputs(),
    )  # fmt: skip
    if not run.done:
        with run:
            run.resume()
            study.run(run, html=False)
    return run


def ship(run: RunFolder, study: Path = STUDY_DIR, model_dir: Path = SHIPPED["pico-midus"]) -> None:
    """Copy the run but its weights to `study`, and the up-scaled model in fp16 to `model_dir`."""
    model = load(run.path / "models" / "midus")
    save_model(model.half(), load_tokenizer("pico"), model_dir)
    (model_dir / "README.md").write_text(card(run), encoding="utf-8")
    left = shutil.ignore_patterns("models", "training", "log.jsonl")
    with files.replacing(study) as draft:
        shutil.copytree(run.path, draft, ignore=left)
        shipped = RunFolder.open(draft)
        shipped.manifest["models"] = {}
        shipped.add_model("before", "pico")
        shipped.add_model("after", "pico-midus")


def card(run: RunFolder) -> str:
    """The model card, every number read off the run."""
    found, asked = run.summary, run.manifest["parameters"]
    tokens = asked["steps"] * asked["batch_size"] * 256 / 1e6
    return f"""---
license: apache-2.0
library_name: transformers
---
# pico-midus

pico made deeper with MIDUS memory blocks (arXiv 2512.13751): three blocks inserted after layers 1,
3 and 5, each with {asked["num_keys"]} x {asked["num_keys"]} slots of {asked["latent_dim"]} numbers
shared by its eight heads, of which every head reads {asked["top_k"]} a token.
{found["parameters_added"]:,} parameters were added to {found["parameters_before"]:,}.

| loss, nats a token | pico | pico-midus | LLaMA Pro |
|---|---|---|---|
| test files of pandas, sympy, networkx | {found["loss_new_before"]:.3f} | \
{found["loss_new_after"]:.3f} | {found["loss_new_baseline"]:.3f} |
| held-out standard library | {found["loss_heldout_before"]:.3f} | \
{found["loss_heldout_after"]:.3f} | {found["loss_heldout_baseline"]:.3f} |

LLaMA Pro: copied layers at the same places, {found["parameters_baseline"]:,} parameters in all,
trained on the same rows in the same order. One seed each, and a learning rate each.

**Training.** New blocks only, {asked["steps"]:,} steps of {asked["batch_size"]} rows of 256 tokens
({tokens:.1f}M tokens) of the source of pandas, sympy and networkx; one file in ten was set aside
for test by the hash of its path. AdamW, learning rate {asked["lr_midus"]:g} (banks ten times that;
LLaMA Pro {asked["lr_llama_pro"]:g}), 5% warm-up and a cosine to zero, seed {asked["seed"]}.
`python -m workbench.make_study` makes it again; `workbench/study` holds what was measured.

**Limits.** It knows the look of Python source and nothing else. No safety work was done.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STUDY.steps)
    parser.add_argument("--work", type=Path, default=Path("runs/study"))
    options = parser.parse_args()
    recipe = Recipe(**{**STUDY.parameters(), "steps": options.steps})

    def say(done: int, total: int, text: str) -> None:
        if total == 0 or done in (total, 1) or done % max(1, total // 10) == 0:
            print(f"{text} {done}/{total}" if total else text, file=sys.stderr, flush=True)

    try:
        with locks.hold(STUDY_DIR), locks.hold(SHIPPED["pico-midus"]):
            run = make(options.work, recipe, say)
            ship(run)
        if PAGE.exists():  # in a checkout
            fill_in(PAGE, "study", page(run))
    except MidusError as error:
        parser.error(str(error))
    print(f"{STUDY_DIR} and {SHIPPED['pico-midus']} are made")


if __name__ == "__main__":
    main()
