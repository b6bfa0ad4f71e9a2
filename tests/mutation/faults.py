"""Faults put in by hand, of the kinds that operators do not make: each must be noticed.

(file, what stands there once, what takes its place).
"""

from __future__ import annotations

from pathlib import Path

from tests.mutation.mutants import Mutant, read

RACE, FOUND = "analysis/race.py", "analysis/race_found.py"
INTERVALS, SEQUENCES = "analysis/intervals.py", "analysis/sequences.py"
ENGINE, METRICS, BASELINES = "analysis/engine.py", "analysis/metrics.py", "analysis/baselines.py"
MEMORY, EAGER = "midus_model/memory.py", "kernels/headwise_memory/eager.py"
SITES, UPSCALE = "midus_model/sites.py", "midus_model/upscale.py"

FAULTS = (
    # Half of alpha for pairs, half for the intervals of heads, of which each end has a half.
    (
        RACE,
        "alpha = (1 - self.confidence) / 2 / (self.top",
        "alpha = (1 - self.confidence) / (self.top",
    ),
    (
        RACE,
        "alpha = (1 - self.confidence) / 2 / self.heads",
        "alpha = (1 - self.confidence) / self.heads",
    ),
    (
        SEQUENCES,
        "lower = _lower_end(values, low, population, alpha / 2, known)",
        "lower = _lower_end(values, low, population, alpha, known)",
    ),
    (
        SEQUENCES,
        "upper = -_lower_end(-values, -high, population, alpha / 2, known)",
        "upper = -_lower_end(-values, -high, population, alpha, known)",
    ),
    # The finite population.
    (RACE, "return (1 / drawn - 1 / max(left, 1)) * ", "return (1 / drawn) * "),
    (RACE, "np.sqrt(1 / (count - known) - 1 / left)", "np.sqrt(1 / (count - known))"),
    (RACE, "* (left / self.windows) ** 2", ""),
    (
        SEQUENCES,
        "left = population - np.arange(known, count)",
        "left = population - np.arange(known, count) * 0",
    ),
    (SEQUENCES, "if count < population:", "if False:"),
    # The chance to be in the top set.
    (FOUND, "np.sqrt(np.maximum(values, 0))", "np.sqrt(-np.minimum(values, 0))"),
    (
        FOUND,
        "covariance * np.minimum.outer(left, left)",
        "covariance * np.maximum.outer(left, left)",
    ),
    (FOUND, "found[head] = max(2 * len(value)", "found[head] = min(2 * len(value)"),
    (FOUND, "max(kurtosis(value) - 1, 0.5)", "min(kurtosis(value) - 1, 0.5)"),
    (
        FOUND,
        "np.fill_diagonal(covariance, deviations**2)",
        "np.fill_diagonal(covariance, deviations)",
    ),
    # Degrees of freedom.
    (RACE, "np.sqrt(squares / max(count - 1, 1))", "np.sqrt(squares / count)"),
    (RACE, ".sum(1) / max(count - known - 1, 1))", ".sum(1) / (count - known))"),
    (FOUND, ".sum()) * count / (count - 1))", ".sum()))"),
    (FOUND, "stats.t.ppf(1 - TIED, count - 1)", "stats.t.ppf(1 - TIED, count)"),
    (FOUND, "stats.t.ppf(1 - TIED, count - 1)", "stats.t.ppf(1 - 2 * TIED, count - 1)"),
    (INTERVALS, "errors = np.sqrt((number - 1) / number) * share", "errors = share"),
    (INTERVALS, "float((number - 1) / (number * (share**2).sum()))", "float(1 / (share**2).sum())"),
    (
        INTERVALS,
        "stats.t.isf((1 - confidence) / (2 * len(unit)), df)",
        "stats.t.isf((1 - confidence) / len(unit), df)",
    ),
    (INTERVALS, "p = 2 * stats.t.sf(t, df)", "p = stats.t.sf(t, df)"),
    # Which token, which window, which row.
    (ENGINE, "before = clean[:, :-1]", "before = clean[:, 1:]"),
    (ENGINE, "targets = batch.ids[:, 1:]", "targets = batch.ids[:, :-1]"),
    (ENGINE, "1 + values) == 0)", "1 + values) <= 1)"),
    (
        METRICS,
        "(rows.logits.argmax(-1) == rows.targets)",
        "(rows.logits.argmax(-1) + 1 == rows.targets)",
    ),
    (METRICS, "smooth=False, bound=1.0)", "smooth=False, bound=0.5)"),
    (METRICS, "smooth=False, bound=1.0)", "smooth=False, bound=2.0)"),
    (METRICS, "(clean.exp() * (clean - now)).sum(-1)", "(now.exp() * (now - clean)).sum(-1)"),
    (BASELINES, "heads[rows, places]", "heads.flip(0)[rows, places]"),
    (
        BASELINES,
        "self.docs.windows[self.donors[i]] for i in indices",
        "self.docs.windows[self.donors[i]] for i in reversed(indices)",
    ),
    (BASELINES, "torch.arange(length) % torch.tensor", "torch.arange(length) - torch.tensor"),
    # The memory and its model.
    (EAGER, "return values if residual is None else residual + values", "return values"),
    (MEMORY, "return read if residual is None else residual + read", "return read"),
    (MEMORY, "return residual + self(head_outputs)", "return self(head_outputs)"),
    (
        MEMORY,
        "if self.out_proj is not None or len(self.heads) != self.num_heads:",
        "if self.out_proj is not None:",
    ),
    (
        MEMORY,
        "if self.out_proj is not None or len(self.heads) != self.num_heads:",
        "if len(self.heads) != self.num_heads:",
    ),
    (MEMORY, "if is_watched(self, self.out):", "if is_watched(self):"),
    (
        MEMORY,
        "self.head_top_k is None and not is_watched(self.retrieved)",
        "self.head_top_k is None",
    ),
    (MEMORY, "bound = self.row_keys.shape[-1] ** -0.5", "bound = self.row_keys.shape[-1] ** 0.5"),
    (MEMORY, "bound = self.row_keys.shape[-1] ** -0.5", "bound = self.head_dim ** -0.5"),
    (MEMORY, "bound = self.row_keys.shape[-1] ** -0.5", "bound = self.row_keys.shape[1] ** -0.5"),
    (MEMORY, "nn.init.uniform_(self.col_keys, -bound, bound)", "nn.init.uniform_(self.col_keys)"),
    (MEMORY, "std=self.head_proj.shape[1] ** -0.5", "std=self.head_proj.shape[2] ** -0.5"),
    (SITES, "*span, head // shared)", "*span, head % shared)"),
    (SITES, "*span, head // shared)", "*span, head)"),
    (UPSCALE, "    new.generation_config = copy.deepcopy(model.generation_config)\n", ""),
    (UPSCALE, "copy.deepcopy(model.generation_config)", "model.generation_config"),
)


def planted(root: Path, file: str) -> list[Mutant]:
    """A file's faults as mutants. Raises ValueError where one's place is not found just once."""
    found = []
    for old, new in [fault[1:] for fault in FAULTS if fault[0] == file]:
        source = read(root, file)
        if source.count(old) != 1:
            raise ValueError(f"{file} has {old!r} {source.count(old)} times; it must be there once")
        line = source[: source.index(old)].count("\n") + 1
        changed = source.replace(old, new)
        found.append(Mutant(file, line, "by hand", old.strip(), new.strip(), changed))
    return found
