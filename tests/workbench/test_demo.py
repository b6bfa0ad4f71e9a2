"""A real demo of tiny length: everything is made, the summary is the tables', a rerun reuses it."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from kernels.errors import RunError
from midus_model import load
from workbench import demo
from workbench.drawing import FIGURES
from workbench.make_study import card, ship
from workbench.recipe import Recipe
from workbench.runs import RunFolder

TINY = Recipe(
    steps=3, batch_size=2, train_documents=6, excerpts=6, windows=1, top=4,
    num_keys=8, top_k=2, latent_dim=8, baseline=True,
)  # fmt: skip
TABLES = {
    "ranking", "importance_before", "importance_after", "importance_baseline", "training",
    "amplification", "memory_usage", "memory_slots", "losses", "costs_before", "costs_after",
    "costs_baseline",
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals:UserWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """Interrupted in its training once, then gone on with."""
    place = tmp_path_factory.mktemp("demo") / "run"

    def stop(done: int, total: int, text: str) -> None:
        if text.startswith("training") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(place, recipe=TINY, progress=stop)
    assert RunFolder.open(place).has_table("ranking")
    (place / "ranking.json").unlink()  # as if killed between the table and it
    told: list[tuple[int, int, str]] = []
    finished = demo.run_demo(place, recipe=TINY, progress=lambda *step: told.append(step))
    steps = [done for done, _, text in told if text.startswith("training")]
    assert steps[0] in (1, 2)  # went on from a checkpoint
    return finished


def test_everything_is_there(run):
    again = RunFolder.open(run.path)
    assert again.done and set(again.tables) == TABLES
    others = {  # of other commands and of the longer study
        "prune_curves", "method_agreement", "role_map", "memory_effects", "memory_view",
        "realisations", "dose_response", "role_slopes", "choice", "usage_curves", "key_coverage",
        "attention_pattern", "next_tokens",
    }  # fmt: skip
    assert set(again.manifest["figures"]) == set(FIGURES) - others
    for name in again.manifest["figures"]:
        for form in ("pdf", "svg", "png", "html"):
            assert (run.path / "figures" / f"{name}.{form}").stat().st_size > 0
    assert again.model_path("before") == "pico"
    assert load(again.model_path("after")).config.num_hidden_layers == 9
    assert not (run.path / "training").exists() and not list(run.path.rglob("*.tmp"))
    assert set(again.load_table("training")["run"]) == {"midus", "llama-pro"}


def test_heads_are_written_where_the_table_is(run):
    heads = json.loads((run.path / "ranking.json").read_text())["heads"]
    assert heads == run.load_table("ranking")[["layer", "head"]].head(len(heads)).values.tolist()


def test_the_summary_is_the_tables(run):
    found = run.summary
    losses = run.load_table("losses").set_index(["model", "data"])["loss"]
    assert found["loss_new_before"] == losses["pico", "new"]
    assert found["loss_heldout_after"] == losses["midus", "heldout"]
    for side in ("before", "after"):
        clean = run.load_table(f"importance_{side}").attrs["clean_loss"]
        assert found[f"loss_new_{side}"] == pytest.approx(clean, abs=1e-5)
    table = run.load_table("amplification")
    assert found["heads"] == len(table) == 48
    assert found["amplified"] == (table["ci_low"] > 0).sum()
    best = table.loc[table["shrunk"].idxmax()]  # the largest measured is largest partly by luck
    assert found["most_amplified"][0]["score"] == best["score"]
    usage = run.load_table("memory_usage")
    assert found["coverage"].keys() == {str(layer) for layer in usage["layer"].unique()}
    totals = [
        run.load_table(f"costs_{side}").set_index("component").loc["total", "parameters"]
        for side in ("before", "after")
    ]
    assert found["parameters_added"] == totals[1] - totals[0]
    assert totals[1] == sum(p.numel() for p in load(run.model_path("after")).parameters())


def test_heads_are_chosen_and_measured_on_different_documents(run):
    chosen, measured = (
        {d["id"] for d in run.load_table(name).attrs["documents"]}
        for name in ("ranking", "importance_before")
    )
    assert chosen and measured and not chosen & measured


def test_a_finished_run_is_returned_and_another_refused(run):
    before = (run.path / "manifest.json").read_bytes()
    assert demo.run_demo(run.path, recipe=TINY).summary == run.summary
    assert (run.path / "manifest.json").read_bytes() == before
    with pytest.raises(RunError, match="other steps"):
        demo.run_demo(run.path, recipe=TINY, steps=5)


def test_the_closing_words(run):
    page = io.StringIO()
    demo.show(run, Console(file=page, width=200))
    text = page.getvalue()
    assert f"{run.summary['loss_new_after']:.3f}" in text
    assert "midus explore --run" in text and "midus rank" in text


def test_what_is_shipped(run, tmp_path):
    ship(run, tmp_path / "study", tmp_path / "model")
    study = RunFolder.open(tmp_path / "study")
    assert set(study.tables) == TABLES
    assert study.manifest["models"] == {"before": "pico", "after": "pico-midus"}
    assert not (tmp_path / "study" / "models").exists()
    assert (tmp_path / "model" / "README.md").read_text() == card(run)
    assert load(tmp_path / "model").config.num_hidden_layers == 9
