"""Functions in C for CPU tensors, compiled once by the machine's own compiler and kept.

As Triton does for a GPU: nothing to install, and where there is no compiler, or it fails, the ops
are PyTorch's and numpy's, with the same results. The library lies in the cache folder
(`kernels.cache`), under a name that holds what it was made from: sources, compiler, flags, and what
the compiler takes this processor for. CC names another compiler; MIDUS_COMPILED=0 does without.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from kernels.cache import cache_folder
from kernels.errors import MidusError
from kernels.files import replacing
from kernels.threads import is_observed

SOURCES = (Path(__file__).with_name("product_key_select") / "select.c",)
FLAGS = ("-O3", "-funroll-loops", "-march=native", "-std=gnu11", "-fPIC", "-shared")
LIMIT_S = 120  # for a compiler to answer

_F32, _I32, _I64 = torch.float32, torch.int32, torch.int64  # of a tensor whose address goes
_int, _long = ctypes.c_int, ctypes.c_int64
ARGUMENTS: dict[str, list[Any]] = {
    "midus_select": [_F32, _F32, _long, _int, _int, _I32, _I32, _int, _F32, _I64],
}


class NotCompiled(Exception):
    """Why there is no library, in a line."""


@lru_cache
def _library() -> ctypes.CDLL | None:
    command = _compiler()
    if command is None or os.environ.get("MIDUS_COMPILED") == "0" or os.name != "posix":
        return None
    try:
        library = _loaded(command)
    except (NotCompiled, MidusError, OSError) as error:
        line = " ".join(str(error).split())[:300]
        warnings.warn(
            f"{command[0]} did not make the functions for this processor, and PyTorch's run in "
            f"their place, more slowly: {line} (MIDUS_COMPILED=0 does not try)",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    for name, arguments in ARGUMENTS.items():
        kinds = [ctypes.c_void_p if isinstance(x, torch.dtype) else x for x in arguments]
        getattr(library, name).argtypes = kinds
        getattr(library, name).restype = ctypes.c_int
    return library


def serves(tensor: torch.Tensor) -> bool:
    """Whether the functions are here and may work on a tensor; makes them at the first call.

    Not where PyTorch's ops are watched: these are none of them.
    """
    return tensor.device.type == "cpu" and not is_observed() and _library() is not None


def call(name: str, *arguments: torch.Tensor | int) -> None:
    """Call a function of ARGUMENTS; a tensor, contiguous and on the CPU, goes as its address.

    Raises:
        MemoryError: where the function had none.
        TypeError: for a tensor of another dtype, which C would read beyond its end.
    """
    given = []
    for x, kind in zip(arguments, ARGUMENTS[name], strict=True):
        if isinstance(x, torch.Tensor):
            if x.dtype != kind or x.device.type != "cpu" or not x.is_contiguous():
                raise TypeError(f"{name} takes {kind} in one piece on the CPU, not {x.dtype}")
            x = x.data_ptr()
        given.append(x)
    function: Callable[..., int] = getattr(_library(), name)
    if function(*given):
        raise MemoryError(f"{name} had no memory for its work")


def _compiler() -> list[str] | None:
    """The command: CC, else cc, gcc or clang where one is."""
    given = shlex.split(os.environ.get("CC", ""))
    if given:
        return given
    return next(([found] for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def _run(command: list[str]) -> bytes:
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompiled(str(error)) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        raise NotCompiled(said)
    return done.stdout


def _loaded(command: list[str]) -> ctypes.CDLL:
    """The library, compiled where it is not kept already, or where what is kept is not whole."""
    target = [*command, "-march=native", "-dM", "-E", "-x", "c", os.devnull]
    made_from = [_run(target), _run([*command, "--version"]), " ".join(FLAGS).encode()]
    made_from += [source.read_bytes() for source in SOURCES]
    name = hashlib.sha256(b"\0".join(made_from)).hexdigest()[:16] + ".so"
    kept = cache_folder() / "compiled" / name
    try:
        if not (kept.exists() and _is_ours(kept) and _is_whole(kept)):
            with replacing(kept) as draft:
                _compile(command, draft)
        if _is_ours(kept):
            return ctypes.CDLL(str(kept))
    except (MidusError, OSError):  # a cache that cannot be written, or run from
        pass
    with tempfile.TemporaryDirectory(prefix="midus-") as own:  # what is loaded stays
        _compile(command, Path(own) / name)
        return ctypes.CDLL(str(Path(own) / name))


def _compile(command: list[str], library: Path) -> None:
    """A loader reads what the file's tables name; behind them there is room for its checksum."""
    _run([*command, *FLAGS, "-o", str(library), *map(str, SOURCES)])
    with open(library, "ab") as file:
        file.write(hashlib.sha256(library.read_bytes()).digest())


def _is_whole(library: Path) -> bool:
    content = library.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _is_ours(path: Path) -> bool:
    """Whether nobody but this user and root could have written it, or put it there."""
    for place in (path, path.parent):
        found = place.lstat()
        writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if stat.S_ISLNK(found.st_mode) or found.st_uid not in (0, os.getuid()) or writable:
            return False
    return True
