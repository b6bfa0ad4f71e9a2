"""The explorer, page by page without a browser: no exception, and the numbers of the tables."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from streamlit.testing.v1 import AppTest

from analysis import amplify, next_tokens, statistics, tables
from apps.parts import access, live
from apps.parts import tables as shared
from kernels.errors import ModelError
from midus_model import SHIPPED
from midus_model.placement import devices
from tests.apps.planted import plant_run

APP = Path(__file__).parents[2] / "apps" / "main.py"
STUDY = Path(__file__).parents[2] / "workbench" / "study"
HEADS, MEMORY = "views/heads.py", "views/memory.py"
OVERVIEW = "views/overview.py"
PAGES = (
    OVERVIEW, HEADS, "views/choose.py", "views/amplify.py", MEMORY, "views/compare.py",
    "views/report.py",
)  # fmt: skip

Opener = Callable[..., AppTest]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_run(tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture
def damaged(planted: Path, tmp_path: Path) -> Path:
    """A copy of the planted run for a test to damage."""
    return Path(shutil.copytree(planted, tmp_path / "damaged"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Opener:
    """Opens the app as `streamlit run apps/explorer.py -- arguments`, on a page."""

    def start(*arguments: object, page: str = HEADS, **query: str) -> AppTest:
        line = [str(APP), "--runs", str(tmp_path / "workspace"), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        app = AppTest.from_file(str(APP), default_timeout=120)
        for name, value in query.items():
            app.query_params[name] = value
        app.run()
        return app if page == OVERVIEW else app.switch_page(page).run()

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
    if page in (OVERVIEW, HEADS, MEMORY):
        assert any(expander.label == "How is this computed" for expander in app.expander)
    if page == HEADS:
        said = words(app)
        assert "data planted, 24 documents" in said and "small-midus" in said
        assert "baseline mean" in said and "metric loss" in said


@pytest.mark.parametrize("page", PAGES)
def test_the_shipped_study_is_what_opens_by_itself(opened: Opener, page: str) -> None:
    app = opened(page=page)
    assert "shipped study" in "\n".join(text.value for text in app.sidebar.markdown)
    assert not app.exception and not app.error and not app.warning


def test_a_link_to_a_run_that_is_not_there_says_so_where_nothing_can_be_chosen(
    opened: Opener,
) -> None:
    app = opened(page=OVERVIEW, run_name="elsewhere")
    assert not app.exception and not app.error
    assert "the run elsewhere, which is not there" in words(app)


@pytest.mark.parametrize("name", ["lr3__seed0", "_early", "a run; <b>", "ü"])
def test_a_run_may_be_called_anything(opened: Opener, planted: Path, name: str) -> None:
    twin = Path(shutil.copytree(planted, planted.parent / name, dirs_exist_ok=True))
    for page in PAGES:
        app = opened("--run", twin, page=page)
        assert not app.exception and not app.error, page
        assert app.selectbox(key="run_name").value == name


def test_a_run_without_heads_is_compared_by_what_it_has(opened: Opener, damaged: Path) -> None:
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["tables"] = ["memory_usage"]
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    app = opened("--run", damaged, page="views/compare.py")
    app.selectbox(key="with").set_value("shipped study").run()
    assert not app.exception and not app.error
    assert "measured no heads" in "\n".join(info.value for info in app.info)
    assert any(heading.value == "Quality against cost" for heading in app.subheader)


def test_a_page_does_not_change_the_tables_that_all_share(opened: Opener, planted: Path) -> None:
    opened("--run", planted, page=MEMORY)
    run = access.open_run("planted", planted)
    block = int(tables.load(planted / "tables" / "memory_usage")["layer"].min())
    slots = shared.head_slots(run, block, 0)
    assert slots is shared.head_slots(run, block, 0)
    assert slots.attrs == tables.load(planted / "tables" / "memory_slots").attrs


def show(app: AppTest, view: str) -> AppTest:
    """The heads page's view of that name."""
    app.session_state["show"] = view
    return app.run()


def test_importance_numbers_are_the_tables(opened: Opener, planted: Path) -> None:
    app = show(opened("--run", planted), "table")
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


def test_a_first_order_table_shows_how_far_it_agrees(opened: Opener, damaged: Path) -> None:
    """On figures, below the table, and beside a ranking, with what a screen left out."""
    found = {
        "signed": True, "spearman": 0.31, "spearman_low": -0.1, "spearman_high": 0.6,
        "sign": 0.7, "sign_low": 0.5, "sign_high": 0.9, "heads": 12, "heads_of": 24, "windows": 4,
        "windows_of": 96,
    }  # fmt: skip
    table = tables.load(damaged / "tables" / "importance_before")
    table.attrs |= {"method": "relp", "agreement": found}
    tables.save(table, damaged / "tables" / "importance_before")
    ranking = table.sort_values("score", ascending=False, ignore_index=True)
    ranking = ranking.assign(p_top=0.5, exact=0, tied_with_next=False)
    ranking.attrs = table.attrs | {
        "table": "ranking", "top": 4, "confidence": 0.95, "stopped": "documents",
        "evaluations": 0, "conditional": "on a screen: 7 heads were not ablated",
    }  # fmt: skip
    tables.save(ranking, damaged / "tables" / "ranking")
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["tables"] = ["importance_before", "ranking"]
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    said = "rank correlation with effects 0.31 [-0.10 to 0.60], same sign 70% [50% to 90%]"
    for view in ("importance", "curves", "table"):
        app = show(opened("--run", damaged), view)
        assert not app.exception and not app.error
        assert said in words(app), view
    app = opened("--run", damaged, page="views/choose.py")  # whose model is not at hand
    assert not app.exception
    assert said in words(app) and "7 heads were not ablated" in words(app)


def test_the_choices_name_a_head(opened: Opener, planted: Path) -> None:
    table = tables.load(planted / "tables" / "importance_after")
    row = table[(table["kind"] == "memory") & (table["head"] == 2)].iloc[0]
    block = f"{row['layer']}: + memory (from {row['source_layer']})"
    app = opened("--run", planted)
    app.selectbox(key="block").set_value(block).run()
    app.selectbox(key="head").set_value("2").run()
    assert not app.exception and not app.error
    assert metrics(app)["Score (nats/token)"] == f"{row['score']:.4f}"
    assert f"+ memory (from {row['source_layer']}), head 2" in words(app)


def test_memory_numbers_are_the_tables(opened: Opener, planted: Path) -> None:
    app = opened("--run", planted, page=MEMORY)
    usage = tables.load(planted / "tables" / "memory_usage")
    slots = tables.load(planted / "tables" / "memory_slots")
    block = int(usage["layer"].max())
    app.selectbox(key="block").set_value(app.selectbox(key="block").options[-1]).run()
    app.selectbox(key="head").set_value("3").run()
    assert not app.exception and not app.error
    row = usage[(usage["layer"] == block) & (usage["head"] == 3)].iloc[0]
    shown = metrics(app)
    assert shown["Coverage"] == f"{100 * row['coverage']:.1f} %"
    assert shown["Dead slots"] == f"{row['dead']} of {row['slots']}"
    assert shown["Effective slots"] == f"{row['effective_slots']:,.0f}"
    held = slots[(slots["block"] == block) & (slots["head"] == 3)]
    listed = app.dataframe[0].value
    assert listed["hits"].tolist() == sorted(held["hits"], reverse=True)
    assert listed["slot"].iloc[0] == held.loc[held["hits"].idxmax(), "slot"]
    assert app.number_input(key="slot").value == listed["slot"].iloc[0]


def test_amplification_numbers_are_the_tables(opened: Opener, planted: Path) -> None:
    app = show(opened("--run", planted), "change")
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
        app = opened("--run", planted, page=OVERVIEW, run_name=wanted)
        choice = app.selectbox(key="run_name")
        assert choice.options == ["planted", "shipped study"]
        assert choice.value == "planted" and not app.exception
        assert any("not there" in warning.value for warning in app.warning)


def test_a_link_to_what_is_not_there_says_so_and_the_page_goes_on(
    opened: Opener, planted: Path
) -> None:
    app = opened("--run", planted, page=OVERVIEW)
    app.query_params["head"] = "99"
    app.switch_page(HEADS).run()
    assert not app.exception and not app.error and metrics(app)["Rank"].endswith("of 24")
    assert "The link asks for head 99" in words(app)


def test_a_model_that_was_not_given_is_not_loaded(
    opened: Opener, damaged: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(SHIPPED["pico"], outside)
    manifest = json.loads((damaged / "manifest.json").read_text())
    for wanted in (str(outside), f"../{outside.name}"):
        manifest["models"] = {"before": wanted, "after": wanted}
        (damaged / "manifest.json").write_text(json.dumps(manifest))
        app = opened("--run", damaged)
        assert not app.exception and not app.error
        assert any("was not given to the explorer" in info.value for info in app.info)


def test_no_table_is_read_from_outside(opened: Opener, damaged: Path, tmp_path: Path) -> None:
    outside = plant_run(tmp_path / "outside")
    table = damaged / "tables" / "memory_usage.parquet"
    table.unlink()
    table.symlink_to(outside / "tables" / "memory_usage.parquet")
    app = opened("--run", damaged, page=MEMORY)
    assert not app.exception and "outside the folders given" in errors(app)
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["tables"].append("../../outside/tables/ranking")
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    app = opened("--run", damaged)
    assert not app.exception and "which is no name" in errors(app)


@pytest.mark.parametrize("name", ["--output=/tmp", "-x/y", "a b/c", "../x/y", "/etc", "x/y/z"])
def test_what_is_no_model_s_name_reaches_no_command(tmp_path: Path, name: str) -> None:
    given, _ = access.given_folders(["--runs", str(tmp_path)])
    with pytest.raises(ModelError):
        given.check_model(name)
    assert given.check_model("owner/name-1.5B") == "owner/name-1.5B"


def test_another_model_s_weights_are_not_shown_what_was_computed_before(
    opened: Opener, damaged: Path
) -> None:
    folder = damaged / "models" / "own"
    shutil.copytree(SHIPPED["pico"], folder)
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["models"] = {"before": "models/own"}
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    app = opened("--run", damaged, page="views/amplify.py")
    before = metrics(app)["Loss on this text (nats/token)"]
    amplify("pico", [(0, 0)], 0.0).save(folder, overwrite=True)
    app.run()
    assert not app.exception and not app.error
    assert metrics(app)["Loss on this text (nats/token)"] != before


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "supported are"),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, "no causal language model"),
        (None, "holds no config.json"),
    ],
)
def test_a_model_that_is_no_language_model_is_refused_in_words(
    opened: Opener, damaged: Path, config: dict | None, said: str
) -> None:
    folder = damaged / "models" / "other"
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["models"] = {"before": "models/other", "after": "models/other"}
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    app = opened("--run", damaged)
    assert not app.exception and said in errors(app)
    assert metrics(app)["Rank"]  # what the tables hold is shown all the same


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
@pytest.mark.parametrize("page", [OVERVIEW, HEADS, "views/report.py"])
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
        (OVERVIEW, "amplification"),
        (HEADS, "importance_before"),
        (HEADS, "importance_after"),
        (MEMORY, "memory_usage"),
        (MEMORY, "memory_slots"),
        ("views/report.py", "amplification"),
    ],
)
def test_a_damaged_table_gives_a_message_and_no_exception(
    opened: Opener, damaged: Path, page: str, name: str
) -> None:
    file = damaged / "tables" / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    app = opened("--run", damaged, page=page)
    assert not app.exception
    if page != "views/report.py":  # whose first figure is another one
        assert name in errors(app)
    file.unlink()
    app.run()
    assert not app.exception


def test_a_table_without_its_columns_gives_a_message(opened: Opener, damaged: Path) -> None:
    for name in ("importance_before", "memory_usage", "amplification"):
        table = tables.load(damaged / "tables" / name)
        bare = table.drop(columns=["score" if "score" in table.columns else "coverage"])
        bare.attrs = table.attrs
        tables.save(bare, damaged / "tables" / name)
    for page in (OVERVIEW, HEADS, MEMORY):
        app = opened("--run", damaged, page=page)
        assert not app.exception
        assert errors(app)


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


def test_gates_change_the_prediction_as_amplify_does(opened: Opener) -> None:
    app = opened(page="views/amplify.py")
    name = app.multiselect(key="heads").value[0]
    layer, head = map(int, name.split()[0].split("."))
    before = metrics(app)
    app.slider(key=f"gain_{layer}_{head}").set_value(0.0).run()
    assert not app.exception and not app.error
    table = next_tokens("pico-midus", app.text_area(key="text").value, {(layer, head): 0.0})
    shown = metrics(app)
    loss = "Loss on this text (nats/token)"
    assert shown[loss] == f"{table.attrs['loss_after']:.3f}" != before[loss]
    best = table.loc[table["probability_after"].idxmax(), "token"]
    assert shown["Likeliest next token"] == repr(best)


def test_a_text_beyond_the_context_is_refused_with_a_word_on_what_to_do(opened: Opener) -> None:
    app = opened(page="views/amplify.py")
    app.text_area(key="text").set_value("a b c d e f g h " * 400).run()
    assert not app.exception
    assert "give a shorter text" in errors(app)


def test_jobs_are_started_where_and_as_precisely_as_the_form_says(
    opened: Opener, planted: Path
) -> None:
    app = opened("--run", planted, page="views/choose.py")
    if not [box for box in app.selectbox if box.key == "form_device"]:
        app = app.toggle[0].set_value(True).run()
    line = next(code.value for code in app.code if code.value.startswith("midus rank"))
    assert "--device" not in line and "--dtype" not in line
    app.selectbox(key="form_device").set_value("cpu")
    app = app.selectbox(key="form_dtype").set_value("bfloat16").run()
    line = next(code.value for code in app.code if code.value.startswith("midus rank"))
    assert "--device cpu --dtype bfloat16" in line and not app.exception


def test_pages_run_models_where_the_sidebar_says(opened: Opener) -> None:
    app = opened(page="views/amplify.py")
    app = app.selectbox(key="pages_dtype").set_value("bfloat16").run()
    assert not app.exception and not app.error
    placed = [model for model in live._models if model.dtype == "bfloat16"]
    assert placed and {p.dtype for p in live._models[placed[-1]].parameters()} == {torch.bfloat16}
    app = app.selectbox(key="pages_device").set_value("mps").run()
    if "mps" not in devices():
        assert "'mps'; this machine has cpu" in errors(app) and not app.exception
