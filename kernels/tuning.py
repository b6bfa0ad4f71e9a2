"""Launch numbers that were measured on a device, in place of those written in the kernels.

A JSON file keyed by device name, kernel and what the kernel works on:

    {"schema": 1, "devices": {"NVIDIA H200": {"select": {
        "N=256 K=32 HALF=32 NATIVE=1, many": {"BT": 32, "num_warps": 8}}}}}

MIDUS_TUNING names the file ("none": no file); by default it is `tuning.json` in this folder. They
change how work is cut up, and so the order of sums, never what is computed.
`python -m midus_model.bench.device` measures them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from kernels.backend import interpreted
from kernels.errors import DataError
from kernels.reading import read_json, said

SCHEMA = 1
SHIPPED = Path(__file__).with_name("tuning.json")
FEW = 16  # tokens up to which a launch is one of "few"
OPTIONS = {"num_warps": (1, 2, 4, 8, 16, 32), "num_stages": (1, 2, 3, 4, 5, 6, 7, 8)}

# By kernel: the constants that tell one case from another, and those that may be chosen.
KERNELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "select": (("N", "K", "HALF", "NATIVE"), ("BT", "NB", "DC")),
    "score_gradient": (("N", "K", "HALF"), ("BT", "KC")),
    "key_gradient": (("N", "K", "HALF"), ("BT", "NB")),
    "headwise": (("N", "K", "HALF", "NATIVE", "R", "NATIVE_PROJ"), ("BT", "NB", "DC", "RB")),
    "read": (("R", "K"), ("BR", "KC", "RB")),
    "piece": (("R", "K"), ("CH", "EC", "RB")),
    "join": (("R",), ("EC", "RB")),
    "atomic": (("R", "K"), ("KC", "RB")),
}
Key = tuple[int | str, ...]
Table = dict[str, dict[str, dict[Key, dict[str, int]]]]  # device, kernel, case


def key_of(kernel: str, config: dict[str, Any], tokens: int) -> Key:
    """The case a launch belongs to: its constants' values, and "few" or "many" tokens."""
    return (*(int(config[x]) for x in KERNELS[kernel][0]), "few" if tokens <= FEW else "many")


def written(kernel: str, key: Key) -> str:
    """A case as the file has it."""
    *values, bucket = key
    named = zip(KERNELS[kernel][0], values, strict=True)
    return " ".join(f"{name}={value}" for name, value in named) + f", {bucket}"


def tuned(kernel: str, config: dict[str, Any], tokens: int) -> dict[str, Any]:
    """`config` as a launch over so many tokens takes it on the current device.

    Raises:
        DataError: where the file is no tuning file.
    """
    if _tried is not None:
        _seen[kernel] = key_of(kernel, config, tokens)
        return {**config, **_tried.get(kernel, {})}
    table = _table(os.environ.get("MIDUS_TUNING", ""))
    if not table:
        return config
    found = table.get(device_name(), {}).get(kernel, {}).get(key_of(kernel, config, tokens))
    return {**config, **found} if found else config


def device_name() -> str:
    """As the file has it: the current GPU's; "interpreter" where Triton interprets."""
    if interpreted():
        return "interpreter"
    return _gpu_name(torch.cuda.current_device()) if torch.cuda.is_available() else "none"


@lru_cache
def _gpu_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


@lru_cache
def _table(path: str) -> Table:
    if path == "none" or (not path and not SHIPPED.exists()):
        return {}
    return read(Path(path) if path else SHIPPED)


_tried: dict[str, dict[str, int]] | None = None
_seen: dict[str, Key] = {}


@contextmanager
def trying(choices: dict[str, dict[str, int]]) -> Iterator[dict[str, Key]]:
    """Launches take `choices`, by kernel, in the file's place, whatever their case: for those who
    measure. Gives the case each kernel was launched for.
    """
    global _tried
    _tried = choices
    _seen.clear()
    try:
        yield _seen
    finally:
        _tried = None


def read(path: Path) -> Table:
    """The table of a file.

    Raises:
        DataError: in one line, where it cannot be read, or anything in it is not as it must be.
    """
    try:
        return parsed(read_json(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no tuning file: {said(error)}") from None


def parsed(given: Any) -> Table:
    """The table in what JSON gave. Raises ValueError, saying what is wrong and where."""
    if not isinstance(given, dict) or given.get("schema") != SCHEMA:
        raise ValueError(f"it must be an object with schema {SCHEMA}")
    devices = _object(given.get("devices"), "devices")
    return {
        device: {
            kernel: _cases(device, kernel, cases) for kernel, cases in _object(of, device).items()
        }
        for device, of in devices.items()
    }


def _cases(device: str, kernel: str, given: Any) -> dict[Key, dict[str, int]]:
    if kernel not in KERNELS:
        raise ValueError(f"{kernel!r} is no kernel; there are {', '.join(KERNELS)}")
    found = {}
    for text, chosen in _object(given, f"{kernel} of {device}").items():
        for name, value in _object(chosen, f"{kernel}, {text}").items():
            _check(f"{name} of {kernel}, {text}", name, value, KERNELS[kernel][1])
        found[_key(kernel, text)] = chosen
    return found


def _object(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{where} must be an object, not {given!r:.60}")
    return given


def _check(where: str, name: str, value: Any, tunable: tuple[str, ...]) -> None:
    if name not in tunable and name not in OPTIONS:
        raise ValueError(f"{where} cannot be chosen; {', '.join((*tunable, *OPTIONS))} can")
    if type(value) is not int or not 1 <= value <= 4096:
        raise ValueError(f"{where} is {value!r:.60}; it must be a whole number of 1 to 4096")
    allowed = OPTIONS.get(name)
    if allowed and value not in allowed:
        raise ValueError(f"{where} is {value}; it must be one of {', '.join(map(str, allowed))}")
    if not allowed and value & (value - 1):
        raise ValueError(f"{where} is {value}; it must be a power of two")


def _key(kernel: str, text: str) -> Key:
    names = KERNELS[kernel][0]
    constants, _, bucket = text.partition(", ")
    pairs = [pair.partition("=")[::2] for pair in constants.split()]
    right = [name for name, _ in pairs] == list(names) and bucket in ("few", "many")
    if not right or not all(value.isdecimal() for _, value in pairs):
        form = " ".join(f"{name}=..." for name in names)
        raise ValueError(f"{text!r:.80} is no case of {kernel}; write '{form}, few' or ', many'")
    return (*(int(value) for _, value in pairs), bucket)


def as_json(table: Table) -> dict[str, Any]:
    """What a file of `table` holds."""
    devices = {
        device: {
            kernel: {written(kernel, key): chosen for key, chosen in cases.items()}
            for kernel, cases in of.items()
        }
        for device, of in table.items()
    }
    return {"schema": SCHEMA, "devices": devices}
