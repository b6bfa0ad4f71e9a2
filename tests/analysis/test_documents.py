from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from analysis import sources as reader
from analysis.documents import Documents, documents
from analysis.sources import line_runs, without_overlap
from kernels.errors import DataError, MidusError

CONTEXT = 16
pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals:UserWarning")


@pytest.fixture(scope="module")
def tokenizer():
    """A token a byte, after a start token 0; made for a context of 16."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {letter: i for i, letter in enumerate(alphabet, 1)}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", model_max_length=CONTEXT)


@pytest.fixture
def read(tokenizer):
    """`documents` with the tiny tokenizer."""
    return lambda data=None, **options: documents(data, tokenizer=tokenizer, **options)


def refused(read, data, **options):
    """The one line with which `data` is refused."""
    with pytest.raises(DataError) as caught:
        read(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- windows


def predicted(data: Documents) -> list[Counter]:
    """How often each token of each document is predicted with its loss counted, and its id."""
    counts = [Counter() for _ in data]
    for window in data.windows:
        item = data[window.document]
        assert 2 <= len(window.ids) <= data.context
        assert len(window.scored) == len(window.ids) - 1
        stop = window.start + len(window.ids)
        assert torch.equal(item.ids[window.start : stop], window.ids)
        for offset in torch.nonzero(window.scored).flatten().tolist():
            counts[window.document][window.start + offset + 1] += 1
    return counts


@pytest.mark.parametrize("context", [2, 3, 7, 16])
def test_every_token_but_the_first_is_predicted_once(read, context):
    texts = ["x" * n for n in (1, 2, 5, 6, 7, 14, 15, 16, 30, 31, 32, 100)]
    data = read(texts, context=context)
    for item, count in zip(data, predicted(data), strict=True):
        assert count == Counter(range(1, len(item.ids)))
    assert data.tokens == sum(map(len, texts))  # all but the start token


@pytest.mark.parametrize("context", [2, 5, 16])
@pytest.mark.parametrize("prompt", [0, 1, 4, 14, 15, 40])
@pytest.mark.parametrize("answer", [1, 3, 15, 16, 33])
def test_a_task_is_scored_on_its_answer_once(read, context, prompt, answer):
    data = read([{"prompt": "p" * prompt, "answer": "a" * answer}], context=context)
    (item,), (count,) = data.items, predicted(data)
    assert item.scored_from == prompt + 1
    assert count == Counter(range(prompt + 1, prompt + answer + 1))
    assert all(window.scored.any() for window in data.windows)


def test_an_answer_sees_as_much_prompt_as_the_context_holds(read):
    (window,) = read([{"prompt": "p" * 100, "answer": "abc"}]).windows
    assert len(window.ids) == CONTEXT
    assert window.scored.tolist() == [False] * (CONTEXT - 4) + [True] * 3


def test_task_ids_are_prompt_answer_and_foil(read, tokenizer):
    (item,) = read([{"id": "t", "prompt": "2+2=", "answer": " 4", "foil": " 55"}])
    assert item.id == "t"
    assert tokenizer.decode(item.ids[1:]) == "2+2= 4"
    assert tokenizer.decode(item.ids[item.scored_from :]) == " 4"
    assert tokenizer.decode(item.foil) == " 55"
    assert item.tokens == 2


def test_units_are_documents_or_windows(read):
    many = read([f"text number {i:02d}, longer than a window" for i in range(20)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert many.unit == "document"
        assert [w.unit for w in many.windows] == [w.document for w in many.windows]
    assert [u["tokens"] for u in many.units] == [item.tokens for item in many]
    two = many.subset(range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert two.unit == "document" and [w.unit for w in two.windows] == [
            w.document for w in two.windows
        ]
    few = many.subset([3])
    assert few.unit == "window"
    with pytest.warns(UserWarning, match="one document, so intervals are over its windows"):
        windows = few.windows
    assert [w.unit for w in windows] == list(range(len(windows)))
    assert [u["tokens"] for u in few.units] == [int(w.scored.sum()) for w in windows]
    assert sum(u["tokens"] for u in few.units) == few.tokens
    assert len({u["id"] for u in few.units}) == len(windows)


def test_halves_are_whole_documents_and_seeded(read):
    data = read([f"text {i}" for i in range(41)])
    first, second = data.halves(seed=1)
    names = [item.id for item in first] + [item.id for item in second]
    assert sorted(names) == sorted(item.id for item in data)
    assert (len(first), len(second)) == (20, 21)
    assert [i.id for i in data.halves(seed=1)[0]] == [i.id for i in first]
    assert [i.id for i in data.halves(seed=2)[0]] != [i.id for i in first]
    assert "one document" in refused(lambda d: d.subset([0]).halves(), data)
    assert "there is no 41" in refused(lambda d: d.subset([41]), data)


# ---------------------------------------------------------------- sources


def test_text_is_tokenized_whole_and_hashed(read, tokenizer, capfd):
    text = "naïve, 你好\n" * 50
    with warnings.catch_warnings(record=True) as caught:
        (item,) = read([text])
    assert not caught
    assert "longer than" not in capfd.readouterr().err
    assert tokenizer.decode(item.ids[1:]) == text
    assert item.text == text
    assert item.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "data",
    [[[1, 2, 3], [4, 5]], ((1, 2, 3), (4, 5)), [np.array([1, 2, 3]), torch.tensor([4, 5])]],
)
def test_token_ids(read, data):
    made = read(data)
    assert [item.ids.tolist() for item in made] == [[1, 2, 3], [4, 5]]
    assert all(item.ids.dtype == torch.long and item.text is None for item in made)


def test_token_ids_need_no_tokenizer():
    config = SimpleNamespace(vocab_size=10, max_position_embeddings=4096)
    made = documents(torch.tensor([[1, 2, 3], [4, 5, 6]]), model=SimpleNamespace(config=config))
    assert len(made) == 2
    assert made.context == 1024
    assert made.tokenizer is None
    assert "pass tokenizer=" in refused(documents, ["text"], model=SimpleNamespace(config=config))


def test_text_and_source_files(read, tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffhello\n", encoding="utf-8")
    (tmp_path / "b.py").write_text("raise SystemExit('never run')\n")
    assert read(tmp_path / "a.txt")[0].text == "hello\n"
    made = read(str(tmp_path / "b.py"))
    assert made.name == "b.py"
    assert made[0].id == "b.py"


def test_jsonl(read, tmp_path):
    rows = [{"text": "one\u2028line"}, {"id": 7, "text": "two"}, {"prompt": "p", "answer": "a"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "d.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    made = read(tmp_path / "d.jsonl")
    assert [item.id for item in made] == ["d.jsonl:1", "7", "d.jsonl:5"]
    assert [item.text for item in made] == ["one\u2028line", "two", "pa"]


def test_parquet(read, tmp_path):
    frame = pd.DataFrame({"id": ["x", "y"], "text": ["one", "two"], "other": [1, 2]})
    frame.to_parquet(tmp_path / "d.parquet")
    assert [(i.id, i.text) for i in read(tmp_path / "d.parquet")] == [("x", "one"), ("y", "two")]
    task = pd.DataFrame({"prompt": ["p", "q"], "answer": ["a", "b"], "foil": ["c", None]})
    task.to_parquet(tmp_path / "t.parquet")
    assert [item.foil is None for item in read(tmp_path / "t.parquet")] == [False, True]


def test_folder(read, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.txt").write_text("hidden")
    (tmp_path / "sub" / "b.md").write_text("bee")
    (tmp_path / "a.txt").write_text("aye")
    (tmp_path / "c.jsonl").write_text('{"text": "see"}\n')
    (tmp_path / "d.bin").write_bytes(b"\x00\xff\x00")
    with pytest.warns(
        UserWarning,
        match="1 file is no text.*d.bin is a .bin file.*left out",
    ):
        made = read(tmp_path)
    assert [item.id for item in made] == ["a.txt", "c.jsonl:1", "sub/b.md"]


def test_hugging_face_dataset(read, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "set"
    source.mkdir()
    for split, texts in {"train": ["a b c"], "test": ["one", "", "three", "four"]}.items():
        lines = [json.dumps({"text": text}) for text in texts]
        (source / f"{split}.jsonl").write_text("\n".join(lines))
    assert [item.text for item in read(f"hf:{source}")] == ["one", "three", "four"]
    assert len(read(f"hf:{source}", limit=2)) == 2
    assert [item.text for item in read(f"hf:{source}", split="train")] == ["a b c"]
    assert "could not be read" in refused(read, f"hf:{source}", split="other")
    assert "dataset's name" in refused(read, "hf:")


def test_documents_pass_through(read):
    data = read([f"text {i}" for i in range(5)])
    assert read(data) is data
    assert read(data, context=4).context == 4
    assert len(read(data, limit=2)) == 2
    small = SimpleNamespace(config=SimpleNamespace(vocab_size=20, max_position_embeddings=64))
    assert "the model's are 0 to 19" in refused(documents, data, model=small)
    short = SimpleNamespace(config=SimpleNamespace(vocab_size=999, max_position_embeddings=8))
    assert "longer than the model's 8" in refused(documents, data, model=short)
    assert "read already" in refused(read, data, split="test")


# ---------------------------------------------------------------- choice


def test_limit_is_a_fair_nested_sample_in_order(read):
    texts = [f"text {i}" for i in range(200)]
    chosen = {n: [int(item.id) for item in read(texts, limit=n)] for n in (20, 100, 500)}
    assert chosen[20] == sorted(chosen[20])
    assert set(chosen[20]) < set(chosen[100])
    assert chosen[500] == list(range(200))
    assert 70 < np.mean(chosen[100]) < 130  # not the first hundred
    assert len(read(texts, limit=20).items) == 20
    assert [int(i.id) for i in read(read(texts), limit=20)] == chosen[20]


def test_split_parts_documents_for_good(read):
    texts = [f"text {i}" for i in range(300)]
    train, test = (read(texts, split=s) for s in ("train", "test"))
    assert {i.id for i in train} | {i.id for i in test} == {str(i) for i in range(300)}
    assert len(train) + len(test) == 300
    assert 10 < len(test) < 60
    assert "no test documents" in refused(read, ["one text"], split="test")
    assert "must be" in refused(read, texts, split="dev")


def test_sha256_says_which_documents(read):
    first, again, other = read(["a b", "c"]), read(["a b", "c"], context=4), read(["a", "b c"])
    assert first.sha256 == again.sha256 != other.sha256


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "is empty"),
        ([""], "too short"),
        ([[1], []], "too short"),
        ([[1, 999]], "token id 999, the model's are 0 to 256"),
        ([[1, -1]], "token id -1"),
        ([[1.5, 2]], "holds 1.5"),
        ([[True, 2]], "holds True"),
        ([1, 2, 3], "document 0 is of type int"),
        (b"text", "got bytes"),
        (5, "got int"),
        ({"text": "x"}, "got dict"),
        ([{"body": 1}], 'no column "text".*it has body'),
        ([{"prompt": "x"}], 'no column "text", and no "prompt" with "answer"; it has prompt'),
        ([{"text": 3}], '"text" must be text, it is a int'),
        ([{"prompt": "p", "answer": ""}], "empty answer"),
        ([{"prompt": "p", "answer": "a", "foil": ""}], "empty foil"),
        (["\ud800 x"], "no valid Unicode"),
        ("heldot", "heldout, stdlib, packages"),
        ("x = 1\n" * 1000, "give it in a list"),
        ("nul\0byte", "no data at"),
    ],
)
def test_bad_data_is_one_clear_line(read, data, message):
    assert re.search(message, refused(read, data))


def test_bad_files_are_one_clear_line(read, tmp_path):
    def file(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    assert "line 3 is no JSON" in refused(read, file("a.jsonl", b'{"text": "x"}\n\n{"text": \n'))
    assert 'line 2 has no "text"' in refused(read, file("b.jsonl", b'{"text": "x"}\n{"t": 1}\n'))
    assert "line 1 is a list" in refused(read, file("c.jsonl", b"[1]\n"))
    assert "no UTF-8 text" in refused(read, file("d.txt", b"\xff\xfe\x00"))
    assert "binary file" in refused(read, file("e.txt", b"a\x00b"))
    assert "cannot be read as parquet" in refused(read, file("f.parquet", b"no parquet"))
    assert "too short" in refused(read, file("g.txt", b""))
    assert "is empty" in refused(read, file("h.jsonl", b"\n"))
    pd.DataFrame({"body": [1]}).to_parquet(tmp_path / "i.parquet")
    assert 'no column "text"' in refused(read, tmp_path / "i.parquet")
    (tmp_path / "empty").mkdir()
    assert "no readable text file" in refused(read, tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit must be a whole number of at least 1; got 0"),
        ({"limit": 2.5}, "got 2.5"),
        ({"context": 1}, "context must be a whole number of at least 2"),
        ({"context": 17}, "longer than the model's 16"),
    ],
)
def test_bad_options_are_one_clear_line(read, options, message):
    assert message in refused(read, ["some text"], **options)


def test_a_tokenizer_of_the_wrong_kind_is_refused(tokenizer):
    message = refused(documents, ["text"], tokenizer=tokenizer.backend_tokenizer)
    assert "must be a transformers tokenizer" in message
    with pytest.raises(MidusError, match="no model at 'nothing'"):
        documents(["text"], model="nothing")


def test_documents_with_nothing_to_predict_are_left_out_with_a_warning(read):
    with pytest.warns(UserWarning, match="1 of 3 documents have nothing to predict"):
        made = read(["one", "", "three"])
    assert [item.id for item in made] == ["0", "2"]


# ---------------------------------------------------------------- shipped data


def test_overlap_is_found_by_path_hash_and_run():
    block = "\n".join(f"line {i}" for i in range(8))
    held = {"held.py": f"a\n{block}\nb", "tiny.py": "x = 1"}
    files = {
        "run.py": "\n\n".join(f"    {line}" for line in block.splitlines()),  # blanks, indentation
        "seven.py": "\n".join(block.splitlines()[:7]),
        "equal.py": "x = 1",
        "held.py": "changed since",
        "free.py": "y = 2",
    }
    assert set(without_overlap(files, held)) == {"seven.py", "free.py"}
    assert len(line_runs(block)) == 1
    assert line_runs("short") == set()


def test_the_standard_library_leaves_out_what_is_held_out():
    held = reader.heldout()
    files = reader.standard_library()
    kept = without_overlap(files, held)
    assert 0 < len(kept) < len(files)
    assert not set(kept) & set(held)
    assert not any("site-packages" in path for path in files)


def test_damaged_shipped_texts_are_refused(tmp_path, monkeypatch):
    broken = tmp_path / "heldout.jsonl"
    broken.write_text(json.dumps({"id": "a.py", "sha256": "0" * 64, "text": "x"}) + "\n")
    monkeypatch.setattr(reader, "HELDOUT", broken)
    with pytest.raises(DataError, match="the hash of a.py differs"):
        reader.heldout()


def test_packages_part_train_from_test(read):
    train = reader._packages("train")
    test = reader._packages("test")
    assert {row.id for row in train}.isdisjoint(row.id for row in test)
    seen = set().union(*(line_runs(row.text) for row in test))
    assert all(seen.isdisjoint(line_runs(row.text)) for row in train)
    made = read("packages", split="test", limit=3)
    assert made.name == "packages (test)"
    assert all(item.id.split("/")[0] in reader.PACKAGES for item in made)


def test_with_no_arguments_pico_reads_its_held_out_text():
    made = documents()
    assert made.name == "heldout"
    assert made.context == 256
    assert {item.id: item.text for item in made} == reader.heldout()
    assert made.unit == "document"
    assert made.tokens == sum(len(item.ids) - 1 for item in made)
    assert sum(int(window.scored.sum()) for window in made.windows) == made.tokens
    assert made.tokenizer.decode(made[0].ids[1:]) == made[0].text
