"""What a study says about amplification, as the tables of docs/amplification.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis import amplification_contrast
from kernels.errors import MidusError, NoOverlap
from workbench.runs import RunFolder

ALL_HEADS = "**Memory for all heads of every other layer.**"

NAMES = {
    "score": "nats a token",
    "share_score": "share of all importance",
    "loss_new": "loss, new text",
    "loss_heldout": "loss, the base's own text",
    "amplification": "amplification of the heads with memory",
}


def page(run: RunFolder) -> str:
    """Contrast, roles, choice and realisations; what the run has no table for is left out."""
    makers = {
        "contrast": _contrast,
        "role_slopes": _roles,
        "choice": _choice,
        "realisations": _realisations,
    }
    parts = [make(run) for name, make in makers.items() if run.has_table(name)]
    if run.has_table("amplification") and not run.has_table("contrast"):
        parts.insert(0, _no_contrast(run))
    return "\n\n".join(part for part in parts if part) + "\n"


def _no_contrast(run: RunFolder) -> str:
    """Why the chosen heads stand against no others."""
    try:
        amplification_contrast(run.load_table("amplification"))
    except NoOverlap as error:
        return f"{ALL_HEADS} No contrast with matched heads can be had: {error}."
    except MidusError:  # heads chosen otherwise, or none
        pass
    return ""


def _contrast(run: RunFolder) -> str:
    table = run.load_table("contrast")
    rows = [
        [NAMES[r.measure], f"{r.chosen:+.4f}", f"{r.controls:+.4f}",
         _interval(r.difference, r.ci_low, r.ci_high), f"{r.p:.3f}", f"{r.p_least:.3f}"]
        for r in table.itertuples()
    ]  # fmt: skip
    row, heads = table.iloc[0], ", ".join(f"{layer}.{head}" for layer, head in _pairs(table))
    return (
        f"{ALL_HEADS} The ranking's top heads that sit at a memory block ({heads}) against heads "
        f"of their layers as important before: {row.before_chosen:.4f} and "
        f"{row.before_controls:.4f} (standardised difference {row.smd:.2f}; {row.smd_all:.2f} "
        "before matching), what is left of which is adjusted for; intervals over documents, p by "
        "relabelling within matched sets, with the smallest p that these can give.\n\n"
        + _table(["amplification in", "chosen", "controls", "difference", "p", "least p"], rows)
    )


def _pairs(table: Any) -> list[tuple[int, int]]:
    return [tuple(pair["head"]) for pair in table.attrs["pairs"]]


def _roles(run: RunFolder) -> str:
    table = run.load_table("role_slopes")
    rows = [
        [r.role.replace("_", " "), _interval(r.slope, r.ci_low_all, r.ci_high_all), f"{r.p:.3f}",
         f"{r.p_adjusted:.3f}", f"{r.vif:.1f}"] if not r.left_out else
        [r.role.replace("_", " "), f"left out: {r.left_out}", "", "",
         f"{r.vif:.1f}" if r.vif == r.vif else ""]
        for r in table[table["measure"] == "score"].itertuples()
    ]  # fmt: skip
    count = int(run.load_table("amplification").shape[0])
    return (
        f"**By role.** What a standard deviation of a role's score adds to a head's amplification, "
        f"nats a token, all roles together over {count} heads with the layer as a random "
        "intercept. Intervals hold for all roles together, and p is adjusted for as many (max-t). "
        "A large variance inflation (VIF) says that the role cannot be told from the others here: "
        "above 10 it is left out.\n\n"
        + _table(["role", "slope (95%, all together)", "p alone", "p adjusted", "VIF"], rows)
    )


def _choice(run: RunFolder) -> str:
    table, contrast = run.load_table("choice"), run.load_table("choice_contrast")
    asked = run.manifest["parameters"]
    means = table.groupby("arm", sort=False)
    arms = [
        [str(arm), str(len(part)), str(int(part["heads"].iloc[0])),
         f"{part['parameters'].mean():,.0f}",
         *(f"{part[m].mean():.4f}" for m in ("loss_new", "loss_heldout", "amplification"))]
        for arm, part in means
    ]  # fmt: skip
    rows = [
        [f"{r.first} - {r.second}", NAMES[r.measure], _interval(r.difference, r.ci_low, r.ci_high),
         f"{r.seed_low:+.4f} to {r.seed_high:+.4f}" if r.seeds > 1 else "one seed"]
        for r in contrast.itertuples()
    ]  # fmt: skip
    return (
        f"**Memory for the top {asked['top']} heads, for as many others of the same layers, and "
        f"for all heads of these layers**, at equal parameters and equal training "
        f"({asked['choice_steps']} steps of {asked['batch_size']} rows), mean over seeds.\n\n"
        + _table(
            [
                "memory for",
                "seeds",
                "heads",
                "new parameters",
                "loss, new text",
                "loss, the base's own text",
                "amplification",
            ],
            arms,
        )  # fmt: skip
        + "\n\n"
        + _table(["", "measure", "difference (95% over documents)", "95% over seeds (t)"], rows)
    )


def _realisations(run: RunFolder) -> str:
    table = run.load_table("realisations")
    together = table[(table["block"] == "all") & (table["realisation"] != "clean")]
    rows = [
        [r.realisation.replace("_", ", "), _interval(r.score, r.ci_low, r.ci_high), f"{r.kl:.4f}"]
        for r in together.itertuples()
    ]
    return (
        "**What heads' own realisations are worth**, slots and weights held, all memory blocks "
        "together (docs/memory.md says what each is).\n\n"
        + _table(["instead of each its own", "costs, nats a token", "KL"], rows)
    )


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
