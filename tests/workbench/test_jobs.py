"""Jobs: real commands in processes of their own, cancelled, failed, lost, and seen by others."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from kernels.errors import RunError
from workbench import commands, jobs, processes
from workbench.cli import app
from workbench.progress import PLACE
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
    gone = {"arguments": ["rank"], "pid": os.getpid(), "process": "gone", "started": 1.0}
    (folder / "job.json").write_text(json.dumps(gone | about))
    return jobs.one(root, name)


def begun(root: Path, name: str, *line: str) -> subprocess.Popen[bytes]:
    """A process as a job's is, once it has said its first line."""
    told = str(root.resolve() / ".jobs" / name / "progress.json")
    started = subprocess.Popen(
        line, start_new_session=True, stdout=subprocess.PIPE, env=os.environ | {PLACE: told}
    )
    assert started.stdout is not None
    started.stdout.readline()
    return started


def ended(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


HOLDS = """
import sys
from kernels import locks
with locks.hold(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(place: Path) -> Iterator[int]:
    """Another process holds `place`; its number."""
    line = [sys.executable, "-c", HOLDS, str(place)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        yield holder.pid
        holder.stdin.close()


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
    started = begun(tmp_path, "deaf", "sh", "-c", deaf)
    job = written(tmp_path, "deaf", pid=started.pid, process=processes.identity(started.pid))
    assert job.status == "running" and group(started.pid)
    job.cancel(wait=0.2)
    assert job.status == "cancelled" and not group(started.pid)
    ended(started)


def test_what_a_killed_server_left_goes_when_jobs_are_listed(tmp_path: Path) -> None:
    kept = written(tmp_path, "kept").folder
    (tmp_path / ".jobs" / "kept" / ".job.json.0123456789ab.tmp").mkdir()
    (tmp_path / ".jobs" / "half removed").mkdir()
    assert [job.folder for job in jobs.jobs(tmp_path)] == [kept]
    assert sorted(p.name for p in (tmp_path / ".jobs").rglob("*")) == ["job.json", "kept"]
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / ".jobs" / "link").symlink_to(outside)
    jobs.jobs(tmp_path)
    assert outside.is_dir() and (tmp_path / ".jobs" / "link").is_symlink()


def test_a_job_that_a_thread_is_making_is_not_taken_for_left(tmp_path: Path) -> None:
    """Locks on files tell processes apart, not the sessions of one server."""
    (tmp_path / ".jobs" / "new").mkdir(parents=True)
    listing = threading.Thread(target=jobs.jobs, args=(tmp_path,))
    with jobs._starting:  # as `start` has it until job.json is there
        listing.start()
        listing.join(0.2)
        assert listing.is_alive() and (tmp_path / ".jobs" / "new").is_dir()
        (tmp_path / ".jobs" / "new" / "job.json").write_text("{}")
    listing.join()
    assert (tmp_path / ".jobs" / "new" / "job.json").is_file()


def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    job = jobs.start(["rank", "nowhere"], tmp_path, "wrong")
    second = jobs.start(["rank", "nowhere"], tmp_path, "wrong")  # before there is a run folder
    assert second.name == "wrong-2"
    second.cancel()
    assert until(job, "failed") == "failed"
    assert "no model at 'nowhere'" in job.message and "\n" not in job.message


@pytest.mark.parametrize("planted", [False, True])
def test_a_process_that_is_not_the_jobs_is_left_alone(tmp_path: Path, planted: bool) -> None:
    """Its number was given anew; or somebody wrote it, with all that is known of the process."""
    stranger = begun(tmp_path, "another", "sh", "-c", "echo; sleep 60")
    try:
        known = processes.identity(stranger.pid) if planted else "of an earlier boot 17"
        job = written(tmp_path, "lost", pid=stranger.pid, process=known)
        assert job.status == "interrupted"
        job.cancel()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        ended(stranger)


@pytest.mark.parametrize("step", [-3600, 3600])
def test_a_clock_that_is_set_loses_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """The kernel's boot time, from which psutil counts, moves with the wall clock."""
    started = begun(tmp_path, "long", "sh", "-c", "echo; sleep 60")
    try:
        job = written(tmp_path, "long", pid=started.pid, process=processes.identity(started.pid))
        wall = time.time
        boot = psutil.boot_time()
        monkeypatch.setattr("time.time", lambda: wall() + step)
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + step, raising=False)
        for seen in (job, jobs.one(tmp_path, "long")):
            assert seen.status == "running"
            for action in (seen.again, seen.remove):
                with pytest.raises(RunError, match="is running; cancel it first"):
                    action()
        assert started.poll() is None
        job.cancel()
        assert job.status == "cancelled"
    finally:
        started.kill()
        ended(started)


def test_a_live_job_is_seen_whatever_became_of_its_description(tmp_path: Path) -> None:
    started = begun(tmp_path, "lost", "sh", "-c", "echo; sleep 60")
    try:
        job = written(tmp_path, "lost")
        job.folder.mkdir()
        (tmp_path / ".jobs" / "lost" / "job.json").write_text("[" * 10**5)
        for action in (job.again, job.remove, jobs.one(tmp_path, "lost").remove):
            with pytest.raises(RunError, match="is running; cancel it first"):
                action()
        assert job.folder.is_dir()
    finally:
        started.kill()
        ended(started)


def test_a_folder_that_another_writes_is_neither_removed_nor_begun(tmp_path: Path) -> None:
    job = written(tmp_path, "mine", arguments=["costs", "pico"])
    job.folder.mkdir()
    with held_elsewhere(job.folder) as pid:
        for action in (job.again, job.remove):
            with pytest.raises(RunError, match=f"mine is being written by process {pid} on"):
                action()
    assert job.folder.is_dir() and not (tmp_path / ".jobs" / "mine" / "output.txt").exists()
    job.remove()
    assert not list(tmp_path.rglob("*mine*"))


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
    told = {"done": 50, "total": 100, "first": 40, "text": "ablation", "spent": 20.0}
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


DAMAGED = {
    "cut": '{"argu', "bare": "{}", "list": "[]", "empty": "", "null": "null",
    "nested": "[" * 10**5, "nested objects": '{"a":' * 10**5, "less nested": "[" * 400 + "]" * 400,
    "words": '{"arguments": [1], "started": 1.0}',
    "times": '{"arguments": [], "started": "soon"}',
    "no number": '{"arguments": [], "started": NaN}',
    "never": '{"arguments": [], "started": 1e999}',
    "truth": '{"arguments": [], "started": true}',
    "digits": '{"arguments": [], "started": ' + "9" * 5000 + "}",
    "process": '{"arguments": [], "started": 1, "pid": [3], "process": "x"}',
    "large process": '{"arguments": [], "started": 1, "pid": 99999999999999999999}',
    "negative process": '{"arguments": [], "started": 1, "pid": -1}',
    "half a pair": '{"arguments": ["\\ud800"], "started": 1}',
    "latin": b'{"arguments": ["\xe9"], "started": 1}',
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_is_shown_as_that(tmp_path: Path, case: str) -> None:
    content = DAMAGED[case]
    (tmp_path / ".jobs" / "bad").mkdir(parents=True)
    path = tmp_path / ".jobs" / "bad" / "job.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    written(tmp_path, "whole")
    whole, bad = jobs.jobs(tmp_path)
    assert (whole.name, bad.name, bad.status) == ("whole", "bad", "damaged")
    assert "damaged" in bad.message and "\n" not in bad.message and len(bad.message) < 400
    assert bad.command == "" and bad.progress == (None, "", None)
    with pytest.raises(RunError, match="damaged"):
        bad.again()
    bad.remove()
    assert [job.name for job in jobs.jobs(tmp_path)] == ["whole"]
    assert jobs.jobs(tmp_path / "nowhere") == []


@pytest.mark.parametrize("case", ["pipe", "device", "folder", "link to nothing"])
def test_what_is_no_file_is_neither_waited_for_nor_shown_as_a_job(
    tmp_path: Path, case: str
) -> None:
    make: dict[str, Any] = {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": lambda path: path.mkdir(),
        "link to nothing": lambda path: path.symlink_to("nowhere"),
    }
    job = written(tmp_path, "mine")
    folder = tmp_path / ".jobs" / "mine"
    (folder / "job.json").unlink()
    for name in ("job.json", "progress.json", "code", "output.txt"):
        make[case](folder / name)
    make[case](tmp_path / "manifest.json")
    assert job.status == "damaged" and job.progress == (None, "", None) and job.message


@pytest.mark.parametrize(
    "told",
    [
        '{"done": 1e999, "total": 3, "first": 0, "text": "x", "spent": 3}',
        '{"done": 1, "total": 1e400, "first": 0, "text": "x", "spent": 3}',
        '{"done": NaN, "total": 3, "first": 0, "text": "x", "spent": 3}',
        '{"done": 1, "total": ' + "9" * 400 + ', "first": 0, "text": "x", "spent": 3}',
        '{"done": 1, "total": 3, "first": 0, "text": "x", "spent": NaN}',
        '{"done": -1, "total": 3, "first": 0, "text": "x", "spent": 3}',
        '{"done": [1], "total": {}, "first": 0, "text": "x", "spent": 3}',
        "[" * 10**5, "", "5", '{"text": "x"}',
    ],
)  # fmt: skip
def test_progress_that_is_none_is_not_shown(tmp_path: Path, told: str) -> None:
    job = written(tmp_path, "odd")
    (tmp_path / ".jobs" / "odd" / "progress.json").write_text(told)
    assert job.progress == (None, "", None)


def test_of_long_outputs_the_end_is_read(tmp_path: Path) -> None:
    job = written(tmp_path, "long")
    with (tmp_path / ".jobs" / "long" / "output.txt").open("wb") as file:
        file.truncate(2**36)  # no disk holds as much, nor a memory
        file.seek(0, os.SEEK_END)
        file.write(b"\nmidus: no room\xff\n")
    (tmp_path / ".jobs" / "long" / "code").write_text("9" * 10**6)
    assert job.status == "failed" and job.message == "no room\ufffd"


def test_a_manifest_that_is_damaged_is_said(tmp_path: Path) -> None:
    job = written(tmp_path, "mine")
    job.folder.mkdir()
    (job.folder / "manifest.json").write_text("[" * 10**5)
    assert job.status == "failed" and "manifest.json is damaged" in job.message


PLANTED = {
    "another folder": (["costs", "pico", "--output", "{outside}"], "says where to write"),
    "in one word": (["costs", "pico", "--output={outside}"], "says where to write"),
    "in short": (["costs", "pico", "-o{outside}"], "says where to write"),
    "twice": (["costs", "pico", "-o", "{outside}", "-o", "{outside}"], "says where to write"),
    "a model": (
        ["amplify", "pico", "--heads", "1:1", "--gain", "2", "--save", "{outside}"],
        "--save says where to write",
    ),
    "a benchmark": (["bench", "--out", "{outside}"], "no command with a run folder"),
    "figures": (["figures", "{outside}"], "no command with a run folder"),
    "an option first": (["--debug", "costs", "pico"], "no command with a run folder"),
    "a file": (["/bin/sh", "-c", "touch {outside}"], "no command with a run folder"),
    "a path to a command": (["./costs"], "no command with a run folder"),
    "nothing": ([], "no command line of midus"),
    "an option of none": (["costs", "pico", "--figures", "{outside}"], "does not understand"),
    "a half option": (["costs", "pico", "--context"], "does not understand"),
    "more words": (["costs", "pico", "pico"], "does not understand"),
    "an end of options": (["costs", "pico", "--", "-o", "{outside}"], "does not understand"),
    "help": (["costs", "--help"], "starts nothing"),
    "an end of text": (["costs", "pi\0co"], "no command line of midus"),
    "too much": (["costs", "x" * 10**6], "no command line of midus"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_job_writes_nowhere_else(tmp_path: Path, case: str) -> None:
    words, message = PLANTED[case]
    outside = tmp_path / "outside"
    words = [word.replace("{outside}", str(outside)) for word in words]
    job = written(tmp_path / "root", "planted", arguments=words)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=message) as caught:
        job.again()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert sorted(tmp_path.rglob("*")) == before and job.status == "interrupted"
    with pytest.raises(RunError, match=message):
        jobs.start(words, tmp_path / "root", "again")


@pytest.mark.parametrize("what", [".jobs/planted", ".jobs/planted/output.txt", "planted", ".jobs"])
def test_a_planted_job_follows_no_link(tmp_path: Path, what: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    written(root, "planted", arguments=["costs", "pico"])
    link = root / what
    if link.is_dir():
        link.rename(outside)
    else:
        outside.write_text("mine")
    link.symlink_to(outside)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="is a link"):
        jobs.one(root, "planted").again()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_every_option_of_a_job_that_is_a_place_is_known() -> None:
    """A new one that is written to belongs into `commands.ELSEWHERE`."""
    read = {"importance"}
    for command in app.registered_commands:
        parameters = inspect.signature(command.callback or app).parameters
        places = {name for name, one in parameters.items() if "Path" in str(one.annotation)}
        if commands.OUTPUT in parameters:
            assert places <= {commands.OUTPUT, *commands.ELSEWHERE, *read}, command.name
    assert places


def test_removing_a_job_leaves_what_a_link_leads_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    job = written(tmp_path / "root", "linked")
    job.folder.symlink_to(outside)
    job.remove()
    assert outside.is_dir() and jobs.jobs(tmp_path / "root") == []
