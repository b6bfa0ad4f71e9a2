"""Damage to a file, drawn from a seed: bits, spans, whole files, JSON values, safetensors headers.

`damaged(name, seed, data, form)` gives the same damage for the same arguments, and a label.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMS = ("bytes", "text", "lines", "json", "safetensors")
DEEP = 100_000
OTHERS = {  # what may lie under a file's name in its place
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "gzip": bytes.fromhex("1f8b08000000000000034b4c4a06 00c241243503000000"),
    "zip": b"PK\x03\x04\x14\0\0\0\x08\0",
    "parquet": b"PAR1\x15\x04\x15PAR1",
    "pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0]\x94.",
    "ELF": b"\x7fELF\x02\x01\x01" + bytes(9),
    "HTML": b"<!doctype html><title>404</title>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "JSON array": b"[1, 2, 3]",
    "JSON object": b"{}",
    "JSON null": b"null",
    "JSON text": b'"text"',
    "UTF-16": "text".encode("utf-16"),
    "white space": b" \n\t\n",
    "zeros": bytes(4096),
}
VALUES: tuple[Any, ...] = (  # of JSON, and of no JSON that Python reads as one
    None, True, False, 0, -1, 1, 2, 0.5, -3.7, 1e308, 10**18, 10**400, float("nan"), float("inf"),
    "", "text", "0", "../../outside", "/etc/passwd", "\ud800", "\0", "x" * 100_000,
    [], {}, [None], [[]], [1, 2, 3], {"a": None}, ["text"], [0] * 1000,
    {"type": "FixedLength", "length": 0}, {"type": "Strip", "content": "e", "start": 9, "stop": 9},
)  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """What was done to a file: new content, or None for a folder in its place; "gone" for none."""

    label: str
    data: bytes | None
    gone: bool = False

    def put(self, path: Path) -> None:
        """Do it to the file at `path`."""
        path.unlink()
        if self.gone:
            return
        if self.data is None:
            path.mkdir()
        else:
            path.write_bytes(self.data)


def damaged(kind: str, seed: int, data: bytes, form: str) -> Damage:
    """Damage of that number to a file of this kind, whose content is `data`."""
    rng = random.Random(f"{kind} {seed}")
    makers = dict(ANY)
    if form in ("text", "lines", "json"):
        makers |= TEXT
    if form in ("json", "lines"):
        makers |= JSON
    if form == "safetensors":
        makers |= TENSORS
    # Damage that knows the form gets past the parser, so it is drawn more often than the rest.
    own = [name for name in makers if name not in ANY]
    chance = rng.random()
    names = own if own and chance < 0.6 else WHOLE if chance > 0.9 else SPANS
    names = [*JSON] if JSON.keys() <= makers.keys() and chance < 0.5 else names
    name = rng.choice(names)
    found = makers[name](rng, data, form)
    if found.data == data:  # a flip of nothing, a swap of zeros
        return Damage("a byte more", data + b"\xff")
    return Damage(f"{name}: {found.label}" if found.label else name, found.data, found.gone)


Maker = Callable[[random.Random, bytes, str], Damage]


# ---------------------------------------------------------------- any file


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    """Beginning and end of a span, short or long."""
    most = rng.choice((1, 8, 64, 512, max(1, len(data) // 2)))
    start = rng.randrange(max(1, len(data)))
    return start, min(len(data), start + rng.randint(1, most))


def _flips(rng: random.Random, data: bytes, form: str) -> Damage:
    new, count = bytearray(data), rng.choice((1, 1, 1, 2, 5, 50))
    places = [rng.randrange(len(data)) for _ in range(count)] if data else []
    for place in places:
        new[place] ^= 1 << rng.randrange(8)
    return Damage(f"{count} at {places[:1]}", bytes(new))


def _cut(rng: random.Random, data: bytes, form: str) -> Damage:
    at = rng.choice((rng.randrange(len(data) + 1), len(data) - 1, min(len(data), 8)))
    return Damage(f"at {at} of {len(data)}", data[: max(0, at)])


def _zeroed(rng: random.Random, data: bytes, form: str) -> Damage:
    start, end = _span(rng, data)
    return Damage(f"{start}-{end}", data[:start] + bytes(end - start) + data[end:])


def _repeated(rng: random.Random, data: bytes, form: str) -> Damage:
    start, end = _span(rng, data)
    return Damage(f"{start}-{end}", data[:end] + data[start:end] + data[end:])


def _left_out(rng: random.Random, data: bytes, form: str) -> Damage:
    start, end = _span(rng, data)
    return Damage(f"{start}-{end}", data[:start] + data[end:])


def _swapped(rng: random.Random, data: bytes, form: str) -> Damage:
    width = rng.choice((1, 4, 64, 512))
    if len(data) < 2 * width:
        return _flips(rng, data, form)
    a = rng.randrange(len(data) - 2 * width + 1)
    b = rng.randrange(a + width, len(data) - width + 1)
    new = data[:a] + data[b : b + width] + data[a + width : b] + data[a : a + width]
    return Damage(f"{width} bytes at {a} and {b}", new + data[b + width :])


def _rubbish(rng: random.Random, data: bytes, form: str) -> Damage:
    more = rng.choice((b"\0", b"\n", b"}", b"\xff\xfe", rng.randbytes(100), bytes(4096)))
    return Damage(f"{len(more)} bytes", data + more)


def _random(rng: random.Random, data: bytes, form: str) -> Damage:
    return Damage("", rng.randbytes(rng.choice((1, 16, 1000, 20_000))))


def _another(rng: random.Random, data: bytes, form: str) -> Damage:
    name = rng.choice(list(OTHERS))
    return Damage(name, OTHERS[name])


ANY: dict[str, Maker] = {
    "bits flipped": _flips,
    "cut": _cut,
    "zeroed": _zeroed,
    "repeated": _repeated,
    "left out": _left_out,
    "swapped": _swapped,
    "rubbish appended": _rubbish,
    "random bytes": _random,
    "empty": lambda rng, data, form: Damage("", b""),
    "gone": lambda rng, data, form: Damage("", b"", gone=True),
    "a folder": lambda rng, data, form: Damage("", None),
    "another kind": _another,
}
WHOLE = ("random bytes", "empty", "gone", "a folder", "another kind")
SPANS = [name for name in ANY if name not in WHOLE]


# ---------------------------------------------------------------- text and JSON


def _not_utf8(rng: random.Random, data: bytes, form: str) -> Damage:
    at = rng.randrange(len(data) + 1)
    return Damage(f"at {at}", data[:at] + rng.choice((b"\xff", b"\xc3\x28", b"\x80")) + data[at:])


def _bom(rng: random.Random, data: bytes, form: str) -> Damage:
    name = rng.choice(("utf-8-sig", "utf-16", "utf-32"))
    return Damage(name, data.decode().encode(name))


def _line_ends(rng: random.Random, data: bytes, form: str) -> Damage:
    return Damage("", data.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b"\0"))))


TEXT: dict[str, Maker] = {"not UTF-8": _not_utf8, "BOM": _bom, "line ends": _line_ends}


def _value(rng: random.Random, data: bytes, form: str) -> Damage:
    """One value of a document set to another, of a wrong kind or size."""

    def change(holder: Any, key: Any) -> str:
        holder[key] = rng.choice(VALUES)
        return f"= {holder[key]!r:.20}"

    return _edited(rng, data, form, change)


def _scaled(rng: random.Random, data: bytes, form: str) -> Damage:
    """A number made negative, huge, or of another kind; other values as `_value`."""

    def change(holder: Any, key: Any) -> str:
        was = holder[key]
        if isinstance(was, bool) or not isinstance(was, int | float):
            holder[key] = rng.choice(VALUES)
        else:
            made = (-was, was * 2**20, was + 1, was - 1, str(was), was * 1.5, [was], was * 10**9)
            holder[key] = rng.choice(made)
        return f"= {holder[key]!r:.20}"

    return _edited(rng, data, form, change)


def _missing(rng: random.Random, data: bytes, form: str) -> Damage:
    def change(holder: Any, key: Any) -> str:
        del holder[key]
        return ""

    return _edited(rng, data, form, change)


def _nested(rng: random.Random, data: bytes, form: str) -> Damage:
    """A value, or the whole, nested deeply: Python's reader, its copies and its writers recurse."""
    depth = rng.choice((60, 300, 900, DEEP, DEEP))
    left, right = rng.choice((("[", "]"), ('{"a":', "}")))
    deep = left * depth + "1" + right * depth
    if rng.random() < 0.4:
        return Damage(f"{left} {depth}", deep.encode())
    mark = "a mark that no file holds"

    def change(holder: Any, key: Any) -> str:
        holder[key] = mark
        return f"{left} {depth}"

    found = _edited(rng, data, form, change)
    return Damage(found.label, (found.data or b"").replace(f'"{mark}"'.encode(), deep.encode()))


def _twice(rng: random.Random, data: bytes, form: str) -> Damage:
    """A key that is there again, with another value."""
    text = data.decode()
    at = text.find("{")
    found, place = _places(_documents(text, form)[0][1]), rng.random()
    keys = [key for holder, key in found if isinstance(key, str)]
    if at < 0 or not keys:
        return _flips(rng, data, form)
    key = keys[int(place * len(keys))]
    value = json.dumps(rng.choice(VALUES))
    return Damage(
        key[:40], f"{text[: at + 1]}{json.dumps(key)}: {value}, {text[at + 1 :]}".encode()
    )


def _more(rng: random.Random, data: bytes, form: str) -> Damage:
    def change(holder: Any, key: Any) -> str:
        if isinstance(holder, dict):
            holder[f"{key}_more"] = rng.choice(VALUES)
        else:
            holder.insert(key, rng.choice(VALUES))
        return "more"

    return _edited(rng, data, form, change)


def _documents(text: str, form: str) -> list[tuple[int, Any]]:
    """(line, document) of a JSON file, or of each line."""
    if form == "json":
        return [(0, json.loads(text))]
    return [(n, json.loads(line)) for n, line in enumerate(text.split("\n")) if line.strip()]


def _places(document: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of values in a document; of long lists the first few."""
    found: list[tuple[Any, Any]] = []
    todo = [document]
    while todo:
        holder = todo.pop()
        keys = list(holder) if isinstance(holder, dict) else range(min(4, len(holder)))
        for key in keys if not isinstance(holder, dict) else keys[:60]:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                todo.append(holder[key])
    return found


def _edited(
    rng: random.Random, data: bytes, form: str, change: Callable[[Any, Any], str]
) -> Damage:
    text = data.decode()
    number, document = rng.choice(_documents(text, form))
    whole = {"whole": document}
    places = _places(whole)
    # Values near the top say what the rest means.
    near = [place for place in places if place[0] is document]
    holder, key = rng.choice(near if near and rng.random() < 0.5 else places)
    label = f"{key!r:.40} {change(holder, key)}"
    written = json.dumps(whole.get("whole"))
    if form == "lines":
        lines = text.split("\n")
        lines[number] = written
        written = "\n".join(lines)
    return Damage(label.strip(), written.encode())


JSON: dict[str, Maker] = {
    "value": _value,
    "number": _scaled,
    "missing": _missing,
    "nested": _nested,
    "key twice": _twice,
    "added": _more,
}


# ---------------------------------------------------------------- safetensors


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _with_header(header: dict[str, Any] | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _length(rng: random.Random, data: bytes, form: str) -> Damage:
    size = rng.choice((0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1, len(data), len(data) * 2))
    return Damage(str(size), struct.pack("<Q", size) + data[8:])


def _tensor(rng: random.Random, data: bytes, form: str) -> Damage:
    """A tensor's entry changed: offsets, dtype, shape or name."""
    header, body = _header(data)
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    entry = header[name]
    what = rng.choice(("offsets", "overlap", "dtype", "shape", "name", "gone", "swapped", "value"))
    if what == "offsets":
        start, end = entry["data_offsets"]
        entry["data_offsets"] = rng.choice(
            ([start, end + 1], [end, start], [-1, end], [start + 4, end + 4], [0, 2**62], [start])
        )
    elif what == "overlap":
        entry["data_offsets"] = header[other]["data_offsets"]
    elif what == "dtype":
        entry["dtype"] = rng.choice(
            ("F16", "BF16", "I32", "F64", "U8", "nonsense", None, "F8_E4M3")
        )
    elif what == "shape":
        shape = entry["shape"]
        entry["shape"] = rng.choice(
            (shape[::-1], [], [*shape, 1], [2**40], [-1], [0], shape[:-1], "text", [2**63, 2**63])
        )
    elif what == "name":
        header[f"{name}.more"] = header.pop(name)
    elif what == "gone":
        del header[name]
    elif what == "swapped":
        header[name], header[other] = header[other], header[name]
    else:
        header[name] = rng.choice(VALUES)
    return Damage(f"{name} {what}", _with_header(header, body))


def _extra(rng: random.Random, data: bytes, form: str) -> Damage:
    """A tensor more, of nothing or of some bytes."""
    header, body = _header(data)
    count = rng.choice((0, 1, 1000))
    header["extra"] = {
        "dtype": "F32", "shape": [count], "data_offsets": [len(body), len(body) + 4 * count],
    }  # fmt: skip
    return Damage(str(count), _with_header(header, body + bytes(4 * count)))


def _huge(rng: random.Random, data: bytes, form: str) -> Damage:
    header, body = _header(data)
    what = rng.choice(("deep", "long", "many", "metadata"))
    if what == "deep":
        return Damage(what, _with_header(b"[" * DEEP + b"]" * DEEP, body))
    if what == "long":
        return Damage(what, _with_header(json.dumps(header).encode() + b" " * 5_000_000, body))
    if what == "many":
        for number in range(20_000):
            header[f"none.{number}"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    else:
        header["__metadata__"] = rng.choice(VALUES)
    return Damage(what, _with_header(header, body))


def _numbers(rng: random.Random, data: bytes, form: str) -> Damage:
    """Weights of no meaning: NaN, infinity, or all alike."""
    header, body = _header(data)
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    start, end = rng.choice(entries)["data_offsets"]
    value = rng.choice((float("nan"), float("inf"), 1e38, 0.0))
    count = min(rng.choice((1, 4, 10**9)), (end - start) // 4)
    new = body[:start] + struct.pack("<f", value) * count + body[start + 4 * count :]
    return Damage(f"{count} of {value}", data[: len(data) - len(body)] + new)


TENSORS: dict[str, Maker] = {
    "header length": _length,
    "tensor": _tensor,
    "tensor added": _extra,
    "huge header": _huge,
    "weights": _numbers,
}
