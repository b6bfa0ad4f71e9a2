"""Jobs: real commands in processes of their own, cancelled, failed, lost, and seen by others."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

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
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    seen.again()
    assert seen.status == "running"
    seen.cancel()
    assert until(seen, "cancelled") == "cancelled"


def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    job = jobs.start(["rank", "nowhere"], tmp_path, "wrong")
    assert until(job, "failed") == "failed"
    assert "no model at 'nowhere'" in job.message and "\n" not in job.message


def test_a_job_that_was_lost_is_not_taken_for_another_process(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        folder = tmp_path / ".jobs" / "lost"
        folder.mkdir(parents=True)
        about = {
            "arguments": ["rank"], "output": str(tmp_path / "lost"), "pid": stranger.pid,
            "created": psutil.Process(stranger.pid).create_time() - 100, "started": 1.0,
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(about))
        job = jobs.one(tmp_path, "lost")
        assert job.status == "interrupted"
        job.cancel()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("name", ["../outside", "..", ".", "other"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(RunError, match="no job"):
        jobs.one(tmp_path / "root", name)


def test_what_is_damaged_or_points_elsewhere_is_left_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    good = {"arguments": [], "started": 1.0}
    contents = {
        "cut": '{"argu', "bare": "{}", "list": "[]",
        "away": json.dumps({**good, "output": str(outside)}),
        "named": json.dumps({**good, "output": str(outside / "named")}),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / "root" / ".jobs" / name).mkdir(parents=True)
        (tmp_path / "root" / ".jobs" / name / "job.json").write_text(content)
    assert jobs.jobs(tmp_path / "root") == []
    assert jobs.jobs(tmp_path / "nowhere") == []
