"""Pipes, devices, sockets, loops of links and files without an end: one line, and no waiting."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from analysis import documents, files
from kernels.errors import DataError, ModelError, RunError
from midus_model import load, load_config, load_tokenizer
from midus_model.loading import SHIPPED
from workbench.cli import app
from workbench.runs import RunFolder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "to pipe.txt").symlink_to("pipe.txt")
    (tmp_path / "to zero.txt").symlink_to("/dev/zero")
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(10 * 2**40)  # sparse: it takes no room
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pipe.txt", "is a named pipe"),
        ("to pipe.txt", "is a named pipe"),
        ("to zero.txt", "is a device"),
        ("large.txt", "GB unpacked"),
        ("/dev/zero", "is a device"),
        ("/dev/stdin", "is a|cannot read|no data at|no readable"),
        ("/proc/self/mem", "cannot read"),
    ],
)
def test_data_that_is_no_file(name: str, said: str, there: Path) -> None:
    if name.startswith("/") and not Path(name).exists():
        pytest.skip(f"no {name} here")
    with pytest.raises(DataError, match=said) as raised:
        documents(str(there / name), model="pico")
    assert "\n" not in str(raised.value)


def test_a_socket_is_no_data(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may have 100 bytes
    with socket.socket(socket.AF_UNIX) as open_socket:
        open_socket.bind("socket.txt")
        with pytest.raises(DataError, match="is a socket"):
            documents("socket.txt", model="pico")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "secret.txt").write_text("x" * 100)

    def refused(path: Path, *given: Any, **more: Any) -> Any:
        if path.name == "secret.txt":
            raise PermissionError(13, "Permission denied")
        return usual(path, *given, **more)

    usual = Path.open

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match="cannot read .*secret.txt: Permission denied"):
        documents(str(tmp_path / "secret.txt"), model="pico")


def test_a_packed_file_without_an_end(tmp_path: Path, monkeypatch: Any) -> None:
    import gzip

    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(bytes(10**6)))
    monkeypatch.setattr(files, "_most_bytes", lambda: 10**5)
    with pytest.raises(DataError, match="GB unpacked"):
        documents(str(tmp_path / "a.txt.gz"), model="pico")


def test_a_folder_with_such_entries_and_a_loop_of_links_is_read(there: Path) -> None:
    (there / "large.txt").unlink()
    (there / "to zero.txt").unlink()
    (there / "again").symlink_to(there)
    (there / "a.txt").write_text("a text that is long enough to be measured " * 3)
    assert [item.id for item in documents(str(there), model="pico").items] == ["a.txt"]


def test_a_name_that_is_no_utf8_goes_all_the_way(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff$a[red].txt")
    (tmp_path / name).write_text("a text long enough to be measured here\n" * 40)
    run = tmp_path / "run"
    line = ["importance", "pico", "--data", str(tmp_path / name), "--method", "gradient"]
    done = CliRunner().invoke(app, [*line, "--context", "64", "-o", str(run)])
    assert done.exit_code == 0, (done.output, done.exception)
    opened = RunFolder.open(run)
    assert opened.manifest["parameters"]["data"] == str(tmp_path / name)
    assert opened.load_table("importance_before").attrs["data"] == "\\udcff$a[red].txt"
    for odd in (os.fsdecode(b"run\xff"), "run\nrun", "run\x1b[31m"):
        done = CliRunner().invoke(app, [*line, "-o", str(tmp_path / odd)])
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1, done.output
        assert "what no text does" in done.stderr and not (tmp_path / odd).exists()
    done = CliRunner().invoke(app, ["figures", str(run), "--format", "svg"])
    assert done.exit_code == 0, (done.output, done.exception)


@pytest.mark.parametrize("entry", ["tokenizer.json", "model.safetensors", "extra.json"])
def test_a_model_s_folder_with_a_pipe(entry: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED["pico"], folder)
    (folder / entry).unlink(missing_ok=True)
    os.mkfifo(folder / entry)
    for read in (load, load_config, load_tokenizer):
        with pytest.raises(ModelError, match="is a named pipe, not a file"):
            read(str(folder))


def test_a_run_s_folder_of_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(RunError, match="is no run folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(RunError):
        RunFolder.open("/dev/zero")
    for line in (["rank", "pico", "-o", "/dev/null"], ["figures", "/dev/zero"]):
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1, done.output
