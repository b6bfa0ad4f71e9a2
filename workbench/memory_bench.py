"""What counting memory use costs, beside the forward passes that it watches.

`python -m workbench.memory_bench --tokens 1000000` reads as many tokens twice, chunk by chunk and
in turn: with plain forward passes, and with `analysis.memory_usage`, over the same batches. Then
`memory_usage` reads the whole at once, and what the process took at its peak is noted.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from analysis import memory_usage, tables
from analysis.documents import Document, Documents, documents
from analysis.memory.stream import batches_of
from kernels import files
from midus_model import input_device, load
from midus_model.bench.report import machine_of

CHUNK = 20_000  # tokens between two turns


def measure(model: Any, docs: Documents, chunk: int = CHUNK) -> dict[str, Any]:
    """Seconds of plain passes and of `memory_usage`, chunk by chunk, and the peak of memory.

    `ratio` is of the sums; `ratio_median` of the chunks' own ratios, which one slow moment of the
    machine does not move.
    """
    parts = chunks(docs, chunk)
    plain_passes(model, parts[0])
    memory_usage(model, parts[0])
    base = psutil.Process().memory_info().rss
    plain: list[float] = []
    usage: list[float] = []
    for number, part in enumerate(parts):
        turns: list[tuple[list[float], Callable[..., Any]]]
        turns = [(plain, plain_passes), (usage, memory_usage)]
        for times, run in turns if number % 2 == 0 else turns[::-1]:
            start = time.perf_counter()
            run(model, part)
            times.append(time.perf_counter() - start)
    chunked = _peak()
    memory_usage(model, docs)
    tokens = sum(len(item.ids) for item in docs)
    return {
        "benchmark": "memory usage",
        "machine": machine_of(input_device(model).type),
        "model": tables.display_name(model),
        "tokens": tokens,
        "chunks": len(parts),
        "plain_seconds": sum(plain),
        "usage_seconds": sum(usage),
        "ratio": sum(usage) / sum(plain),
        "ratio_median": statistics.median(u / p for u, p in zip(usage, plain, strict=True)),
        "usage_tokens_per_second": tokens / sum(usage),
        "base_bytes": base,
        "peak_bytes_in_chunks": chunked,
        "peak_bytes_at_once": _peak(),
        "versions": tables.versions(),
    }


def plain_passes(model: Any, docs: Documents) -> None:
    """The passes that `memory_usage` makes, with nobody looking."""
    device = input_device(model)
    with torch.inference_mode():
        for batch, _ in batches_of(docs.windows, device):
            model.model(input_ids=batch.ids, use_cache=False)


def chunks(docs: Documents, tokens: int) -> list[Documents]:
    """The documents in parts of about so many tokens each."""
    parts: list[list[int]] = [[]]
    held = 0
    for index, item in enumerate(docs):
        if held >= tokens:
            parts.append([])
            held = 0
        parts[-1].append(index)
        held += len(item.ids)
    return [docs.subset(part) for part in parts]


def _peak() -> int:
    """The most bytes that this process has had in memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def of_tokens(docs: Documents, tokens: int) -> Documents:
    """So many tokens in all: documents as long as a few windows, over and over as far as needed."""
    length = 4 * docs.context
    pieces = [piece for item in docs for piece in item.ids.split(length) if len(piece) > 1]
    items: list[Document] = []
    while tokens > 1:
        piece = pieces[len(items) % len(pieces)][:tokens]
        items.append(Document(str(len(items)), piece, docs.sha256))
        tokens -= len(piece)
    return Documents(docs.name, items, docs.context)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print one line, and write the numbers where --out says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="pico-midus", help="what midus_model.load takes")
    parser.add_argument("--data", help="what analysis.documents takes (default: held-out texts)")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="a JSON file")
    given = parser.parse_args(arguments)
    if given.tokens < 2:
        parser.error(f"--tokens is {given.tokens}; give at least 2")
    warnings.filterwarnings("ignore", message=".*one document, so intervals")
    docs = of_tokens(documents(given.data, model=given.model), given.tokens)
    found = measure(load(given.model), docs)
    print(
        f"{found['model']}, {found['tokens']:,} tokens: usage {found['usage_seconds']:.1f} s, "
        f"plain passes {found['plain_seconds']:.1f} s, ratio {found['ratio']:.3f} "
        f"(median of {found['chunks']} chunks {found['ratio_median']:.3f}); "
        f"peak {found['peak_bytes_at_once'] / 2**20:,.0f} MiB, "
        f"in chunks {found['peak_bytes_in_chunks'] / 2**20:,.0f} MiB"
    )
    if given.out is not None:
        files.write_json(given.out, found)


if __name__ == "__main__":
    main()
