"""Jobs: real commands in processes of their own, cancelled, failed, lost, and seen by others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from kernels.errors import RunError
from workbench import jobs
from workbench.runs import RunFolder

SECONDS = 240


def until(job: jobs.Job, *statuses: str) -> str:
    """The job's status once it is one of these, as another process would see it."""
    root, end = job.folder.parent, time.monotonic() + SECONDS
    while time.monotonic() < end:
        status = jobs.one(root, job.name).status
        if status in statuses:
            return status
        time.sleep(0.1)
    pytest.fail(f"{job.command} is {job.status} after {SECONDS} s: {job.message}")


def written(root: Path, name: str, **about: Any) -> jobs.Job:
    """A job as its files have it; unless told otherwise its process is gone."""
    folder = root / ".jobs" / name
    folder.mkdir(parents=True)
    gone = {"arguments": ["rank"], "pid": os.getpid(), "created": 0.0, "started": 1.0}
    (folder / "job.json").write_text(json.dumps(gone | about))
    return jobs.one(root, name)


def group(leader: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def test_a_job_that_ends_leaves_a_run_and_tells_how_far_it_is(tmp_path: Path) -> None:
    words = ["importance", "pico", "--method", "gradient", "--limit", "2"]
    job = jobs.start(words, tmp_path, "measured")
    assert job.command == f"midus {' '.join(words)} --output {tmp_path / 'measured'}"
    assert job.status == "running"
    assert until(job, "done", "failed") == "done"
    run = RunFolder.open(job.folder)
    assert run.done and run.has_table("importance_before") and job.message == ""
    done, text, _ = job.progress
    assert done == 1 and text
    again = jobs.start(["costs", "pico"], tmp_path, "measured")
    assert again.name == "measured-2"
    until(again, "done", "failed")
    job.remove()
    assert not job.folder.exists() and [one.name for one in jobs.jobs(tmp_path)] == ["measured-2"]


def test_a_cancelled_job_is_gone_and_can_be_started_again(tmp_path: Path) -> None:
    job = jobs.start(["importance", "pico", "--limit", "12"], tmp_path, "long")
    end = time.monotonic() + SECONDS
    while job.progress[0] is None and time.monotonic() < end:
        time.sleep(0.1)
    seen = jobs.one(tmp_path, "long")  # as another tab has it
    pid = seen.about["pid"]
    with pytest.raises(RunError, match="cancel it first"):
        seen.remove()
    seen.cancel()
    assert seen.status == "cancelled" == jobs.one(tmp_path, "long").status
    assert job.status == "cancelled" and not group(pid)
    seen.again()
    assert seen.status == job.status == "running"
    with pytest.raises(RunError, match="cancel it first"):
        job.again()
    job.cancel()
    assert until(seen, "cancelled") == "cancelled"


def test_what_does_not_listen_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    deaf = "trap '' INT TERM; echo; sleep 60 & sleep 60 & wait"
    started = subprocess.Popen(["sh", "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
    assert started.stdout is not None
    started.stdout.readline()  # from here on it is deaf
    created = psutil.Process(started.pid).create_time()
    job = written(tmp_path, "deaf", pid=started.pid, created=created)
    assert job.status == "running" and group(started.pid)
    job.cancel(wait=0.2)
    assert job.status == "cancelled" and not group(started.pid)
    started.wait()
    started.stdout.close()


def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    job = jobs.start(["rank", "nowhere"], tmp_path, "wrong")
    second = jobs.start(["rank", "nowhere"], tmp_path, "wrong")  # before there is a run folder
    assert second.name == "wrong-2"
    second.cancel()
    assert until(job, "failed") == "failed"
    assert "no model at 'nowhere'" in job.message and "\n" not in job.message


def test_a_job_that_was_lost_is_not_taken_for_another_process(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        earlier = psutil.Process(stranger.pid).create_time() - 100
        job = written(tmp_path, "lost", pid=stranger.pid, created=earlier)
        assert job.status == "interrupted"
        job.cancel()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


ENDS = {
    "a code alone": ({"code": "{pid} 0"}, "done", ""),
    "a code that tells of failure": ({"code": "{pid} 3"}, "failed", "exit code 3"),
    "the code of an earlier start": ({"code": "1 3"}, "interrupted", ""),
    "a note and nothing else": ({"output.txt": "midus: note: short\n"}, "interrupted", ""),
    "a complaint": ({"output.txt": "midus: note: a\nmidus: no b\n"}, "failed", "no b"),
    "a run that failed": ({"run": {"status": "failed", "message": "no c"}}, "failed", "no c"),
    "a run that was cut off": ({"run": {"status": "running"}}, "interrupted", ""),
    "a run that is done": ({"run": {"status": "done"}}, "done", ""),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_is_left_tells_how_it_ended(tmp_path: Path, case: str) -> None:
    left, status, message = ENDS[case]
    job = written(tmp_path, "ended")
    for name, content in left.items():
        if name == "run":
            job.folder.mkdir()
            (job.folder / "manifest.json").write_text(json.dumps(content))
        else:
            text = str(content).format(pid=os.getpid())
            (tmp_path / ".jobs" / "ended" / name).write_text(text)
    assert job.status == status
    assert message in job.message and bool(message) == bool(job.message)


def test_the_estimate_leaves_out_what_an_earlier_start_did(tmp_path: Path) -> None:
    job = written(tmp_path, "resumed")
    assert job.progress == (None, "", None)
    told = {"done": 50, "total": 100, "first": 40, "text": "ablation", "began": 10.0, "time": 30.0}
    (tmp_path / ".jobs" / "resumed" / "progress.json").write_text(json.dumps(told))
    assert job.progress == (0.5, "ablation", 100.0)


@pytest.mark.parametrize("name", ["", ".", "..", ".jobs"])
def test_no_job_is_called_what_would_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="begins with no dot"):
        jobs.start(["costs", "pico"], tmp_path / "root", name)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["../outside", "..", ".", "other"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(RunError, match="no job"):
        jobs.one(tmp_path / "root", name)


def test_what_is_damaged_is_left_out(tmp_path: Path) -> None:
    contents = {
        "cut": '{"argu', "bare": "{}", "list": "[]",
        "words": '{"arguments": [1], "started": 1.0}',
        "times": '{"arguments": [], "started": "soon"}',
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / ".jobs" / name).mkdir(parents=True)
        (tmp_path / ".jobs" / name / "job.json").write_text(content)
    written(tmp_path, "whole")
    assert [job.name for job in jobs.jobs(tmp_path)] == ["whole"]
    assert jobs.jobs(tmp_path / "nowhere") == []


def test_removing_a_job_leaves_what_a_link_leads_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    job = written(tmp_path / "root", "linked")
    job.folder.symlink_to(outside)
    job.remove()
    assert outside.is_dir() and jobs.jobs(tmp_path / "root") == []
