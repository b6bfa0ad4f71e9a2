"""`midus explore` as a process: it ends when it is told to, with all that it started but jobs."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

SECONDS = 120


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The explorer on a free port once it answers, in a session of its own."""
    port = free_port()
    line = [sys.executable, "-m", "workbench.cli", "explore", "--headless", "--port", str(port)]
    line += ["--runs", str(folder / "runs")]
    with (folder / "said.txt").open("wb") as said:
        server = subprocess.Popen(line, stdout=said, stderr=said, start_new_session=True)
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and server.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield server, port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@contextmanager
def page(port: int) -> Iterator[socket.socket]:
    """A connection as an open page's: a websocket that the server sends to."""
    key = base64.b64encode(os.urandom(16)).decode()
    asked = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        f"Origin: http://127.0.0.1:{port}\r\nSec-WebSocket-Protocol: streamlit\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), SECONDS) as opened:
        opened.sendall(asked.encode())
        assert b"101" in opened.recv(4096).split(b"\r\n")[0]
        yield opened


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.verify)
                       for n in (signal.SIGINT, signal.SIGHUP))],
)  # fmt: skip
def test_the_explorer_ends_when_it_is_told_to(tmp_path: Path, number: int) -> None:
    with served(tmp_path) as (server, port), page(port):
        started = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(number)
        code = server.wait(SECONDS)
        asked = {signal.SIGINT: (0, 130), signal.SIGTERM: (0, 143, -15), signal.SIGHUP: (-1, 129)}
        assert code in asked[signal.Signals(number)], (tmp_path / "said.txt").read_text()
        assert not [child for child in started if child.is_running()]
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
    said = (tmp_path / "said.txt").read_text()
    assert "Traceback" not in said and "Aborted" not in said
