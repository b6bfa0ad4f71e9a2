"""The importance methods: what each measures on a batch of windows, and makes of the sums."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from analysis.baselines import MEANS
from analysis.direct import direct_effects
from analysis.engine import Batch, Replacement
from analysis.estimates import vocabulary_share
from analysis.first_order import REGISTERED, registered
from analysis.gates import (
    NODES,
    frozen,
    gate_gradients,
    gated_values,
    integrated_gradients,
    shapley_values,
)
from analysis.metrics import LOGIT_DIFFERENCE, LOSS, Metric
from analysis.subject import Subject, Unit, check_choice
from kernels.errors import MidusError
from midus_model.maps import check_gradients
from midus_model.placement import dtype_of

METHODS = (
    "ablation", "gradient", "taylor", "integrated_gradients", "fisher", "dla", "shapley",
    *REGISTERED,
)  # fmt: skip
PER_DOCUMENT = ("gradient", "fisher")  # of each document's mean; documents count alike
FIRST_ORDER = ("gradient", "taylor", "fisher", *REGISTERED)
CHEAP = (*FIRST_ORDER, "integrated_gradients", "dla")  # what stands in for exact ablation
CONVENTIONS = ("michel", "bertology")
COMPLETE = 1e-3  # of integrated gradients, relative to what they should sum to

Told = Callable[[int], None]
Found = Mapping[str, np.ndarray]


def is_signed(name: str) -> bool:
    """Whether a method's scores tell what helps from what harms."""
    return registered(name).signed if name in REGISTERED else name not in PER_DOCUMENT


def per_document(name: str, gradients: np.ndarray) -> np.ndarray:
    """What a PER_DOCUMENT method makes of each document's gradient of its mean."""
    return np.abs(gradients) if name == "gradient" else gradients**2


def method_text(name: str) -> str:
    """What a progress bar says."""
    return "exact ablation" if name == "ablation" else name.replace("_", " ")


def method_passes(name: str, model: Any, units: Sequence[Unit], permutations: int = 8) -> float:
    """About what a method costs, in forward passes over every window."""
    known = {
        "integrated_gradients": 3.0 * NODES + 2,
        "shapley": float(permutations * (len(units) + 1)),
        "dla": 1.5,
    }
    if name == "ablation":
        return 1 + sum(ablation_passes(model, units))
    if name in REGISTERED:
        return registered(name).passes(model)
    return known.get(name, 3.0)


def measured_first(
    measured: Sequence[tuple[str, str]], model: Any, units: Sequence[Unit]
) -> dict[str, float]:
    """Passes by stage of importance tables, each by its method and baseline."""
    found: dict[str, float] = {}
    for name, baseline in measured:
        if baseline == "mean":
            found[MEANS] = found.get(MEANS, 0.0) + 1.0
        text = method_text(name)
        found[text] = found.get(text, 0.0) + method_passes(name, model, units)
    return found


def ablation_passes(model: Any, units: Sequence[Unit]) -> list[float]:
    """About what ablating each unit costs, in forward passes: its block's end, what comes after."""
    layers, last = len(model.model.layers), vocabulary_share(model)
    return [last + (1 - last) * (layers - unit.layer - 0.3) / layers for unit in units]


def check_method(
    metric: Metric,
    how: Mapping[str, Any],
    name: str,
    convention: str | None = None,
    retrieval: str = "frozen",
) -> None:
    """Raises MidusError where a method does not go with a metric, a stage or a baseline."""
    check_choice("method", name, METHODS)
    check_choice("retrieval", retrieval, ("frozen", "free"))
    if name in FIRST_ORDER and not metric.smooth:
        raise MidusError(
            f"metric {metric.name!r} has no first-order effect for method {name!r}; "
            "use 'ablation' or 'shapley'"
        )
    if name == "dla" and metric not in (LOSS, LOGIT_DIFFERENCE):
        raise MidusError(
            f"method 'dla' speaks of logits; metric {metric.name!r} is none of loss (the next "
            "token's logit) and logit_difference"
        )
    if how["stage"] == "query" and name == "dla":
        raise MidusError("method 'dla' is of what heads write; a query writes nothing")
    if how["stage"] == "query" and name == "integrated_gradients" and retrieval == "frozen":
        raise MidusError("with retrieval 'frozen' a query changes nothing; give 'free'")
    if convention is not None:
        check_choice("convention", convention, CONVENTIONS)
        if name != "gradient" or how["baseline"] != "zero":
            raise MidusError(
                f"convention {convention!r} is of method 'gradient' with baseline 'zero'; "
                f"got {name!r} and {how['baseline']!r}"
            )


class Method:
    """One method on one subject: called with windows' indices, it gives what `swept` sums."""

    def __init__(
        self,
        name: str,
        subject: Subject,
        *,
        convention: str | None = None,
        retrieval: str = "frozen",
        permutations: int = 8,
        seed: int = 0,
    ) -> None:
        check_method(subject.metric, subject.how, name, convention, retrieval)
        self.name, self.subject, self.retrieval = name, subject, retrieval
        self.convention = convention
        self.orders = _orders(len(subject.units), permutations, seed) if name == "shapley" else []
        self.view = subject.view

    @property
    def text(self) -> str:
        """What a progress bar says."""
        return method_text(self.name)

    @property
    def forwards(self) -> float:
        """About what a window costs, in forward passes."""
        subject = self.subject
        return method_passes(self.name, subject.model, subject.units, len(self.orders))

    @property
    def by_window(self) -> bool:
        """Whether sums are kept by window: BERTology's gradients pile up from one to the next."""
        return self.convention == "bertology"

    def __call__(self, indices: Sequence[int], told: Told) -> Found:
        if self.name == "ablation":
            exact, before = self.subject.ablated(indices, progress=told)
            return {"effects": exact, "values": before}
        batch = self.subject.batch(indices)
        replacement = self.subject.baseline(indices, batch)
        if self.convention is not None:
            return self._by_convention(batch, replacement)
        clean = self._clean(batch)
        found: dict[str, torch.Tensor]
        if self.name == "integrated_gradients":
            scores, values, gap = integrated_gradients(
                self.view, batch, replacement, retrieval=self.retrieval, clean=clean
            )
            found = {
                "effects": scores,
                "gap": gap.abs().sum(),
                "total": scores.sum() - gap.sum(),
                "size": (scores.sum(0) - gap).abs().sum(),
            }
        elif self.name == "dla":
            effects, values = direct_effects(self.view, batch, replacement)
            found = {"effects": effects}
        elif self.name == "shapley":
            shares, values = shapley_values(self.view, batch, replacement, self.orders, clean)
            found = {"effects": shares.mean(0), "shares": shares.sum(2)}
        elif self.name in REGISTERED:
            effects, values = registered(self.name).effects(self.view, batch, replacement, clean)
            found = {"effects": effects}
        else:
            gradients, values = gate_gradients(self.view, batch, replacement, clean=clean)
            found = {"effects": -gradients if self.name == "taylor" else gradients}
        return {name: part.numpy() for name, part in {**found, "values": values}.items()}

    def _clean(self, batch: Batch) -> torch.Tensor | None:
        """The clean run's final states, where the metric wants them."""
        return self.subject.clean(batch).hidden if self.subject.metric.wants == "clean" else None

    def _by_convention(self, batch: Batch, replacement: Replacement) -> Found:
        """Gradients of each window's mean loss, a gate a position: see `analysis.conventions`."""
        weights = self.subject.metric.positions(batch).sum(1).cpu().double()
        wide = torch.promote_types(dtype_of(self.subject.model), torch.float32)
        shape = (*batch.ids.shape, len(self.view.units))
        check_gradients(self.subject.model)
        gates = torch.ones(shape, dtype=wide, device=batch.ids.device).requires_grad_()
        with frozen(self.subject.model), torch.enable_grad():
            values = gated_values(self.view, batch, replacement, gates, clean=self._clean(batch))
            (found,) = torch.autograd.grad(values.sum(), gates)  # [W, T, G]
        found = found.cpu().double() / weights[:, None, None]
        summed = found.abs().sum(1) if self.convention == "michel" else found.sum(1)
        return {"effects": summed.T.numpy(), "values": values.detach().cpu().numpy()}

    def found(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What the attrs say of this method."""
        more: dict[str, Any] = {}
        if self.convention is not None:
            return {"unit": "relative", "convention": self.convention}
        if self.name == "integrated_gradients":
            size = max(float(totals["size"]), np.finfo(float).tiny)
            relative = float(totals["gap"]) / size  # windows' gaps do not cancel
            mean = float(totals["total"]) / self.subject.weights.sum()
            if self.retrieval == "frozen" and relative > COMPLETE:
                warnings.warn(
                    f"integrated gradients miss the effect of ablating all heads by "
                    f"{relative:.1%}: the scores are not to be trusted",
                    stacklevel=3,
                )
            more = {
                "retrieval": self.retrieval,
                "completeness": {"total": mean, "relative_gap": relative},
            }
        elif self.name == "shapley":
            more = {"permutations": len(self.orders), "interval": "sampled orders, 95%"}
        elif self.name == "dla" and self.subject.metric is LOSS:
            more = {"unit": "logits/token"}
        elif self.name == "fisher":
            more = {"unit": f"({self.subject.metric.unit})^2"}
        return more

    def intervals(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
        """Of "shapley": mean over pairs of orders, which are independent, and its t interval."""
        if self.name != "shapley":
            return None
        shares = totals["shares"]
        pairs = shares.reshape(-1, 2, shares.shape[1]).mean(1) / self.subject.weights.sum()
        score, stderr = pairs.mean(0), pairs.std(0, ddof=1) / np.sqrt(len(pairs))
        reach = float(stats.t.ppf(0.975, len(pairs) - 1)) * stderr
        names = ("score", "stderr", "ci_low", "ci_high")
        found = dict(zip(names, (score, stderr, score - reach, score + reach), strict=True))
        return found | {"unit": "order"}


def _orders(count: int, permutations: int, seed: int) -> list[np.ndarray]:
    """Random orders, each used backwards too (antithetic)."""
    if permutations < 4 or permutations % 2:
        raise MidusError(f"permutations is {permutations}; it must be an even number from 4")
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(count) for _ in range(permutations // 2)]
    return [order for one in drawn for order in (one, one[::-1].copy())]
