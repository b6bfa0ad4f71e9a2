"""Files that may be damaged: JSON with one kind of error, and the errors of libraries as a line.

`tokenizers`, `safetensors`, `pyarrow` and `transformers` say what is wrong with a file by exceptions
of every kind, Rust's panics among them, which are not even an `Exception`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kernels.errors import MidusError

DEEPEST = 64  # levels of a JSON document; what is written has a few, and copying recurses
LONGEST = 200  # characters of what a library says


def read_json(path: Path) -> Any:
    """What a file of JSON in UTF-8 holds.

    Raises OSError where it cannot be read, and ValueError, in one line, for all that it can be
    wrong in: no UTF-8, no JSON, a key twice in one object, text that is no Unicode, nested too
    deeply.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(found)
    if "\\u" in text:
        _check_unicode(found)
    return found


TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {twice[:40]!r} twice in one object")
    return found


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(DEEPEST + 1):
        inside = [part.values() if isinstance(part, dict) else part for part in level]
        level = [one for part in inside for one in part if isinstance(one, dict | list)]
        if not level:
            return
    raise ValueError(TOO_DEEP)


def _check_unicode(found: Any) -> None:
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds text that is no Unicode") from None


@contextmanager
def in_one_line(line: Callable[[Exception | BaseException], MidusError]) -> Iterator[None]:
    """Turns whatever a library raises, a panic of Rust's too, into the error that `line` makes.

    For calls of libraries alone: around our own code it would hide our faults. Our own errors, and
    an interruption, pass as they are.
    """
    try:
        yield
    except MidusError:
        raise
    except Exception as error:
        raise line(error) from error
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise line(error) from error


def said(error: BaseException) -> str:
    """What an error says, in one line, its beginning; a KeyError's key alone says nothing."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        text = f"it has no {text}"
    elif isinstance(error, RecursionError):
        text = TOO_DEEP
    return (text or type(error).__name__)[:LONGEST]
