"""Which implementation runs: the context manager, the environment variable, and what is refused."""

from __future__ import annotations

import threading

import pytest
import torch

from kernels import BackendUnavailable, backend, latent_bag, use_backend
from kernels.backend import current_backend, has_triton, interpreted, resolve


@pytest.fixture(autouse=True)
def no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIDUS_KERNELS", raising=False)


def test_default_is_auto() -> None:
    assert current_backend() == "auto"


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_environment_sets_the_default(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("MIDUS_KERNELS", name)
    assert current_backend() == name


def test_innermost_block_wins_and_is_left_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDUS_KERNELS", "triton")
    with use_backend("torch"):
        assert current_backend() == "torch"
        with use_backend("auto"):
            assert current_backend() == "auto"
        assert current_backend() == "torch"
    assert current_backend() == "triton"


def test_block_is_left_on_an_error() -> None:
    with pytest.raises(KeyError), use_backend("torch"):
        raise KeyError
    assert current_backend() == "auto"


def test_block_does_not_reach_other_threads() -> None:
    seen: list[str] = []
    with use_backend("torch"):
        thread = threading.Thread(target=lambda: seen.append(current_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_unknown_names_say_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ValueError, match="backend is 'cuda'.*auto, torch, triton"),
        use_backend("cuda"),
    ):
        pass
    monkeypatch.setenv("MIDUS_KERNELS", "fast")
    with pytest.raises(ValueError, match="MIDUS_KERNELS is 'fast'.*auto, torch, triton"):
        current_backend()


def test_resolve() -> None:
    assert resolve(torch.ones(1)) == "torch"  # auto, on the CPU
    if has_triton():
        assert backend._resolved("cuda", False) == "auto"
    with use_backend("torch"):
        assert resolve(torch.ones(1)) == "torch"
    with use_backend("triton"):
        assert resolve(torch.ones(1, dtype=torch.float64)) == "torch"
    assert resolve(torch.ones(1, device="meta")) == "torch"


def test_triton_needs_a_gpu_or_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not interpreted()
    with (
        use_backend("triton"),
        pytest.raises(BackendUnavailable, match="'triton' runs on a GPU.*'cpu'.*'torch'"),
    ):
        resolve(torch.ones(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with use_backend("triton"):
        assert resolve(torch.ones(1)) == "triton"
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    with use_backend("triton"), pytest.raises(BackendUnavailable, match="needs the package triton"):
        resolve(torch.ones(1))


def test_ops_run_with_plain_pytorch() -> None:
    bank = torch.ones(4, 2)
    with use_backend("torch"):
        got = latent_bag(bank, torch.zeros(1, 1, 2, dtype=torch.long), torch.ones(1, 1, 2))
    assert got.tolist() == [[[2.0, 2.0]]]
