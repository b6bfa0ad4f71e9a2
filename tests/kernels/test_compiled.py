"""The functions in C: the bits that sorting gives, and what happens where they cannot be made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kernels import compiled
from kernels.product_key_select import eager, naive
from tests.kernels.test_packed import CHANGES, SHAPES, keys, ties, zeros

pytestmark = pytest.mark.skipif(compiled._compiler() is None, reason="no compiler here")


@pytest.fixture
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing is loaded yet, and nothing kept: the folder where it would be."""
    monkeypatch.setenv("MIDUS_CACHE", str(tmp_path / "cache"))
    for name in ("CC", "MIDUS_COMPILED"):
        monkeypatch.delenv(name, raising=False)
    compiled._library.cache_clear()
    yield tmp_path / "cache" / "compiled"
    compiled._library.cache_clear()


def both(inputs: list[torch.Tensor], k: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the functions in C select, and what sorting does."""
    found = [eager.select(*inputs, k)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "serves", lambda tensor: False)
        found.append(eager.select(*inputs, k))
    return found


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, but that one NaN is as good as another."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


@pytest.mark.parametrize(
    "change", CHANGES, ids=["plain", "ties", "zeros", "broken", "bf16", "partly"]
)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 4, 1024, 64), (9, 33, 5, 47, 16)], ids=str)
def test_the_bits_of_sorting(shape: tuple[int, ...], change) -> None:
    *sizes, k = shape
    inputs = change(*keys(*sizes))
    assert compiled.serves(inputs[0])
    (weights, slots), (want, at) = both(inputs, k)
    assert torch.equal(slots, at)
    assert same(weights, want)
    if change in (ties, zeros):  # scores are exact
        assert torch.equal(slots, naive.product_key_select(*inputs, k)[1])


def test_every_size_and_k() -> None:
    """Around every vector's width, scores all alike, of few values and of many magnitudes."""
    drawn = torch.Generator().manual_seed(0)
    for n in range(1, 70):
        for k in {1, min(2, n), n // 3 + 1, n}:
            scores = torch.randn(3, 2, 1, 4, n, generator=drawn)
            scores[1] = scores[1].sign()
            scores[2] *= 10 ** (20 * torch.randn(scores[2].shape, generator=drawn)).clamp(-38, 38)
            scores[:, :, :, 3] = 0.5
            for given in scores:
                sums, slots = eager._compiled(given, k)
                want, at = eager._sorted(given.neg(), k)
                assert torch.equal(slots, at), (n, k)
                assert torch.equal(sums, want), (n, k)


def test_infinities_and_tiny_numbers() -> None:
    kinds = torch.tensor([torch.inf, -torch.inf, 1e-45, -1e-45, 3.4e38, -3.4e38, 0.0, -0.0, 1.0])
    drawn = torch.Generator().manual_seed(1)
    scores = kinds[torch.randint(len(kinds), (2, 3, 50, 40), generator=drawn)]
    sums, slots = eager._compiled(scores, 7)
    want, at = eager._sorted(scores.neg(), 7)
    assert torch.equal(slots, at) and same(sums, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_another_dtype_are_not_read_as_fp32(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="takes torch.float32"):
        eager._compiled(torch.zeros((2, 1, 3, 8), dtype=dtype), 4)
    with pytest.raises(TypeError, match="in one piece"):
        eager._compiled(torch.zeros((2, 1, 8, 3)).mT, 4)


def test_no_tokens_and_no_heads() -> None:
    for tokens, heads in ((0, 2), (3, 0)):
        weights, slots = eager.select(*keys(tokens, heads, 4, 9), 4)
        assert weights.shape == slots.shape == (tokens, heads, 4)


def test_it_is_made_once_and_kept(afresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(1)
    assert compiled.serves(tensor)
    (kept,) = afresh.iterdir()
    made = kept.stat().st_mtime_ns
    compiled._library.cache_clear()
    monkeypatch.setattr(compiled, "_compile", None)  # not asked again
    assert compiled.serves(tensor) and kept.stat().st_mtime_ns == made
    assert compiled.serves(tensor.to(torch.bfloat16)) and not compiled.serves(tensor.to("meta"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_what_is_not_whole_is_made_again(afresh: Path, damage: str) -> None:
    """A loader would map a file that was cut short, and die of it."""
    assert compiled._library()
    (kept,) = afresh.iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1 if damage == "flipped" else 0
    kept.unlink()
    kept.write_bytes({"cut": content[:5000], "empty": b""}.get(damage, content))
    compiled._library.cache_clear()
    assert compiled._library() and compiled._is_whole(kept)


def test_what_others_could_have_written_is_not_loaded(afresh: Path) -> None:
    assert compiled._library()
    (kept,) = afresh.iterdir()
    for place in (kept, afresh):
        mode = place.stat().st_mode
        place.chmod(mode | 0o002)
        assert not compiled._is_ours(kept)
        place.chmod(mode)
    assert compiled._is_ours(kept)
    target = kept.rename(kept.with_name("elsewhere"))
    kept.symlink_to(target)
    assert not compiled._is_ours(kept)
    compiled._library.cache_clear()
    assert compiled._library() and not kept.is_symlink()  # made anew in its place


def test_a_cache_that_cannot_be_written(afresh: Path) -> None:
    afresh.parent.write_text("a file")
    assert compiled._library()
    assert afresh.parent.read_text() == "a file"


@pytest.mark.parametrize(
    "command", ["false", "no-such-compiler", "sh -c 'echo no room >&2; exit 3'"]
)
def test_a_compiler_that_fails_costs_one_warning(
    afresh: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("CC", command)
    inputs = keys(2, 2, 4, 9)
    want = naive.product_key_select(*inputs, 4)[1]
    with pytest.warns(RuntimeWarning, match="more slowly") as told:
        for _ in range(2):
            assert torch.equal(eager.select(*inputs, 4)[1], want)
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert command.split()[0] in str(told[0].message)


def test_without_a_compiler_or_where_it_is_not_wanted(
    afresh: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    inputs = keys(2, 2, 4, 9)
    want = naive.product_key_select(*inputs, 4)[1]
    monkeypatch.setenv("MIDUS_COMPILED", "0")
    assert torch.equal(eager.select(*inputs, 4)[1], want)
    monkeypatch.delenv("MIDUS_COMPILED")
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    compiled._library.cache_clear()
    assert torch.equal(eager.select(*inputs, 4)[1], want)
    assert not recwarn.list and not afresh.exists()


def test_two_processes_at_once(tmp_path: Path) -> None:
    """Each has the functions, and one whole file is kept."""
    code = "import torch; from kernels import compiled; print(compiled.serves(torch.zeros(1)))"
    given = {**os.environ, "MIDUS_CACHE": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}

    def start(_: int) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(start, range(2))) == ["True\n", "True\n"]
    assert [x.suffix for x in (tmp_path / "compiled").iterdir()] == [".so"]
