"""Named arrays and what they are of in one safetensors file, replaced whole and checked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kernels import files
from kernels.errors import DataError, MidusError

CHECK = "sha256"


def save_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    about: Mapping[str, str],
    error: type[MidusError] = DataError,
) -> Path:
    """Write arrays and `about`; raises `error`, one line, where they cannot be written."""
    plain = {name: np.array(array, order="C") for name, array in arrays.items()}
    known = dict(about) | {CHECK: _digest(plain, about)}
    return files.write_file(path, lambda draft: save_file(plain, draft, known), error=error)


def load_arrays(
    path: str | os.PathLike[str], error: type[MidusError] = DataError
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What `save_arrays` wrote; raises `error`, one line, where it is not as it was written."""
    try:
        with safe_open(path, framework="np") as file:
            about = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as problem:
        line = " ".join(str(problem).split())
        raise error(f"{path} is damaged ({line}); remove it to begin anew") from problem
    if about.pop(CHECK, None) != _digest(arrays, about):
        raise error(f"{path} is damaged (the checksum differs); remove it to begin anew")
    return arrays, about


def _digest(arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(about.items())).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\n{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


__all__ = ["load_arrays", "save_arrays"]
