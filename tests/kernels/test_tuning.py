"""The tuning file: looked up by case, refused where damaged, and never what changes a result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from kernels import tuning
from kernels.errors import DataError
from kernels.headwise_memory import gpu as headwise
from kernels.latent_bag import gpu as latent
from kernels.product_key_select import gpu as product_key
from kernels.product_key_select import naive as product_key_naive
from tests.kernels.oracles import relative_rms

F32 = torch.float32
CONFIGS: dict[str, dict[str, Any]] = {
    "select": product_key.select_config(16, 16, 4, F32, F32),
    "score_gradient": product_key.score_gradient_config(16, 16, 4),
    "key_gradient": product_key.key_gradient_config(16, 16, 4),
    "headwise": headwise.headwise_config(16, 32, 4, 16, (F32,) * 4, False),
    "read": latent.read_config(16, 4),
    "piece": latent.piece_config(16, 4),
    "join": latent.join_config(16),
    "atomic": latent.atomic_config(16, 4),
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "tuning.json"
    monkeypatch.setenv("MIDUS_TUNING", str(path))
    tuning._table.cache_clear()
    yield path
    tuning._table.cache_clear()


def write(path: Path, kernel: str, tokens: int, choice: dict[str, Any]) -> None:
    key = tuning.key_of(kernel, CONFIGS[kernel], tokens)
    device = tuning.device_name()
    path.write_text(json.dumps(tuning.as_json({device: {kernel: {key: choice}}})))
    tuning._table.cache_clear()


@pytest.mark.parametrize("kernel", tuning.KERNELS)
def test_every_kernels_constants_are_there(kernel: str) -> None:
    constants, tunable = tuning.KERNELS[kernel]
    assert {*constants, *tunable, *tuning.OPTIONS} <= set(CONFIGS[kernel])


@pytest.mark.parametrize("kernel", tuning.KERNELS)
def test_a_choice_holds_for_its_case_alone(kernel: str, file: Path) -> None:
    name, config = tuning.KERNELS[kernel][1][0], CONFIGS[kernel]
    write(file, kernel, 17, {name: 2 * config[name], "num_warps": 2})
    assert tuning.tuned(kernel, config, 17) == config | {name: 2 * config[name], "num_warps": 2}
    assert tuning.tuned(kernel, config, 16) == config  # few tokens
    constant = tuning.KERNELS[kernel][0][0]
    other = config | {constant: 2 * config[constant]}
    assert tuning.tuned(kernel, other, 17) == other


def test_what_is_shipped_is_a_tuning_file() -> None:
    assert isinstance(tuning.read(tuning.SHIPPED), dict)


def test_none_and_no_file_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIDUS_TUNING", "none")
    assert tuning.tuned("join", CONFIGS["join"], 1) == CONFIGS["join"]
    monkeypatch.setenv("MIDUS_TUNING", str(tmp_path / "missing.json"))
    with pytest.raises(DataError, match="missing.json is no tuning file"):
        tuning.tuned("join", CONFIGS["join"], 1)


def _file(cases: Any, kernel: str = "join") -> str:
    return json.dumps({"schema": 1, "devices": {"GPU": {kernel: cases}}})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "Expecting value"),
        ("[]", "schema 1"),
        ('{"schema": 2, "devices": {}}', "schema 1"),
        ('{"schema": 1, "devices": []}', "devices must be an object"),
        ('{"schema": 1, "devices": {"GPU": 3}}', "GPU must be an object"),
        ('{"schema": 1, "devices": {}', "delimiter"),
        ("\udcff", "no UTF-8"),
        (_file({}, "softmax"), "'softmax' is no kernel"),
        (_file({"R=16": {}}), "is no case of join"),
        (_file({"K=16, few": {}}), "is no case of join"),
        (_file({"R=-1, few": {}}), "is no case of join"),
        (_file({"R=16, few": 3}), "must be an object"),
        (_file({"R=16, few": {"R": 8}}), "R of join, R=16, few cannot be chosen"),
        (_file({"R=16, few": {"EC": 48}}), "EC of join, R=16, few is 48; it must be a power"),
        (_file({"R=16, few": {"EC": True}}), "is True; it must be a whole number"),
        (_file({"R=16, few": {"EC": 16.0}}), "is 16.0; it must be a whole number"),
        (_file({"R=16, few": {"EC": 0}}), "is 0; it must be a whole number"),
        (_file({"R=16, few": {"EC": "16; import os"}}), "must be a whole number"),
        (_file({"R=16, few": {"num_warps": 3}}), "is 3; it must be one of 1, 2, 4"),
        (_file({"R=16, few": {"num_stages": 64}}), "is 64; it must be one of"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(text: str, named: str, file: Path) -> None:
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError) as raised:
        tuning.tuned("join", CONFIGS["join"], 1)
    message = str(raised.value)
    assert named in message and "\n" not in message and message.startswith(str(file))


def _calls() -> dict[str, Any]:
    """What launches each kernel, over 20 tokens of 2 heads, in fp32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(device)

    query, rows, cols = draw(20, 2, 32), draw(2, 16, 16), draw(2, 16, 16)
    bank, proj, grad = draw(256, 16), draw(2, 16, 32), draw(20, 2, 16)
    weights, slots = product_key_naive.product_key_select(query, rows, cols, 4)
    slots[:15] = 7  # a row of several pieces
    backward = (torch.ones_like(weights).cumsum(-1), weights, slots, query, rows, cols)

    def bank_gradient(mode: str) -> torch.Tensor:
        return latent.bank_gradient(grad, slots, weights, 256, mode)

    return {
        "select": lambda: product_key.select(query, rows, cols, 4)[0],
        "score_gradient": lambda: product_key.select_backward(*backward)[0],
        "key_gradient": lambda: product_key.select_backward(*backward)[1],
        "headwise": lambda: headwise.headwise_memory(query, rows, cols, bank, proj, 4),
        "read": lambda: latent.bag(bank, slots, weights),
        "piece": lambda: bank_gradient("sorted"),
        "join": lambda: bank_gradient("sorted"),
        "atomic": lambda: bank_gradient("atomic"),
    }


# Each tunable number, other than it is written.
CHOICES = {
    "select": {"BT": 32, "DC": 32},
    "score_gradient": {"BT": 8, "KC": 2},
    "key_gradient": {"BT": 16, "NB": 32},
    "headwise": {"BT": 32, "RB": 32, "DC": 32},
    "read": {"BR": 2, "KC": 2, "RB": 32},
    "piece": {"CH": 16, "EC": 8, "RB": 32},
    "join": {"EC": 16, "RB": 32},
    "atomic": {"KC": 2, "RB": 32},
}


@pytest.mark.parametrize("kernel", tuning.KERNELS)
def test_a_launch_takes_the_choice_and_gives_the_same(kernel: str, file: Path) -> None:
    """To rounding: how work is cut up changes the order of sums."""
    file.write_text(json.dumps(tuning.as_json({})))
    call = _calls()[kernel]
    with tuning.trying({}) as seen:
        want = call()
    key = seen[kernel]
    choice = CHOICES[kernel] | {"num_warps": 2}
    assert all(CONFIGS[kernel][name] != value for name, value in choice.items())
    file.write_text(json.dumps(tuning.as_json({tuning.device_name(): {kernel: {key: choice}}})))
    tuning._table.cache_clear()
    taken = []
    original = tuning.tuned
    with pytest.MonkeyPatch.context() as patch:
        for module in (product_key, headwise, latent):
            patch.setattr(
                module, "tuned", lambda *given: taken.append(original(*given)) or taken[-1]
            )
        got = call()
    assert any(choice.items() <= config.items() for config in taken)
    assert relative_rms(got, want.double()) <= 2e-6
