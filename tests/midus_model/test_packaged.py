"""Real checkpoints from packages: found, converted once, exact; refused with the line to run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from apps.parts import access
from kernels.cache import cache_folder
from kernels.errors import ModelError
from midus_model import PACKAGED, load, load_tokenizer, packaged, upscale
from midus_model.packaged import READER, Packaged, packaged_folder

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = PACKAGED["smollm2"]
# .ci/run installs it: there the test may not be passed over.
needs_smollm2 = pytest.mark.skipif(
    CHECKPOINT.file() is None and not os.environ.get("CI"), reason="`make smollm2` was not run"
)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Packaged:
    """A checkpoint whose package nobody has, and an empty cache."""
    monkeypatch.setenv("MIDUS_CACHE", str(tmp_path / "cache"))
    known = Packaged("Absent-1B", "no-such-package", "1.0", "no_such_package", 64, "none")
    monkeypatch.setitem(PACKAGED, "absent", known)
    return known


def test_what_is_not_installed_says_the_line_that_installs_it(absent: Packaged) -> None:
    with pytest.raises(ModelError) as caught:
        load("absent")
    message = str(caught.value)
    assert "\n" not in message and absent.install in message and "make absent" in message
    assert not cache_folder().exists()  # nothing is left behind


def test_a_cache_that_cannot_be_written_is_one_line(
    absent: Packaged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIDUS_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(Packaged, "file", lambda _: tmp_path / "file")
    monkeypatch.setattr(packaged, "find_spec", lambda _: True)
    with pytest.raises(ModelError, match="MIDUS_CACHE") as caught:
        load("absent")
    assert "\n" not in str(caught.value)


def test_a_converted_checkpoint_needs_its_package_no_more(absent: Packaged) -> None:
    folder = cache_folder() / "no-such-package-1.0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert packaged_folder("absent") == folder
    # What whoever converted it had not removed yet when it was killed.
    (folder.parent / f".{folder.name}.0123456789ab.tmp").mkdir()
    (folder.parent / f".{folder.name}.lock").touch()
    assert packaged_folder("absent") == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_cache_is_the_users_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIDUS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/of-mine")
    assert cache_folder() == Path("/var/tmp/of-mine/midus")
    monkeypatch.setenv("MIDUS_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"


def test_versions_are_the_pinned_ones() -> None:
    """One version in the code, the constraints and `make smollm2`."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    makefile = (ROOT / "Makefile").read_text()
    for name, checkpoint in PACKAGED.items():
        assert f"{checkpoint.package}=={checkpoint.version}" in pins and READER in pins
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"make {name}"


def test_the_explorer_knows_the_same_names() -> None:
    assert {n: c.module for n, c in PACKAGED.items()} == access.PACKAGED_MODELS


@needs_smollm2
@torch.no_grad()
def test_smollm2_speaks_and_grows() -> None:
    model, tokenizer = load("smollm2"), load_tokenizer("smollm2")
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (30, 9)
    assert model.config.num_key_value_heads == 3 and model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config") and not model.training
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    logits = model(ids).logits
    assert tokenizer.decode(logits[0, -1].argmax()).strip() == "Paris"
    deeper = upscale(model, heads=[(3, 1), (20, 7)], num_keys=16, top_k=4, latent_dim=8)
    assert torch.equal(deeper(ids).logits, logits)


@pytest.mark.verify
@torch.no_grad()
def test_a_conversion_is_what_transformers_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits bit for bit, tokens of code, chat and other scripts; once, and whole."""
    monkeypatch.setenv("MIDUS_CACHE", str(tmp_path))
    with pytest.warns(UserWarning, match="converted"):
        model = load("smollm2")
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT.key]  # no draft is left
    file = CHECKPOINT.file()
    assert file is not None
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours = load_tokenizer("smollm2")
    chat = [{"role": "user", "content": "naïve?"}]
    for text in ("def f(x):\n    return x", "Ünïcode, 日本語 and 🤗", "  two  spaces "):
        ids = ours(text, return_tensors="pt").input_ids
        assert ids.tolist() == theirs(text, return_tensors="pt").input_ids.tolist()
        assert torch.equal(model(ids).logits, read(ids).logits)
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
