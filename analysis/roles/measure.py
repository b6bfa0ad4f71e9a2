"""Head roles of a model: goes over constructed sequences and documents, head by head.

Shape letters: B sequences, T tokens, S heads of a block that are measured, H heads, D head size,
d hidden size, R rows, n tokens whose logits are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from analysis.distributed import agreed
from analysis.documents import Documents, Window
from analysis.estimates import Work, a_time, current, did, duration, expect, now, slowest, timed
from analysis.roles.labels import CONFIDENCE, MARGIN, ROLES, THRESHOLDS, Tally, labels, scores_of
from analysis.roles.null import MIXES, NULL_SHARE, fewer, highest, shuffled
from analysis.roles.patterns import (
    copying,
    looks_up_next,
    matching_measures,
    text_measures,
)
from analysis.roles.probes import (
    KINDS,
    SHORTEST,
    Probe,
    delimiter_tokens,
    make_probes,
    ordinary_tokens,
    start_tokens,
)
from analysis.roles.watch import Sight, watch
from analysis.subject import describe, loaded_with
from analysis.tables import SCHEMA, json_attrs
from analysis.within import SHARE
from kernels.errors import DataError, MidusError
from midus_model import HeadSite, blocks, head_sites, input_device, mixing_of
from midus_model.config import is_whole
from midus_model.maps import weight_of

Progress = Callable[[int, int, str], None]

# With no data given: enough texts for an interval, few enough for half a minute on a laptop.
DEFAULT_DOCUMENTS = 20
PROBE_LENGTH = 256  # tokens of a constructed sequence, where the context holds as many
PROBES, TEXTS = "constructed sequences", "documents"  # the stages
WATCHING = 2.0  # about what a pass with its patterns takes, in forward passes
BATCH, PATTERN_BYTES = 8, 128 * 2**20  # sequences at once, by what one block's patterns may take


@timed
def head_roles(
    model: Any = None,
    data: Any = None,
    *,
    sequences: int = 32,
    windows: int = 128,
    thresholds: Mapping[str, float] | None = None,
    limit: int | None = None,
    seed: int = 0,
    within: float | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The role of every head of a base or up-scaled model, "none" unless the evidence is clear.

    Clear is what is above a threshold with an error bound, above every score of the same heads with
    their weights mixed (`analysis.roles.null`), and ahead of other roles.

    A memory head's pattern is that of the attention in its block, and what it writes is what it
    reads from its bank. Induction, retrieval, duplicate and previous token, and offsets are
    measured on constructed sequences of random tokens, the other roles on the documents.

    Args:
        model: what `midus_model.load` takes; by default "pico".
        data: what `analysis.documents` takes; by default 20 documents of pico's held-out text.
        sequences: constructed sequences of each kind (repeated, permuted, needle), at least 2.
        windows: at most that many windows of the documents, evenly spread over them.
        thresholds: by score, instead of those in `analysis.roles.labels.THRESHOLDS`.
        limit: at most that many documents.
        seed: of the constructed sequences.
        within: seconds that all of this may take: fewer sequences of each kind and fewer windows,
            at least 2 of each. `.attrs["within"]` says how many, and given as `within` measures
            the same again.
        progress: called with (done, total, text).

    Returns:
        A row a head in model order: layer, kind, head, source_layer; `role`, with `role_score` and
        `role_margin`, its lead over the best rival (NaN where "none"); `offset`, the peak relative
        position in tokens; `induction` and each score of `analysis.roles.labels.MEASURED`, and
        beside it, as `<score>_stderr`, its standard error over sequences or documents. 0 is chance
        and 1 all there is; but `logit_raise` is in logits, and `written` is the norm of what the
        head writes over that of the stream. Without a tokenizer `delimiter` is NaN. How the table
        was made stands in `.attrs`.

    Raises:
        MidusError: where an argument, the model or the data cannot be used.

    >>> table = head_roles("pico", limit=2)  # doctest: +SKIP
    """
    levels = _thresholds(thresholds)
    for name, number in (("sequences", sequences), ("windows", windows)):
        if not is_whole(number) or number < 2:
            raise MidusError(f"{name} is {number!r}; it must be a whole number of at least 2")
    if data is None and limit is None:
        limit = DEFAULT_DOCUMENTS
    network, docs = loaded_with(model, data, limit)
    reader = _Reader(network, docs, progress)
    mixes = [_Reader(network, docs, None) for _ in range(MIXES)]
    each = reader.begin(int(sequences), int(windows), seed)
    for number, mix in enumerate(mixes):
        with shuffled(network, seed, number):
            mix.read_probes(fewer(each), seed)
    reader.read_probes(each, seed)
    count, marks = reader.as_many(int(windows)), delimiter_tokens(docs)
    for number, mix in enumerate(mixes):
        with shuffled(network, seed, number):
            mix.read_texts(fewer(count), marks, whole=True)
    reader.read_texts(count, marks)
    null = highest([scores_of(mix.tally) for mix in mixes])
    return reader.table(levels, seed, null)


def _thresholds(given: Mapping[str, float] | None) -> dict[str, float]:
    for name, value in (given or {}).items():
        if name not in THRESHOLDS:
            raise MidusError(
                f"there is no threshold {name!r}; it must be one of {', '.join(THRESHOLDS)}"
            )
        if not isinstance(value, (int, float)) or not 0 < value < 1:
            raise MidusError(f"the threshold of {name} is {value!r}; it must lie between 0 and 1")
    return THRESHOLDS | dict(given or {})


class _Reader:
    """Pools what is seen of every head, over constructed sequences and documents."""

    def __init__(self, model: Any, docs: Documents, progress: Progress | None):
        self.model, self.docs, self.progress = model, docs, progress
        self.sites = head_sites(model)
        self.here: dict[int, list[int]] = {}  # block -> indices of its sites
        for index, site in enumerate(self.sites):
            self.here.setdefault(site.layer, []).append(index)
        self.tally = Tally(len(self.sites))
        self.device = input_device(model)
        self.found: dict[str, Any] = {}

    # ------------------------------------------------ what it takes

    def begin(self, sequences: int, windows: int, seed: int) -> int:
        """Say what there is to do; the sequences of each kind, fewer where the time is short."""
        work, length = current(), min(self.docs.context, PROBE_LENGTH)
        texts = self._texts(windows)
        tokens = sum(len(window.ids) for window in texts)
        every = tokens + MIXES * sum(len(one.ids) for one in self._texts(fewer(windows)))
        probes = len(KINDS) * (sequences + MIXES * fewer(sequences))
        stages = {PROBES: WATCHING * probes * length, TEXTS: WATCHING * every}
        if work is None or not work.limited:
            expect("head roles", self.model, self.docs, stages, lambda s, _: a_time(s), limit=False)
            return sequences
        work.facts |= {"windows_of": len(texts), "sequences_of": sequences}
        if work.repeat is not None:
            each = int(work.repeat["sequences"])
            work.begin("head roles", 0.0, {})
        else:
            each = self._in_time(work, stages, seed, length, tokens // len(texts))
        each = min(each, sequences)
        work.record["sequences"] = work.facts["sequences"] = each
        if each < sequences:
            work.leave_out(f"{sequences - each} of {sequences} sequences of each kind")
        return each

    def _in_time(
        self, work: Work, stages: Mapping[str, float], seed: int, length: int, window: int
    ) -> int:
        """How many sequences of each kind half of the time holds, from reading one of each."""
        began = now()
        trial = _Reader(self.model, self.docs, None)
        trial.read_probes(1, seed)
        took = slowest(now() - began)
        speed = took / (WATCHING * len(KINDS) * length)
        if (least := (1 + MIXES) * 2 * (took + WATCHING * window * speed)) > SHARE * work.time_left:
            raise MidusError(
                f"within is {duration(work.within or 0)}, and the least of head roles, 2 sequences "
                f"of each kind and 2 windows, and as many of mixed heads, takes about "
                f"{duration(1.2 * (least + took), up=True)}"
            )
        work.begin("head roles", speed, stages)
        return max(2, agreed(int(SHARE * work.time_left / 2 / took / (1 + MIXES * NULL_SHARE))))

    def as_many(self, windows: int) -> int:
        """The windows of documents to read, fewer where the time is short."""
        work = current()
        if work is None or not work.limited:
            return windows
        texts = self._texts(windows)
        if work.repeat is not None:
            found = int(work.repeat["windows"])
        else:
            each = WATCHING * sum(len(w.ids) for w in texts) / len(texts) * work.speed(PROBES)
            found = max(2, agreed(int(SHARE * work.time_left / each / (1 + MIXES * NULL_SHARE))))
        found = min(found, windows)
        work.record["windows"] = found
        if found < len(texts):
            work.leave_out(f"{len(texts) - found} of {len(texts)} windows")
        return found

    def _texts(self, most: int) -> list[Window]:
        """At most so many windows, evenly spread, longest first."""
        every = self.docs.windows
        spread = [every[index * len(every) // most] for index in range(most)]
        return sorted(spread if len(every) > most else every, key=lambda one: -len(one.ids))

    # ------------------------------------------------ constructed sequences

    @torch.no_grad()
    def read_probes(self, each: int, seed: int) -> None:
        start = start_tokens(self.docs.tokenizer)
        vocabulary = ordinary_tokens(self.model.config, self.docs.tokenizer)
        length = min(self.docs.context, PROBE_LENGTH)
        reach = min(length - len(start), self._narrowest(vocabulary, length))
        if reach < SHORTEST:
            raise DataError(
                f"a head sees {reach} tokens (the context is {self.docs.context}); "
                f"head roles need at least {SHORTEST}"
            )
        probes = make_probes(
            vocabulary, start=start, length=length, reach=reach, each=each, seed=seed
        )
        right, size = 0, self._batch(length)
        for at in range(0, len(probes), size):
            chosen = dict(list(enumerate(probes))[at : at + size])
            right += self._read_probes(chosen, max(1, len(start)))
            did(PROBES, WATCHING * len(chosen) * length)
            if self.progress:
                self.progress(at + len(chosen), len(probes), PROBES)
        steps = sum(len(probe.rows) for probe in probes if probe.kind == "needle")
        self.found |= {
            "sequences": {"kinds": list(KINDS), "each": each, "length": length, "reach": reach},
            "needle_accuracy": right / steps,
        }

    def _narrowest(self, vocabulary: list[int], length: int) -> int:
        """How many tokens a row sees in the block that sees fewest."""
        windows: list[int] = []
        trial = torch.tensor(vocabulary[:1] * length, device=self.device)
        watch(self.model, trial[None], lambda sight: windows.append(sight.window or length))
        return min(windows)

    def _read_probes(self, chosen: Mapping[int, Probe], first: int) -> int:
        """Measures of some sequences; how many tokens of their needles the model gets right.

        `first`: the first position of an ordinary token that is not the first token.
        """
        probes, units = list(chosen.values()), list(chosen)
        ids = torch.stack([probe.ids for probe in probes]).to(self.device)
        rows = [probe.rows.to(self.device) for probe in probes]
        raised: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []
        lookups: list[tuple[int, int, torch.Tensor]] = []

        def see(sight: Sight) -> None:
            layer = sight.layer
            for at, probe in enumerate(probes):
                weights = self._weights(sight, at)
                if probe.kind == "needle":
                    lookups.append((at, layer, looks_up_next(weights, ids[at], rows[at])))
                    continue
                found = matching_measures(weights, ids[at], sight.window)
                if probe.kind == "repeated":
                    own, reference = self._logits(sight, at, rows[at], probe, first)
                    weights = weights[:, rows[at], first:]
                    found["copying"], by_row = copying(weights, own, reference)
                    raised.append((at, layer, by_row, found["copying"][1]))
                else:  # induction is defined on exact repetition
                    del found["prefix_matching"]
                self._add(units[at], layer, found)

        stream, hidden = watch(self.model, ids, see)
        mean_square = stream.float().square().mean(-1)
        scale = torch.rsqrt(mean_square + self.model.model.norm.variance_epsilon)  # [B, T]
        for at, layer, by_row, mass in raised:
            measure = _total(by_row * scale[at, rows[at]]), mass
            self._add(units[at], layer, {"logit_raise": measure})
        said = {
            at: self.model.lm_head(hidden[at, rows[at]]).argmax(-1).to(self.device)
            == ids[at, rows[at] + 1]
            for at, probe in enumerate(probes)
            if probe.kind == "needle"
        }
        for at, layer, looked in lookups:
            measure = _total(looked & said[at]), torch.tensor(float(len(rows[at])))
            self._add(units[at], layer, {"retrieval": measure})
        return sum(int(right.sum()) for right in said.values())

    # ------------------------------------------------ documents

    @torch.no_grad()
    def read_texts(self, most: int, marks: torch.Tensor | None, whole: bool = False) -> None:
        """Measures of so many windows; not `whole`, fewer where the time does not reach."""
        grams = {layer: self._gram(layer) for layer in self.here}
        windows, work, done = self._texts(most), current(), 0
        while done < len(windows):
            chosen = windows[done : done + self._batch(len(windows[done].ids))]
            passes = WATCHING * sum(len(window.ids) for window in chosen)
            limited = work and work.limited and done >= 2 and not whole
            if limited and not work.goes_on(TEXTS, done, passes):
                work.cut(TEXTS, done)
                work.leave_out(f"{len(windows) - done} windows that the time did not reach")
                break
            self._read_texts(chosen, marks, grams)
            done += len(chosen)
            did(TEXTS, passes)
            if self.progress:
                self.progress(done, len(windows), TEXTS)
        self.found["windows"] = {"read": done, "of": len(self.docs.windows)}
        if work and work.limited and not whole:
            work.facts["windows"] = done

    def _read_texts(
        self,
        windows: Sequence[Window],
        marks: torch.Tensor | None,
        grams: Mapping[int, torch.Tensor | None],
    ) -> None:
        ids = torch.zeros(len(windows), len(windows[0].ids), dtype=torch.long)
        for row, window in enumerate(windows):  # padded on the right, where nobody looks
            ids[row, : len(window.ids)] = window.ids

        def see(sight: Sight) -> None:
            for at, window in enumerate(windows):
                size = len(window.ids)
                known = None if marks is None else torch.isin(window.ids, marks)
                found = text_measures(self._weights(sight, at, size), known, sight.window)
                norms = _norms(self._outputs(sight, at)[:size], grams[sight.layer])  # [T, S]
                stream = sight.stream[at, :size].float().norm(dim=-1, keepdim=True)
                found["written"] = _total((norms / stream).T), torch.tensor(float(size))
                self._add(window.unit, sight.layer, found)

        watch(self.model, ids.to(self.device), see)

    # ------------------------------------------------ of one sequence

    def _add(self, unit: int, layer: int, measures: Mapping[str, Any]) -> None:
        for name, measure in measures.items():
            self.tally.add(name, unit, self.here[layer], measure)

    def _batch(self, length: int) -> int:
        """How many sequences of that length go through the model at once."""
        heads = self.model.config.num_attention_heads
        return max(1, min(BATCH, PATTERN_BYTES // (heads * length**2 * 4)))

    def _here(self, layer: int) -> list[HeadSite]:
        return [self.sites[index] for index in self.here[layer]]

    def _weights(self, sight: Sight, at: int, size: int | None = None) -> torch.Tensor:
        """Patterns [S, T, T] of one sequence without its padding.

        A block attends with the heads that it has sites for, in their order: all of them, or in a
        memory block those with memory.
        """
        return sight.patterns[at, :, :size, :size].float()

    def _outputs(self, sight: Sight, at: int) -> torch.Tensor:
        """Outputs [T, S, D] of one sequence."""
        sites, found = self._here(sight.layer), sight.outputs[at].float()
        return torch.stack([found[:, site.start : site.stop] for site in sites], 1)

    def _logits(
        self, sight: Sight, at: int, rows: torch.Tensor, probe: Probe, first: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each head adds to logits at `rows`, but for the final norm's scale, [S, R, n] each:
        of the sequence's own tokens from `first` on, and of its reference tokens."""
        tokens = torch.cat([probe.ids[first:], probe.references]).to(self.device)
        norm = weight_of(self.model.model.norm).to(self.device, torch.float32)
        words = weight_of(self.model.lm_head)
        toward = words[tokens.to(words.device)].to(norm) * norm  # [n, d]
        mixing = self._mixing(sight.layer)
        toward = toward if mixing is None else toward @ mixing  # [n, H*D]
        sites = self._here(sight.layer)
        by_head = torch.stack([toward[:, site.start : site.stop] for site in sites])  # [S, n, D]
        logits = torch.einsum("rsd,snd->srn", self._outputs(sight, at)[rows], by_head)
        own = len(probe.ids) - first
        return logits[..., :own], logits[..., own:]

    def _mixing(self, layer: int) -> torch.Tensor | None:
        """The matrix [d, H*D] that head outputs go through; None: each writes its own slice."""
        module = mixing_of(blocks(self.model)[layer])
        return None if module is None else weight_of(module).to(self.device, torch.float32)

    def _gram(self, layer: int) -> torch.Tensor | None:
        """The same matrix as products within each head's slice, [S, D, D], which give norms."""
        mixing = self._mixing(layer)
        if mixing is None:
            return None
        parts = torch.stack([mixing[:, site.start : site.stop] for site in self._here(layer)])
        return parts.transpose(1, 2) @ parts

    # ------------------------------------------------ the table

    def table(
        self, thresholds: dict[str, float], seed: int, null: Mapping[str, float]
    ) -> pd.DataFrame:
        names = ("layer", "kind", "head", "source_layer")
        columns: dict[str, Any] = {n: [getattr(site, n) for site in self.sites] for n in names}
        scores = scores_of(self.tally)
        role, role_score, role_margin = labels(scores, thresholds, null)
        columns |= {"role": role, "role_score": role_score, "role_margin": role_margin}
        columns["offset"] = scores.offset
        for name in ("induction", *(other for other in scores.score if other != "induction")):
            columns |= {name: scores.score[name], f"{name}_stderr": scores.stderr[name]}
        table = pd.DataFrame(columns)
        attrs = describe(self.model, self.docs, seed=seed) | self.found
        attrs |= {
            "table": "head_roles",
            "unit": "share above chance",
            "thresholds": thresholds,
            "margin": MARGIN,
            "confidence": CONFIDENCE,
            "comparisons": len(table) * len(ROLES),
            "units": scores.units,
            "null": {name: null[name] for name in thresholds},
        }
        table.attrs = dict(json_attrs({"schema": SCHEMA, **attrs}).items())
        return table


def _total(values: torch.Tensor) -> torch.Tensor:
    return values.cpu().double().sum(-1)


def _norms(outputs: torch.Tensor, gram: torch.Tensor | None) -> torch.Tensor:
    """Norms [T, S] of what outputs [T, S, D] write into the stream."""
    if gram is None:
        return outputs.norm(dim=-1)
    squares = torch.einsum("tsd,sde,tse->ts", outputs, gram, outputs)
    return squares.clamp(min=0).sqrt()
