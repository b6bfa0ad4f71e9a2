"""Killed at any filesystem call, or by a signal, a command run again gives what it would have."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from tests.crash import kept
from tests.crash.cases import BROKEN, CASES
from tests.crash.harness import Trial

# case -> points of it that every run of the tests tries; `make verify` tries all of every case.
SAMPLE = {"costs overwrite": 3, "upscale overwrite": 3, "table again": 4, "job": 2, "train": 1}
SIGNALS = 10  # of each kind, a case


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    trial = Trial("broken", BROKEN, tmp_path_factory.mktemp("broken"))
    trial.prepare()
    return trial


def test_the_harness_sees_what_is_lost(broken: Trial) -> None:
    """An action that writes in place, renames in two steps, and never sweeps its draft."""
    tally = broken.kills(range(1, len(broken.points) + 1))
    assert tally.killed == tally.points > 8 and tally.states > 4
    for words in ("left over", "the same command ends with", "lost meanwhile"):
        assert any(words in line for line in tally.faults), (words, tally.faults)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_points(name: str, tmp_path: Path) -> None:
    trial = Trial(name, CASES[name], tmp_path)
    trial.prepare()
    drawn = np.random.default_rng(0).choice(len(trial.points), SAMPLE[name], replace=False)
    tally = trial.kills(sorted(int(at) + 1 for at in drawn))
    assert tally.killed >= tally.points - (name == "job")  # a thread of its own sees the job end
    assert not tally.faults, "\n".join(tally.faults)


@pytest.mark.verify
@pytest.mark.parametrize("name", CASES)
def test_every_point(name: str, tmp_path: Path) -> None:
    if kept.known("crash", name):
        return
    trial = Trial(name, CASES[name], tmp_path)
    trial.prepare()
    assert not trial.wrong_alone()
    tally = trial.kills(range(1, len(trial.points) + 1, trial.case.every))
    kept.keep("crash", name, tally.points, tally.states, tally.faults)
    assert not tally.faults, "\n".join(tally.faults)


@pytest.mark.verify
@pytest.mark.parametrize("name", CASES)
def test_signals_at_any_moment(name: str, tmp_path: Path) -> None:
    if kept.known("signals", name):
        return
    trial = Trial(name, CASES[name], tmp_path)
    trial.prepare()
    moments = np.random.default_rng(0).random((2, SIGNALS))
    for number, drawn in zip((signal.SIGTERM, signal.SIGINT), moments, strict=True):
        tally = trial.signals(number, map(float, drawn))
        assert not tally.faults, "\n".join(tally.faults)
    kept.keep("signals", name, 2 * SIGNALS, 0, [])
