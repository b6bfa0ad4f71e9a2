"""A full disk is one line; nothing is half-written, what was there stays, and with room it works.

Two kinds: every growing call refused from the n-th point on, which needs nothing of the machine,
and real tmpfs of twelve sizes, where one may be mounted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.crash import disks, judge, kept
from tests.crash.cases import CASES
from tests.crash.harness import Tally, Trial

SAMPLE = {"upscale": 2, "costs": 2}
SIZES = 12


def prepared(name: str, place: Path) -> Trial:
    trial = Trial(name, CASES[name], place)
    trial.prepare()
    return trial


@pytest.mark.parametrize("name", SAMPLE)
def test_a_disk_that_is_full_from_some_point_on(name: str, tmp_path: Path) -> None:
    trial = prepared(name, tmp_path)
    drawn = np.random.default_rng(1).choice(len(trial.points), SAMPLE[name], replace=False)
    tally = trial.full(sorted(int(at) + 1 for at in drawn))
    assert not tally.faults, "\n".join(tally.faults)


@pytest.mark.verify
@pytest.mark.parametrize("name", CASES)
def test_a_disk_that_is_full_from_any_point_on(name: str, tmp_path: Path) -> None:
    if kept.known("full", name):
        return
    trial = prepared(name, tmp_path)
    tally = trial.full(range(1, len(trial.points) + 1, trial.case.every))
    kept.keep("full", name, tally.points, tally.states, tally.faults)
    assert not tally.faults, "\n".join(tally.faults)


@pytest.mark.verify
@pytest.mark.parametrize("name", CASES)
def test_real_disks_of_twelve_sizes(name: str, tmp_path: Path) -> None:
    if kept.known("tmpfs", name):
        return
    if why := disks.mountable(tmp_path):
        pytest.skip(why)
    (tmp_path / "trial").mkdir()
    trial = prepared(name, tmp_path / "trial")
    tally = tried(trial)
    kept.keep("tmpfs", name, tally.points, 0, tally.faults)
    assert not tally.faults, "\n".join(tally.faults)


def tried(trial: Trial) -> Tally:
    """The command on disks from one with no room at all to one that has room for it twice."""
    tally = Tally()
    least, most = disks.taken(trial.prepared), disks.taken(trial.finished)
    extra = 2 * max(disks.PAGE, most - least) + 4 * disks.PAGE
    for share in np.linspace(0, 1, SIZES):
        size = least + int(share * extra) // disks.PAGE * disks.PAGE
        judge.emptied(trial.disk)
        with disks.mounted(trial.disk, max(size, disks.PAGE)):
            judge.copy(trial.prepared, trial.root)
            what = f"{trial.name}, {size} bytes of {least} to {least + extra}"
            tally.points += 1
            trial.refused(what, trial.run(), tally)
            disks.make_room(trial.disk)
            trial.afterwards(what, tally)
    return tally
