"""What a measurement will take is said before, of all of them, by a clock that counts the work."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import analysis
from analysis import EstimateWarning, estimates, head_importance, rank_heads
from analysis.amplification import amplification
from analysis.documents import Documents
from analysis.estimates import duration, seconds_a_pass
from analysis.methods import METHODS
from analysis.realisations import memory_realisations
from midus_model import blocks, upscale
from tests.analysis.clocks import counting
from tests.analysis.samples import memory_model, random_tasks, random_texts
from tests.models import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*one document, so intervals")
LENGTHS = [17 + n % 7 for n in range(8)]
UNITS = {"s": 1, "min": 60, "h": 3600, "days": 86400}

Measured = Callable[..., Any]
BASE: dict[str, Any] = {}


def said_seconds(line: str) -> list[float]:
    """All times that a line names, in seconds: "1 h 20 min" is one."""
    found = re.findall(r"about (\d+) (s|min|h|days)\b(?: (\d+) min)?", line)
    return [float(n) * UNITS[unit] + 60 * float(more or 0) for n, unit, more in found]


def texts() -> Documents:
    return random_texts(LENGTHS, context=24)


@pytest.fixture(scope="module")
def grown() -> Any:
    """A model that was checked before: that is no part of what is estimated."""
    model = memory_model(double=False)
    analysis.check_model(model)
    return model


@pytest.fixture(scope="module", autouse=True)
def base() -> Any:
    model = BASE["llama"] = tiny("llama")
    analysis.check_model(model)
    return model


def importance(method: str) -> Measured:
    def run(model: Any, **given: Any) -> Any:
        return head_importance(model, texts(), method=method, permutations=4, **given)

    return run


MEASUREMENTS: dict[str, Measured] = {
    **{f"head_importance {method}": importance(method) for method in METHODS},
    "rank_heads": lambda model, **given: rank_heads(model, texts(), top=4, **given),
    "rank_heads, screened": lambda model, **given: rank_heads(
        model, texts(), top=1, budget=110, **given
    ),
    "rank_heads gradient": lambda model, **given: rank_heads(
        model, texts(), top=4, method="gradient", **given
    ),
    "head_roles": lambda model, **given: analysis.head_roles(model, texts(), **given),
    "memory_usage": lambda model, **given: analysis.memory_usage(model, texts(), **given),
    "memory_contents": lambda model, **given: analysis.memory_contents(
        model, texts(), block=2, **given
    ),
    "memory_effects": lambda model, **given: analysis.memory_effects(model, texts(), **given),
    "memory_effects slots": lambda model, **given: analysis.memory_effects(
        model, texts(), of="slots", **given
    ),
    "memory_realisations": lambda model, **given: memory_realisations(model, texts(), **given),
    "head_geometry": lambda model, **given: analysis.head_geometry(model, texts(), **given),
    "residual_updates": lambda model, **given: analysis.residual_updates(model, texts(), **given),
    "prune_curve": lambda model, **given: analysis.prune_curve(model, None, texts(), **given),
    "evidence": lambda model, **given: analysis.evidence(model, texts(), top=4, **given),
    "dose_response": lambda model, **given: analysis.dose_response(model, None, texts(), **given),
    "head_interactions": lambda model, **given: analysis.head_interactions(
        model, [(0, 1), (1, 2), (3, 0)], texts(), **given
    ),
    "doctor": lambda model, **given: analysis.doctor(
        model, texts(), before=BASE["llama"], timing=False, **given
    ),
    "amplification": lambda model, **given: amplification(
        BASE["llama"], model, data=texts(), **given
    ),
}

SHORT = ("head_importance ablation", "rank_heads", "head_roles", "memory_usage", "doctor")


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_the_estimate_comes_within_ten_seconds_and_is_near_what_it_takes(
    name: str, grown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where one window takes longer than ten seconds, and a batch minutes."""
    clock = counting(monkeypatch, seconds=0.2)  # 1 s a token: 20 s a window
    said: list[tuple[float, str]] = []

    def progress(done: int, total: int, text: str) -> None:
        if total == 0:
            said.append((clock.now, text))

    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimateWarning)
        MEASUREMENTS[name](grown, progress=progress)
    at, line = said[0]
    assert at <= 10, f"told after {at:.0f} s"
    first = said_seconds(line)[0]
    assert first / 3.5 <= clock.now <= first * 3.5, (line, clock.now)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_without_progress_there_is_one_warning_and_only_of_long_work(
    name: str, grown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [(1e-7, 0)] if name in SHORT else []
    for seconds, expected in [(0.2, 1), *short]:
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            counting(patch, seconds)
            MEASUREMENTS[name](grown)
        lines = [str(one.message) for one in caught if one.category is EstimateWarning]
        assert len(lines) == expected, lines
        assert all("\n" not in line and said_seconds(line) for line in lines)


def test_what_would_be_cheaper_is_said_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, docs = tiny("llama"), random_texts([20] * 24, context=20)
    counting(monkeypatch, seconds=0.5)
    said: list[str] = []
    head_importance(model, docs, progress=lambda d, t, text: said.append(text) if not t else None)
    line = said[0]
    whole, few, taylor = said_seconds(line)
    assert "--limit 4 about" in line and few == pytest.approx(whole / 6, rel=0.1)
    assert "--method taylor about" in line and taylor < whole / 2
    assert line.endswith("--within 10m fits the time")
    with pytest.warns(EstimateWarning, match="limit=4 about .* method='taylor' .* within=600"):
        head_importance(model, docs)
    # What has no first order is not told to take one; what is measured so needs no other.
    for other in ({"metric": "accuracy"}, {"method": "taylor"}):
        with pytest.warns(EstimateWarning) as caught:
            head_importance(model, docs, **other)
        assert "method=" not in str(caught[0].message)


def test_a_race_is_cheaper_with_shorter_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", max_position_embeddings=512)
    counting(monkeypatch, seconds=0.1)
    with pytest.warns(EstimateWarning, match="at most: about .*context=128 .*method='gradient'"):
        rank_heads(model, random_texts([300] * 2, context=300), top=4, budget=1.0)
    tasks = random_tasks([300] * 2, [2] * 2, context=300)
    with pytest.warns(EstimateWarning) as caught:
        rank_heads(model, tasks, top=4, budget=1.0)
    assert "context=" not in str(caught[0].message)


def test_an_estimate_that_was_wrong_is_told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model, docs = tiny("llama"), texts()
    clock = counting(monkeypatch, seconds=0.01)
    clock.after, clock.slower = 5.0, 20.0  # another job begins
    said: list[tuple[float, str]] = []

    def progress(done: int, total: int, text: str) -> None:
        if total == 0:
            said.append((clock.now, text))

    head_importance(model, docs, progress=progress)
    at, line = said[-1]
    assert len(said) >= 2 and line.split(";")[0].endswith("left")
    left = said_seconds(line)[0]
    assert left / 2 <= clock.now - at <= left * 2, (line, clock.now - at)


def test_a_sweep_that_goes_on_expects_only_the_rest(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("analysis.sweep.SAVE_SECONDS", 0)
    model, docs = tiny("llama"), texts()
    clock = counting(monkeypatch, seconds=0.01)

    class Killed(BaseException):
        pass

    def kill(done: int, total: int, text: str) -> None:
        if "ablation" in text and total and done >= total * 0.6:
            raise Killed

    with pytest.raises(Killed):
        head_importance(model, docs, checkpoint=tmp_path / "kept", progress=kill)
    before = clock.now
    said: list[tuple[float, str]] = []

    def progress(done: int, total: int, text: str) -> None:
        said.append((clock.now, text))

    head_importance(model, docs, checkpoint=tmp_path / "kept", progress=progress)
    took = clock.now - before
    lefts = [(at, said_seconds(text)[0]) for at, text in said if " left" in text]
    for at, left in lefts:
        assert left <= 3 * max(took - (at - before), 1)


def test_the_first_pass_is_short_where_the_model_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    model, docs = tiny("llama"), random_texts([64] * 3, context=64)
    clock = counting(monkeypatch, seconds=0.2)
    assert seconds_a_pass(model, docs) == pytest.approx(0.2 * len(blocks(model)), rel=0.1)
    assert clock.passed == pytest.approx(estimates.FIRST * len(blocks(model)), rel=0.1)
    clock.seconds = 1e-6
    before = clock.passed
    assert seconds_a_pass(model, docs) == pytest.approx(1e-6 * len(blocks(model)), rel=0.1)
    assert clock.passed - before == pytest.approx((8 + 32 + 64) * len(blocks(model)), rel=0.1)


def test_the_model_is_left_as_it_was() -> None:
    model = upscale(tiny("llama"), num_keys=4, top_k=2, latent_dim=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seconds_a_pass(model, texts())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (61, "61 s"), (600, "10 min"), (7200, "2 h"), (12000, "3 h 20 min"),
     (5390, "1 h 30 min"), (5400, "1 h 30 min"), (86400 * 3, "3 days")],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize("seconds", [0.2, 1.1, 89.2, 100, 140, 3601, 5401, 172_900, 10**6 + 1])
def test_a_time_that_would_do_is_not_rounded_down(seconds: float) -> None:
    (said,) = said_seconds(f"about {duration(seconds, up=True)}")
    assert seconds <= said <= max(1.5 * seconds, seconds + 60)
