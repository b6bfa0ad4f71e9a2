"""What goes wrong: the process is killed, or the disk is full, at the n-th filesystem call.

An audit hook sees Python's own calls. What native code writes (safetensors, parquet, torch,
tokenizers, pyarrow) is seen by wrapping the functions that ask it to. Points that count, in order:

- before every call that changes something below the watched folder;
- right after a file was opened for writing, when it is empty, and when half of it is written;
- after native code has written half of a file, and all of it.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
RANDOM = re.compile(r"(?<=\.)[0-9a-f]{8,12}(?=\.)")  # in the names of drafts
NEW = os.O_CREAT | os.O_TRUNC  # a file that is begun anew
# event -> where its paths are among the arguments, and where the folders they are relative to
CALLS = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.utime": ((0, 3),),
}
GROWS = ("open", "os.mkdir", "os.link", "os.symlink")  # what a full disk refuses


@dataclass
class Faults:
    """Counts the points below `root`; at point number `at` the process dies, or the disk is full.

    `finished` is a copy of `root` after an undisturbed run: half of a file is half of that.
    """

    root: Path
    at: int = 0
    kind: str = "kill"
    finished: Path | None = None
    count: int = 0
    full: bool = False
    seen: list[str] = field(default_factory=list)
    busy: bool = False

    def install(self) -> None:
        sys.addaudithook(self._hear)
        _wrap_native(self)

    # ------------------------------------------------------------ points

    def point(self, what: str, effect: Callable[[], None] | None = None) -> None:
        """One more point. `effect` is what is done to the files if it is here that all ends."""
        self.count += 1
        self.seen.append(what)
        if self.count != self.at or self.full:
            return
        self.busy = True
        if effect is not None:
            effect()
        self.busy = False
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.full = True

    def watches(self, path: Path | None) -> bool:
        return path is not None and path.is_relative_to(self.root)

    def name(self, path: Path) -> str:
        return RANDOM.sub("*", str(path.relative_to(self.root)))

    # ------------------------------------------------------------ Python's own calls

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.busy or (event != "open" and event not in CALLS):
            return
        self.busy = True  # finding out where a path leads makes events of its own
        try:
            paths = [path for path in _paths(event, args) if self.watches(path)]
        finally:
            self.busy = False
        if not paths:
            return
        path = paths[0]
        assert path is not None
        what = f"{event} {self.name(path)}"
        self.point(f"before {what}")
        if event == "open":
            flags = int(args[2])
            self.point(f"after {what}", lambda: self._begin(path, flags, half=False))
            self.point(f"half of {what}", lambda: self._begin(path, flags, half=True))
        if self.full and event in GROWS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def _begin(self, path: Path, flags: int, half: bool) -> None:
        """The file as it lies there once it was opened, or once half of it is written."""
        handle = os.open(path, flags & ~os.O_EXCL, 0o666)
        if half:
            os.write(handle, self._half(path) if flags & NEW else b'{"ti')
        os.close(handle)

    def _half(self, path: Path) -> bytes:
        final = self.finished and self.finished / path.relative_to(self.root)
        content = final.read_bytes() if final and final.is_file() else b'{"half": [1, '
        return content[: len(content) // 2]

    # ------------------------------------------------------------ native code

    def native(
        self, write: Callable[..., Any], error: Callable[[], Exception], place: Callable[..., Any]
    ) -> Callable[..., Any]:
        """`write`, with points before it, half-way and after it."""

        @functools.wraps(write)
        def written(*args: Any, **kwargs: Any) -> Any:
            path = _absolute(place(*args, **kwargs))
            if self.busy or not self.watches(path):
                return write(*args, **kwargs)
            assert path is not None
            what = f"{getattr(write, '__name__', 'native')} {self.name(path)}"
            self.point(f"before {what}")
            if self.full:
                raise error()
            self.busy = True
            try:
                found = write(*args, **kwargs)
            finally:
                self.busy = False
            self.point(f"half of {what}", lambda: os.truncate(path, path.stat().st_size // 2))
            if self.full:
                raise error()
            self.point(f"after {what}")
            return found

        return written


def _paths(event: str, args: tuple[Any, ...]) -> list[Path | None]:
    if event == "open":
        flags = args[2]
        if not isinstance(flags, int) or not flags & WRITES:
            return []
        return [_absolute(args[0])]
    return [
        _absolute(args[at], None if folder is None else args[folder]) for at, folder in CALLS[event]
    ]


def _absolute(path: Any, folder: Any = None) -> Path | None:
    """The path without links in its folders; None for what is no path, such as an open file."""
    if isinstance(path, int) or path is None:
        return None
    text = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(text):
        with suppress(OSError):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
    whole = os.path.abspath(text)
    return Path(os.path.realpath(os.path.dirname(whole))) / os.path.basename(whole)


def _path(given: Any) -> Any:
    return given if isinstance(given, str | os.PathLike) else None


def _wrap_native(faults: Faults) -> None:
    """Whoever asks native code to write a file is heard. Each full disk has the library's error."""
    import pandas
    import pyarrow.parquet
    import safetensors.numpy
    import safetensors.torch
    import torch
    from safetensors import SafetensorError
    from transformers import PreTrainedTokenizerFast

    words = f"{os.strerror(errno.ENOSPC)} (os error {errno.ENOSPC})"
    for module in (safetensors.torch, safetensors.numpy):
        module.serialize_file = faults.native(
            module.serialize_file,
            lambda: SafetensorError(f"I/O error: {words}"),
            lambda tensors, filename, *rest, **more: filename,
        )
    for owner, name in ((pyarrow.parquet, "write_table"), (pandas.DataFrame, "to_parquet")):
        wrapped = faults.native(
            getattr(owner, name),
            lambda: OSError(errno.ENOSPC, f"Error writing bytes to file. Detail: {words}"),
            lambda table, where, *rest, **more: _path(where),
        )
        setattr(owner, name, wrapped)
    torch.save = faults.native(
        torch.save,
        lambda: RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        lambda thing, f, *rest, **more: _path(f),
    )
    PreTrainedTokenizerFast._save_pretrained = faults.native(  # type: ignore[method-assign]
        PreTrainedTokenizerFast._save_pretrained,
        lambda: Exception(words),  # noqa: TRY002 (that is what tokenizers raises)
        lambda self, save_directory, *rest, **more: os.path.join(save_directory, "tokenizer.json"),
    )
