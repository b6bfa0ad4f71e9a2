"""A model folder runs no code, fetches none, and is never unpickled, whatever it holds."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from analysis import documents
from kernels.errors import DataError, ModelError, UnsupportedArchitecture
from midus_model import PACKAGED, SHIPPED, load, load_config, load_tokenizer, upscale
from tests.midus_model.planted import PLANTS, TAKEN, Runs, change, plant
from tests.models import tiny, tokens

TEXT = ["def f(x):\n    return x\n" * 4] * 2


@pytest.fixture(autouse=True)
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is answered yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))


def line_of(call: Any) -> str:
    """The one line of the ModelError that `call` raises."""
    with warnings.catch_warnings(), pytest.raises(ModelError) as caught:
        warnings.simplefilter("ignore")
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- code


@pytest.mark.parametrize("which", PLANTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_code_of_a_folder_is_run(which: str, tmp_path: Path) -> None:
    place, mark = plant(tmp_path, which)
    read: list[Any] = []
    for call in (
        lambda: load(place),
        lambda: load_config(place),
        lambda: load_tokenizer(place),
        lambda: documents(TEXT, model=place),
        lambda: documents(TEXT, model="pico", tokenizer=place),
    ):
        try:
            read.append(call())
        except ModelError as error:
            assert "never run" in str(error) and "\n" not in str(error), error
        assert not mark.exists()
    assert len(read) == 5 if which in TAKEN else len(read) < 5
    assert sys.stdin.readline() == "y\n"  # nobody asked


@torch.no_grad()
def test_a_model_with_code_is_read_by_transformers_own_class_and_said_to_be(tmp_path: Path) -> None:
    place, _ = plant(tmp_path, "model")
    with pytest.warns(UserWarning, match=r"evil\.Config, evil\.Model.* never run.* llama"):
        model = load(place)
    assert type(model).__module__.startswith("transformers.")
    assert torch.equal(model(tokens()).logits, load("pico")(tokens()).logits)
    place, _ = plant(tmp_path, "tokenizer")
    with pytest.warns(UserWarning, match=r"evil\.Tokenizer.* never run"):
        tokenizer = load_tokenizer(place)
    assert tokenizer(TEXT).input_ids == load_tokenizer("pico")(TEXT).input_ids
    assert "evil.Tokenizer" in line_of(lambda: load_tokenizer(plant(tmp_path, "all")[0]))
    with pytest.raises(UnsupportedArchitecture, match="'evil'.*never run"):
        load(plant(tmp_path, "config")[0])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", ["midus", "llama-pro"])
def test_what_is_saved_of_it_asks_for_no_code(method: str, tmp_path: Path) -> None:
    """Or whoever trusts our copy would run what its base named."""
    place, _ = plant(tmp_path, "elsewhere")
    change(place / "tokenizer_config.json", **PLANTS["tokenizer"][1])
    small = {"num_keys": 4, "top_k": 3, "latent_dim": 8} if method == "midus" else {}
    new = upscale(load(place), method, **small)
    new.save_pretrained(tmp_path / "new")
    load_tokenizer(place).save_pretrained(tmp_path / "new")
    for file in (tmp_path / "new").glob("*.json"):
        assert "auto_map" not in file.read_text() and "evil" not in file.read_text(), file


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_up_scaled_model_that_carries_code(tmp_path: Path) -> None:
    upscale(tiny("llama"), num_keys=4, top_k=3, latent_dim=8).save_pretrained(tmp_path / "new")
    load_tokenizer("pico").save_pretrained(tmp_path / "new")
    place, mark = plant(tmp_path, "unknown tokenizer", tmp_path / "new")
    change(place / "config.json", auto_map={"AutoConfig": "evil.Config"})
    assert type(load(place)).__name__ == "MidusForCausalLM"
    assert "evil.Tokenizer" in line_of(lambda: load_tokenizer(place))
    assert not mark.exists()


# ---------------------------------------------------------------- configurations

QUANTISERS = ("gptq", "awq", "hqq", "aqlm", "eetq", "fp8", "mxfp4", "torchao", "gguf", "unknown")
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"_attn_implementation": "kernels-community/flash-attn2"}, "'kernels-community/flash-attn2'"),
    ({"attn_implementation": "owner/kernel@main:attend"}, "'owner/kernel@main:attend'"),
    ({"_attn_implementation_internal": "owner/kernel"}, "'owner/kernel'"),
    ({"attn_implementation": {"": "owner/kernel"}}, "'owner/kernel'"),
    ({"text_config": {"attn_implementation": "owner/kernel"}}, "'owner/kernel'"),
    ({"layers": [{"deep": {"_attn_implementation": "owner/kernel"}}]}, "'owner/kernel'"),
    ({"attn_implementation": "paged|sdpa"}, "'paged|sdpa'"),
    ({"attn_implementation": "nonsense"}, "'nonsense'"),
    ({"attn_implementation": 5}, "5"),
    ({"_experts_implementation": "owner/kernel"}, "'owner/kernel'"),
    *(({"quantization_config": {"quant_method": one}}, one) for one in QUANTISERS),
    ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "gptq"),
    ({"quantization_config": {}}, "quantised"),
    ({"quantization_config": 5}, "quantised"),
    ({"transformers_weights": "adapter_model.bin"}, "'adapter_model.bin'"),
    ({"transformers_weights": "../other.safetensors"}, "'../other.safetensors'"),
    ({"transformers_weights": 5}, "5"),
    ({"torch_dtype": "load"}, "'load'"),
    ({"dtype": "os.system"}, "'os.system'"),
    ({"dtype": "int8"}, "'int8'"),
    ({"dtype": {"": "float32"}}, "float32"),
    ({"architectures": [5]}, "ForCausalLM"),
    ({"architectures": {"a": "b"}}, "ForCausalLM"),
    ({"auto_map": 5}, "auto_map"),
    ({"auto_map": {"AutoConfig": ["evil.C"]}}, "auto_map"),
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED["pico"], tmp_path / "copy"))


@pytest.mark.parametrize(("changes", "says"), REFUSED, ids=[str(one) for one, _ in REFUSED])
def test_a_configuration_that_asks_for_more_is_one_line(
    changes: dict[str, Any], says: str, copy: Path
) -> None:
    change(copy / "config.json", **changes)
    for call in (load, load_config):
        line = line_of(lambda call=call: call(copy))
        assert says in line and str(copy) in line and len(line) < 400, line


def test_what_may_be_asked_for_is_read(copy: Path) -> None:
    change(copy / "config.json", attn_implementation="eager", quantization_config=None)
    assert load(copy).config._attn_implementation == "eager"
    change(copy / "config.json", architectures=["os.system", "XForCausalLM"], dtype="bfloat16")
    assert load(copy).dtype == torch.bfloat16  # the class is transformers' for the model type


def test_kernels_named_for_generation_are_not_fetched(copy: Path) -> None:
    changes = {"_attn_implementation": "owner/kernel", "attn_implementation": "owner/kernel"}
    change(copy / "generation_config.json", **changes)
    assert load(copy).config._attn_implementation == "sdpa"


def test_an_adapter_does_not_name_modules_to_import(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model

    monkeypatch.syspath_prepend(tmp_path)
    mark = tmp_path / "imported"
    (tmp_path / "evil_core.py").write_text(f"open({str(mark)!r}, 'w')")
    adapted = get_peft_model(load(copy), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    library = {"base_model_class": "Model", "parent_library": "evil_core"}
    change(config, auto_mapping=library, base_model_name_or_path=str(copy))
    load(tmp_path / "adapter")
    change(config, megatron_config={"a": 1}, megatron_core="evil_core")
    assert "Megatron" in line_of(lambda: load(tmp_path / "adapter"))
    assert not mark.exists()


# ---------------------------------------------------------------- weights

INDEXES: list[tuple[Any, str]] = [
    ("/etc/weights.safetensors", "'/etc/weights.safetensors'"),
    ("../beside/model.safetensors", "'../beside/model.safetensors'"),
    ("inside/model.safetensors", "'inside/model.safetensors'"),
    ("..\\model.safetensors", "model.safetensors"),
    ("pytorch_model.bin", "'pytorch_model.bin'"),
    ("absent.safetensors", "'absent.safetensors'"),
    ("", "''"),
    (5, "5"),
]


def sharded(folder: Path) -> Path:
    """pico in two files and an index."""
    shutil.copytree(SHIPPED["pico"], folder)
    load("pico").save_pretrained(folder, max_shard_size="4MB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize(("file", "says"), INDEXES, ids=[str(one) for one, _ in INDEXES])
def test_an_index_names_files_of_its_own_folder(file: Any, says: str, copy: Path) -> None:
    for other in (copy.parent / "beside", copy / "inside"):
        other.mkdir()
        shutil.copyfile(copy / "model.safetensors", other / "model.safetensors")
    (copy / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": file}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert says in line_of(lambda: load(copy))


@pytest.mark.parametrize("index", [[], 5, {}, {"weight_map": []}, {"weight_map": {"a": "b"}}, None])
def test_an_index_that_is_none(index: Any, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    text = json.dumps(index) if index is not None else "[" * 100_000
    (copy / "model.safetensors.index.json").write_text(text)
    assert "is no index of weights" in line_of(lambda: load(copy))


@torch.no_grad()
def test_weights_in_several_files_and_links_of_the_hubs_cache_are_read(tmp_path: Path) -> None:
    whole = sharded(tmp_path / "whole")
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    blobs = tmp_path / "models--owner--name" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted(whole.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    expected = load("pico")(tokens()).logits
    for place in (whole, snapshot):
        assert torch.equal(load(place)(tokens()).logits, expected)


@pytest.mark.parametrize(
    "file",
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "weights.pth", "x.ckpt"],
)
def test_pickles_are_never_opened(file: str, copy: Path, tmp_path: Path) -> None:
    """Nor beside safetensors files; a file of that name which is a FIFO would hang who opens it."""
    mark, name = tmp_path / "run", file
    if file.endswith(".json"):
        index = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model-1.bin"}}
        (copy / file).write_text(json.dumps(index))
        name = "pytorch_model-1.bin"
    torch.save({"model.norm.weight": Runs(mark)}, copy / name)
    load(copy)
    (copy / "model.safetensors").unlink()
    line = line_of(lambda: load(copy))
    assert name in line and "pickles are never opened" in line and "python -P -c" in line
    assert not mark.exists()


def run_line(line: str, folder: Path) -> None:
    """Run the command at the end of a message, in another folder."""
    words = shlex.split(line[line.index("python -P -c") :])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@torch.no_grad()
@pytest.mark.parametrize(
    "file",
    [
        "model.pt",
        *(pytest.param(f, marks=pytest.mark.verify) for f in ("pytorch_model.bin", "shards")),
    ],
)
def test_the_line_that_converts_a_pickle_works(file: str, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "it's here").mkdir()
    place = copy.rename(tmp_path / "it's here" / "model")
    (place / "model.safetensors").unlink()
    state = load("pico").state_dict()  # tied weights under both their names
    if file == "shards":
        half = len(state) // 2
        parts = dict(list(state.items())[:half]), dict(list(state.items())[half:])
        names = ["pytorch_model-1.bin", "pytorch_model-2.bin"]
        mapped = {key: name for part, name in zip(parts, names, strict=True) for key in part}
        for part, name in zip(parts, names, strict=True):
            torch.save(part, place / name)
        index = {"metadata": {}, "weight_map": mapped}
        (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(state, place / file)
    run_line(line_of(lambda: load(place)), tmp_path)
    assert torch.equal(load(place)(tokens()).logits, load("pico")(tokens()).logits)


def test_an_adapters_pickle_is_not_opened_and_can_be_converted(copy: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(load(copy), LoraConfig(target_modules=["q_proj"]))
    folder, mark = tmp_path / "adapter", tmp_path / "run"
    adapted.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    state = load_file(weights)
    weights.unlink()
    torch.save({"a": Runs(mark)}, weights.with_suffix(".bin"))
    assert "pickles are never opened" in line_of(lambda: load(folder))
    assert not mark.exists()
    torch.save(state, weights.with_suffix(".bin"))
    run_line(line_of(lambda: load(folder)), tmp_path)
    assert load_file(weights).keys() == state.keys()
    load(folder)


def test_files_of_other_kinds_are_named(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").rename(copy / "consolidated.safetensors")
    assert "consolidated.safetensors" in line_of(lambda: load(copy))
    (copy / "consolidated.safetensors").unlink()
    assert "holds no weights" in line_of(lambda: load(copy))
    (copy / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "model.gguf").write_bytes(b"GGUF")
    for place in (copy, copy / "model.gguf", tmp_path / "packed"):
        line = line_of(lambda place=place: load(place))
        assert "model.gguf" in line and "convert it once" in line


@pytest.mark.verify
@torch.no_grad()
def test_the_line_that_converts_gguf_works(tmp_path: Path) -> None:
    file = PACKAGED["smollm2"].file()
    assert file is not None, "`make smollm2` was not run"
    (tmp_path / "model.gguf").symlink_to(file)
    run_line(line_of(lambda: load(tmp_path / "model.gguf")), tmp_path)
    model, tokenizer = load(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, load("smollm2")(ids).logits)


@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json"])
def test_what_is_no_file_is_not_waited_for(file: str, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    os.mkfifo(copy / file)
    assert "not a file" in line_of(lambda: load(copy))
    (copy / file).unlink()
    (copy / file).symlink_to("/dev/zero")
    assert "not a file" in line_of(lambda: load(copy))


# ---------------------------------------------------------------- what else acts


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{% set n = namespace(__class__=1) %}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_chat_template_is_rendered_in_a_sandbox(
    template: str, copy: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "run"
    (copy / "chat_template.jinja").write_text(template.replace("MARK", str(mark)))
    rows = [{"prompt": "a", "answer": "b"}]
    with pytest.raises(DataError, match="cannot be written by the chat template"):
        documents(rows, model=copy, chat=True)
    assert not mark.exists()


def test_a_name_of_the_hubs_is_no_folder_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    mark = tmp_path / "run"
    (tmp_path / "owner" / "name" / "name.py").write_text(f"open({str(mark)!r}, 'w')")
    for name in ("hf:owner/name", "hf:owner", "hf:json", "hf:pandas", "hf:."):
        with pytest.raises(DataError, match="no dataset of the hub"):
            documents(name)
    assert not mark.exists()


# ---------------------------------------------------------------- the hub

HUB = """
import io, json, sys
from midus_model import load, load_tokenizer
sys.stdin = io.StringIO("y\\n" * 50)
said = {}
for name in sys.argv[1:]:
    for call in (load, load_tokenizer):
        try:
            said[f"{call.__name__} {name}"] = type(call(name)).__module__
        except Exception as error:
            said[f"{call.__name__} {name}"] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


def cached(home: Path, folder: Path) -> str:
    """The folder as a repository that was downloaded before; its id."""
    repository = home / "hub" / f"models--owner--{folder.name.replace(' ', '-')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    return f"owner/{folder.name.replace(' ', '-')}"


def test_a_repository_of_the_hub_is_guarded_as_a_folder_is(copy: Path, tmp_path: Path) -> None:
    plants = [plant(tmp_path, which) for which in ("model", "config", "all")]
    changed = {}
    for which, files in {
        "kernel": {"config.json": {"attn_implementation": "owner/kernel"}},
        "index": {"model.safetensors.index.json": {"metadata": {}, "weight_map": {"a": "a.bin"}}},
        "adapter": {"adapter_config.json": {"base_model_name_or_path": "owner/copy"}},
        "pickle": {},
    }.items():
        changed[which] = Path(shutil.copytree(copy, tmp_path / which))
        for file, changes in files.items():
            path = changed[which] / file
            path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {})
                                       | changes))  # fmt: skip
    for which in ("index", "pickle"):
        (changed[which] / "model.safetensors").unlink()
        torch.save({"a": Runs(tmp_path / "run")}, changed[which] / "a.bin")
    shutil.move(changed["pickle"] / "a.bin", changed["pickle"] / "pytorch_model.bin")
    folders = [copy, *(place for place, _ in plants), *changed.values()]
    names = [cached(tmp_path / "home", folder) for folder in folders]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HUB, *names],
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert not list(tmp_path.glob("run*"))
    for which in ("copy", "planted-model"):
        assert said[f"load owner/{which}"].startswith("transformers.models.llama"), said
    for which, words in {
        "planted-config": "never run",
        "planted-all": "never run",
        "kernel": "'owner/kernel'",
        "index": "'a.bin'",
        "adapter": "hf download owner/adapter",
        "pickle": "python -P -c",
    }.items():
        line = said[f"load owner/{which}"]
        assert words in line and "\n" not in line, line
    assert "never run" in said["load_tokenizer owner/planted-all"]
