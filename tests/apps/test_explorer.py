"""The explorer, page by page without a browser: no exception, and the numbers of the tables."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from analysis import statistics, tables
from tests.apps.planted import plant_run

APP = Path(__file__).parents[2] / "apps" / "explorer.py"
STUDY = Path(__file__).parents[2] / "workbench" / "study"
PAGES = ("views/heads.py", "views/memory.py", "views/amplification.py")

Opener = Callable[..., AppTest]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_run(tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture
def damaged(planted: Path, tmp_path: Path) -> Path:
    """A copy of the planted run for a test to damage."""
    return Path(shutil.copytree(planted, tmp_path / "damaged"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Opens the app as `streamlit run apps/explorer.py -- arguments`, on a page."""

    def start(*arguments: object, page: str = PAGES[0], query: str | None = None) -> AppTest:
        monkeypatch.setattr(sys, "argv", [str(APP), *map(str, arguments)])
        app = AppTest.from_file(str(APP), default_timeout=60)
        if query is not None:
            app.query_params["run_name"] = query
        app.run()
        return app if page == PAGES[0] else app.switch_page(page).run()

    return start


def metrics(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def words(app: AppTest) -> str:
    """All messages and captions of the page, Markdown's backslashes taken out."""
    found = [e.value for kind in (app.error, app.warning, app.caption, app.markdown) for e in kind]
    return "\n".join(found).replace("\\", "")


def errors(app: AppTest) -> str:
    return "\n".join(e.value for e in app.error).replace("\\", "")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_shows_the_planted_run_without_a_message(
    opened: Opener, planted: Path, page: str
) -> None:
    app = opened("--run", planted, page=page)
    assert not app.exception and not app.error and not app.warning
    assert any(expander.label == "How is this computed" for expander in app.expander)
    said = words(app)
    assert "data planted, 24 documents" in said and "small-midus" in said
    if page != PAGES[1]:
        assert "baseline mean" in said and "metric loss" in said


@pytest.mark.skipif(not STUDY.is_dir(), reason="the shipped study is not in this checkout")
@pytest.mark.parametrize("page", PAGES)
def test_the_shipped_study_is_what_opens_by_itself(opened: Opener, page: str) -> None:
    app = opened(page=page)
    assert app.selectbox(key="run_name").options == ["shipped study"]
    assert not app.exception and not app.error and not app.warning


def test_importance_numbers_are_the_tables(opened: Opener, planted: Path) -> None:
    app = opened("--run", planted)
    table = tables.load(planted / "tables" / "importance_after")
    best = table.loc[table["score"].idxmax()]
    shown = metrics(app)
    assert shown["Score (nats/token)"] == f"{best['score']:.4f}"
    assert shown["Interval"] == f"{best['ci_low']:.4f} to {best['ci_high']:.4f}"
    assert shown["Rank"] == f"1 of {len(table)}"
    assert shown["Source layer"] == str(best["source_layer"])
    share = statistics.shares(table["score"])[0].max()
    assert shown["Share"] == f"{100 * share:.1f} %"
    frame = app.dataframe[0].value
    assert frame["score"].tolist() == sorted(table["score"], reverse=True)
    assert frame["share"].sum() == pytest.approx(100)


def test_a_clicked_cell_shows_that_head(opened: Opener, planted: Path) -> None:
    app = opened("--run", planted)
    table = tables.load(planted / "tables" / "importance_after")
    row = table[(table["kind"] == "memory") & (table["head"] == 2)].iloc[0]
    app.session_state[f"importance_map_{planted.name}"] = selection(row, curve=1)
    app.run()
    assert not app.exception and not app.error
    assert metrics(app)["Score (nats/token)"] == f"{row['score']:.4f}"
    assert f"+ memory (from {row['source_layer']}), head 2" in words(app)


def selection(row: pd.Series, curve: int) -> dict[str, object]:
    """What Streamlit stores when a head's cell is clicked."""
    identity = [int(row["layer"]), row["kind"], int(row["head"]), int(row["source_layer"])]
    point = {"curve_number": curve, "x": identity[2], "y": identity[0], "customdata": identity}
    return {"selection": {"points": [point], "point_indices": [0], "box": [], "lasso": []}}


def test_memory_numbers_are_the_tables(opened: Opener, planted: Path) -> None:
    app = opened("--run", planted, page=PAGES[1])
    usage = tables.load(planted / "tables" / "memory_usage")
    slots = tables.load(planted / "tables" / "memory_slots")
    block = int(usage["layer"].max())
    app.selectbox(key="block").set_value(block)
    app.selectbox(key="head").set_value(3).run()
    assert not app.exception and not app.error
    row = usage[(usage["layer"] == block) & (usage["head"] == 3)].iloc[0]
    shown = metrics(app)
    assert shown["Coverage"] == f"{100 * row['coverage']:.1f} %"
    assert shown["Dead slots"] == f"{row['dead']} of {row['slots']}"
    assert shown["Effective slots"] == f"{row['effective_slots']:,.0f}"
    held = slots[(slots["block"] == block) & (slots["head"] == 3)]
    listed = app.dataframe[1].value
    assert listed["hits"].tolist() == sorted(held["hits"], reverse=True)
    assert listed["slot"].iloc[0] == held.loc[held["hits"].idxmax(), "slot"]


def test_amplification_numbers_are_the_tables(opened: Opener, planted: Path) -> None:
    app = opened("--run", planted, page=PAGES[2])
    table = tables.load(planted / "tables" / "amplification")
    spread = table.attrs["concentration"]
    shown = metrics(app)
    old, new = spread["before"]["gini"], spread["after"]["gini"]
    assert shown["Gini of importance"] == f"{old:.3f} → {new:.3f}"
    assert shown["Chosen heads"] == f"{len(table.attrs['chosen'])} of {len(table)}"
    frame = app.dataframe[0].value
    assert frame["score"].tolist() == sorted(table["score"], reverse=True)
    assert (frame["own"] + frame["memory"]).tolist() == pytest.approx(frame["score"].tolist())
    assert frame["is_chosen"].sum() == len(table.attrs["chosen"])


def test_a_folder_that_is_not_given_cannot_be_opened(
    opened: Opener, planted: Path, tmp_path: Path
) -> None:
    other = plant_run(tmp_path / "other", layers=2, heads=2)
    for wanted in (str(other), "other", f"{planted}/../{other.name}"):
        app = opened("--run", planted, query=wanted)
        choice = app.selectbox(key="run_name")
        assert choice.options == ["planted", "shipped study"]
        assert choice.value == "planted" and not app.exception


def test_runs_of_one_name_are_told_apart(opened: Opener, planted: Path, damaged: Path) -> None:
    twin = Path(shutil.move(damaged, damaged.parent / "planted"))
    app = opened("--run", planted, twin)
    assert app.selectbox(key="run_name").options == [str(planted), str(twin), "shipped study"]


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (None, "manifest.json"),
        ("{cut short", "damaged"),
        ("[]", "damaged"),
        ('{"schema": 99}', "schema"),
    ],
)
@pytest.mark.parametrize("page", PAGES)
def test_a_damaged_run_gives_a_message_and_the_choice_stays(
    opened: Opener, damaged: Path, page: str, manifest: str | None, said: str
) -> None:
    (damaged / "manifest.json").unlink()
    if manifest is not None:
        (damaged / "manifest.json").write_text(manifest)
    app = opened("--run", damaged, page=page)
    assert not app.exception
    assert said in errors(app)
    assert app.selectbox(key="run_name").value == "damaged"


def test_a_missing_folder_and_wrong_arguments_give_messages(opened: Opener, tmp_path: Path) -> None:
    app = opened("--run", tmp_path / "nowhere", "--colour", "blue")
    assert not app.exception
    assert "nowhere" in errors(app)
    assert "--colour" in words(app) and "--run FOLDER" in words(app)
    app = opened("--run")
    assert not app.exception and "--run FOLDER" in words(app)


@pytest.mark.parametrize(
    ("page", "name"),
    [
        (PAGES[0], "importance_before"),
        (PAGES[0], "importance_after"),
        (PAGES[0], "amplification"),
        (PAGES[1], "memory_usage"),
        (PAGES[1], "memory_slots"),
        (PAGES[2], "amplification"),
    ],
)
def test_a_damaged_table_gives_a_message_and_no_exception(
    opened: Opener, damaged: Path, page: str, name: str
) -> None:
    file = damaged / "tables" / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    app = opened("--run", damaged, page=page)
    assert not app.exception
    assert name in errors(app)
    file.unlink()
    app.run()
    assert not app.exception
    assert name in errors(app)


def test_a_table_without_its_columns_gives_a_message(opened: Opener, damaged: Path) -> None:
    for name in ("importance_before", "memory_usage", "amplification"):
        table = tables.load(damaged / "tables" / name)
        bare = table.drop(columns=["score" if "score" in table.columns else "coverage"])
        bare.attrs = table.attrs
        tables.save(bare, damaged / "tables" / name)
    for page in PAGES:
        app = opened("--run", damaged, page=page)
        assert not app.exception
        assert "column" in errors(app)


def test_a_base_model_alone_is_shown_with_a_word_on_what_is_missing(
    opened: Opener, damaged: Path
) -> None:
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["tables"] = ["importance_before"]
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    app = opened("--run", damaged)
    assert not app.exception
    assert not app.error
    assert any("importance_after" in info.value.replace("\\", "") for info in app.info)
    table = tables.load(damaged / "tables" / "importance_before")
    assert metrics(app)["Rank"] == f"1 of {len(table)}"


def test_an_unfinished_run_says_so(opened: Opener, damaged: Path) -> None:
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["status"] = "running"
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    app = opened("--run", damaged)
    assert not app.exception
    assert "running" in words(app)
