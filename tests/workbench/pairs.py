"""Two processes that do the same in the same place at the same time, and what came of it.

Processes are forked from one that has everything imported: a pair takes seconds.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import multiprocessing
import os
import shutil
import string
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

SECONDS = 300
CHANGING = {"created", "finished", "command", "versions", "seconds", "sha256"}  # of a manifest
MEASURED = {"seconds", "pass_seconds"}  # of a table's attrs


# ---------------------------------------------------------------- processes


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.workbench.warm"])
    return context


def _child(work: Callable[[], None], log: Path, delay: float) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    time.sleep(delay)
    code = 0
    try:
        work()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()  # which multiprocessing leaves out
    os._exit(code)


def together(
    works: Sequence[Callable[[], None]], folder: Path, delays: Sequence[float]
) -> list[tuple[int | None, str]]:
    """Exit code and output of a process a work, each after its delay in seconds."""
    logs = [folder / f"output-{number}.txt" for number in range(len(delays))]
    started = [
        _context().Process(target=_child, args=(work, log, delay))
        for work, log, delay in zip(works, logs, delays, strict=True)
    ]
    for process in started:
        process.start()
    end = time.monotonic() + SECONDS
    for process in started:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [
        (process.exitcode, log.read_text(errors="replace"))
        for process, log in zip(started, logs, strict=True)
    ]


# ---------------------------------------------------------------- what they do


def midus(*words: str) -> None:
    """A command of midus, as its own process would run it."""
    from workbench.cli import app

    sys.argv = ["midus", *words]
    app(list(words))


def swept(model: str, texts: str, place: str) -> None:
    """A sweep with a checkpoint, by Python."""
    from analysis import documents, head_importance
    from midus_model import load

    loaded = load(model)
    read = documents(texts, model=model)
    table = _or_refused(partial(head_importance, loaded, read, checkpoint=f"{place}.sums"))
    Path(f"{place}.{os.getpid()}.json").write_text(table.drop(columns=[]).to_json())


def trained(model: str, texts: str, place: str) -> None:
    """A training by Python, without a run folder."""
    from analysis import documents
    from midus_model import load
    from workbench.training.train import train

    loaded, read = load(model), documents(texts, model=model)
    given = {"steps": 30, "save_every": 1, "batch_size": 2, "train": "all"}
    _or_refused(partial(train, loaded, read, place, **given))


def converted(model: str, _: str, place: str) -> None:
    """A checkpoint of a package, converted into the cache by whoever needs it first."""
    from midus_model import packaged

    os.environ["MIDUS_CACHE"] = place
    known = packaged.Packaged("Own-1B", "own-package", "1.0", "own_package", 64, "none")
    packaged.PACKAGED["own"] = known
    packaged.Packaged.file = lambda self: Path(model) / "model.safetensors"  # type: ignore
    packaged.find_spec = lambda _: True  # type: ignore
    packaged._write = lambda _, file, folder: shutil.copytree(  # type: ignore
        file.parent, folder, dirs_exist_ok=True
    )
    folder = packaged.packaged_folder("own")
    assert (folder / "model.safetensors").is_file()


def _or_refused(work: Callable[[], Any]) -> Any:
    from kernels.errors import MidusError

    try:
        return work()
    except MidusError as error:
        print(f"midus: {error}")
        raise SystemExit(2) from error


@dataclass(frozen=True)
class Case:
    """What both processes do in a folder of their own, in which MODEL, GROWN and TEXTS lie.

    before: commands that were run there earlier, one after another; other: what the second does
    where that is not the same.
    """

    words: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    python: Callable[[str, str, str], None] | None = None
    other: tuple[str, ...] = ()

    def works(self) -> list[Callable[[], None]]:
        if self.python is not None:
            return [partial(self.python, "model", "texts.jsonl", "out")] * 2
        return [partial(midus, *self.words), partial(midus, *(self.other or self.words))]


def _case(line: str, *before: str) -> Case:
    return Case(tuple(line.split()), tuple(tuple(words.split()) for words in before))


SIZES = ("--num-keys", "4", "--top-k", "2", "--latent-dim", "4")


def _two(line: str, what: str, other: str, *before: str) -> Case:
    """The same line but for a part of it."""
    return replace(_case(line, *before), other=tuple(line.replace(what, other).split()))


_TRAIN = "train grown --data texts.jsonl --steps 30 --save-every 1 --batch-size 2 -o out"
CASES = {
    "importance": _case("importance model --data texts.jsonl -o out"),
    "importance --after": _case("importance model --after grown --data texts.jsonl -o out"),
    "rank": _case("rank model --data texts.jsonl --top 2 -o out"),
    "rank --overwrite": _case(
        "rank model --data texts.jsonl --top 2 -o out --overwrite",
        "rank model --data texts.jsonl --top 1 -o out",
    ),
    "roles": _case("roles model --data texts.jsonl -o out"),
    "memory": _case("memory grown --data texts.jsonl -o out"),
    "memory --overwrite": _case(
        "memory grown --data texts.jsonl -o out --overwrite",
        "memory grown --data texts.jsonl --limit 3 -o out",
    ),
    "costs": _case("costs grown --against model -o out"),
    "doctor": _case("doctor grown --data texts.jsonl --no-timing -o out"),
    "amplify --save": _case(
        "amplify model --heads 0:1 --gain 1.5 --data texts.jsonl -o out --save louder"
    ),
    "amplify --overwrite": _case(
        "amplify model --heads 0:1 --gain 1.5 --data texts.jsonl -o out --save louder --overwrite",
        "amplify model --heads 0:0 --gain 2 --data texts.jsonl -o out --save louder",
    ),
    "upscale": _case("upscale model -o out --num-keys 4 --top-k 2 --latent-dim 4"),
    "upscale --overwrite": _case(
        "upscale model -o out --num-keys 4 --top-k 2 --latent-dim 4 --overwrite",
        "upscale model -o out --num-keys 3 --top-k 2 --latent-dim 4",
    ),
    "train": _case(_TRAIN),
    "train --overwrite": _case(f"{_TRAIN} --overwrite", _TRAIN.replace("--steps 30", "--steps 2")),
    "figures": _case("figures out --format svg", "importance model --data texts.jsonl -o out"),
    "two trainings": _two(f"{_TRAIN} --lr 1e-3", "1e-3", "3e-3"),
    "two trainings --overwrite": _two(f"{_TRAIN} --lr 1e-3 --overwrite", "1e-3", "3e-3", _TRAIN),
    "two importances --overwrite": _two(
        "importance model --data texts.jsonl --limit 9 -o out --overwrite", "9", "17"
    ),
    "two upscalings": _two(
        "upscale model -o out --num-keys 4 --top-k 2 --latent-dim 4", "dim 4", "dim 5"
    ),
    "two memories": _two("memory grown --data texts.jsonl --limit 9 -o out", "9", "17"),
    "sweep by Python": Case((), python=swept),
    "training by Python": Case((), python=trained),
    "conversion": Case((), python=converted),
}


def made(folder: Path) -> Path:
    """MODEL, TEXTS and GROWN: a tiny random Llama, texts of its letters, and it with memory."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=54, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    vocabulary = {token: i for i, token in enumerate(["?", " ", *string.ascii_letters])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?").save_pretrained(
        folder / "model"
    )
    rows = [
        {"text": "the quick brown fox jumps over the lazy dog " * (2 + i % 3)} for i in range(24)
    ]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _done(partial(midus, *CASES["upscale"].words[:2], "-o", "grown", *SIZES), folder)
    return folder


def _done(work: Callable[[], None], folder: Path) -> float:
    """Work done alone, and its seconds."""
    begun = time.monotonic()
    ((code, output),) = together([partial(_in, folder, work)], folder.parent, [0.0])
    assert code == 0, output
    return time.monotonic() - begun


def _in(folder: Path, work: Callable[[], None]) -> None:
    os.chdir(folder)
    work()


# ---------------------------------------------------------------- what came of it


class Pairs:
    """Cases in copies of one prepared folder, each compared with the same done alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "made").mkdir()
        self.made = made(folder / "made")
        self.known: dict[tuple[str, int], tuple[dict[str, str], float]] = {}

    def prepared(self, name: str, place: Path) -> Path:
        template = self.folder / "before" / name.replace(" ", "-")
        if not template.exists():
            shutil.copytree(self.made, template)
            for words in CASES[name].before:
                _done(partial(midus, *words), template)
        shutil.copytree(template, place)
        return place

    def alone(self, name: str, which: int = 0) -> tuple[dict[str, str], float]:
        """What a process of the case leaves when nothing disturbs it, and how long it takes."""
        which *= bool(CASES[name].other)
        if (name, which) not in self.known:
            at = self.folder / "alone" / f"{name.replace(' ', '-')}-{which}"
            place = self.prepared(name, at)
            seconds = _done(CASES[name].works()[which], place)
            self.known[name, which] = digest(place), seconds
        return self.known[name, which]

    def wrong(self, name: str, offset: float, number: int) -> list[str]:
        """What is wrong after a pair, the second process `offset` of the time later."""
        seconds = self.alone(name)[1]
        at = self.folder / "pairs" / str(number)
        at.mkdir(parents=True)
        place = self.prepared(name, at / "place")
        delays = [0.0, offset * seconds] if number % 2 else [offset * seconds, 0.0]
        ended = together([partial(_in, place, work) for work in CASES[name].works()], at, delays)
        found = [problem for end in ended for problem in _said_wrong(*end)]
        left = digest(place)
        found += [f"{path} is left" for path in left if _is_leftover(path)]
        # Of two that worked one after the other the result is either's, whole.
        results = [self.alone(name, i)[0] for i, (code, _) in enumerate(ended) if code == 0]
        if results:
            found += min((_differing(left, result) for result in results), key=len)
        else:
            found.append("neither process did its work")
        shutil.rmtree(at, ignore_errors=True)
        return found


def _differing(left: dict[str, str], expected: dict[str, str]) -> list[str]:
    return [
        *(f"{path} is another" for path in expected if left.get(path, "") != expected[path]),
        *(f"{path} is more" for path in left if path not in expected and not _is_leftover(path)),
    ]


def _said_wrong(code: int | None, output: str) -> list[str]:
    """A process must do its work, or say in one line who does it."""
    if code == 0:
        return ["a traceback"] if "Traceback" in output else []
    lines = [line for line in output.splitlines() if line.startswith("midus: ")]
    own = [line for line in lines if not line.startswith("midus: note:")]
    told = ("is being written by process", " holds ", "exists already")
    if code != 2 or "Traceback" in output or len(own) != 1 or not any(t in own[0] for t in told):
        return [f"exit {code}: {output[-300:]}"]
    return []


def _is_leftover(path: str) -> bool:
    return any(part.startswith(".") or part.endswith((".old", ".tmp")) for part in path.split("/"))


def digest(folder: Path) -> dict[str, str]:
    """What lies in a folder, by path, so far as the same work gives the same."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or path.name == "log.jsonl" or "checkpoints" in relative.parts:
            continue
        name = relative.as_posix()
        if path.suffix == ".json" and path.name.split(".")[-2].isdigit():
            name = "out.PID.json"  # what each process of the pair found
        found[name] = hashlib.sha256(_content(path)).hexdigest()[:16]
    return found


def _content(path: Path) -> bytes:
    if path.suffix == ".parquet":
        from analysis import tables

        try:
            table = tables.load(path)
        except Exception as error:
            return repr(error).encode()
        attrs = {key: value for key, value in table.attrs.items() if key not in MEASURED}
        return (table.to_json() + json.dumps(attrs, sort_keys=True, default=str)).encode()
    if path.name == "manifest.json":
        known = json.loads(path.read_text())
        known = {key: value for key, value in known.items() if key not in CHANGING}
        for model in known.get("made", {}).values():  # size, time and hash of every file
            model |= {name: [size, digest] for name, (size, _, digest) in model.items()}
        return json.dumps(known, sort_keys=True).encode()
    if path.suffix == ".json" and path.with_suffix(".parquet").exists():
        return b"beside its table"
    return path.read_bytes()
