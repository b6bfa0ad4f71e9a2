"""What a run is made of, by hash: weights, configuration, texts, code.

Kept with the run, so that one is gone on with only where all of it is as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

SHORT = 12  # of a hash, in what is printed
PACKAGES = ("kernels", "midus_model", "analysis", "workbench")


def inputs_of(models: Mapping[str, Any], texts: Mapping[str, Any]) -> dict[str, str]:
    """What a run's numbers follow from, beside its parameters: a hash or a version by name.

    Args:
        models: loaded models, by the names that they were asked for.
        texts: `Documents`, by the names that they were asked for.
    """
    from analysis.tables import remembered_hash

    found: dict[str, str] = {}
    for name, model in models.items():
        found[f"weights of {name}"] = remembered_hash(model)
        found[f"configuration of {name}"] = _configuration(model)
    for name, documents in texts.items():
        found[f"text of {name}"] = _text(documents)
    return found | code()


@cache
def code() -> dict[str, str]:
    """Versions of torch and transformers, and of this code by its version and its files' hash."""
    from analysis.tables import versions

    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for name in PACKAGES for path in (root / name).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    known = versions()
    return known | {"midus": f"{known['midus']} {digest.hexdigest()[:SHORT]}"}


def differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two descriptions, with the old and new values; "" where nothing does."""
    return ", ".join(
        f"{name}: {_short(known.get(name))} then, {_short(now.get(name))} now"
        for name in sorted(known.keys() | now.keys())
        if known.get(name) != now.get(name)
    )


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:SHORT] if len(text) == 64 and " " not in text else text


def _text(documents: Any) -> str:
    """Hash of the documents and of the tokens that they became."""
    digest = hashlib.sha256()
    for item in documents:
        digest.update(f"{item.sha256} {len(item.ids)}\n".encode())
        digest.update(item.ids.numpy().tobytes())
    return digest.hexdigest()


def _configuration(model: Any) -> str:
    """Hash of a model's configuration, which the weights' hash does not see."""
    config = {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
