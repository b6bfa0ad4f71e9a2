"""Whether a configuration and the weights beside it can belong together, before any is allocated.

A damaged config.json may ask for a terabyte; transformers would allocate what the files lack.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from kernels.errors import ModelError
from kernels.reading import in_one_line, said
from midus_model.making import making

MOST = 4  # times as many weights as are stored: tied ones are stored once
SPARE = 1 << 24  # weights that a model may have beside


def check_sizes(place: str, config: Any, name: str) -> None:
    """Raises ModelError where `config` asks for far more than the folder `place` holds.

    What differs by less is told apart by name once it is loaded. Nothing is checked of a hub's
    model, nor of quantised weights, which are packed.
    """
    folder = Path(place)
    if not folder.is_dir() or getattr(config, "quantization_config", None) is not None:
        return
    with in_one_line(
        lambda error: ModelError(f"the weights of {name!r} cannot be read: {said(error)}")
    ):
        stored = list(_stored(folder))
    layers = config.num_hidden_layers
    if layers > len(stored):  # each has a tensor at least; counted before they are made
        raise _too_large(name, f"{layers:,} blocks", f"{len(stored):,} tensors")
    own = copy.deepcopy(config)  # the dtype is written into it
    with (
        in_one_line(lambda error: _no_model(name, error)),
        making(),
        torch.device("meta"),
        no_init_weights(),
    ):
        model = AutoModelForCausalLM.from_config(own, dtype=torch.float32, trust_remote_code=False)
    asked, held = sum(p.numel() for p in model.parameters()), sum(stored)
    if asked > MOST * held + SPARE:
        raise _too_large(name, f"{asked:,} weights", f"{held:,}")


def _no_model(name: str, error: BaseException) -> ModelError:
    return ModelError(f"no model can be made of the config.json of {name!r}: {said(error)}")


def _too_large(name: str, asked: str, held: str) -> ModelError:
    return ModelError(
        f"the config.json of {name!r} asks for {asked}, and its safetensors files hold {held}; "
        "restore the config.json that was saved with them"
    )


def _stored(folder: Path) -> Iterator[int]:
    """How many numbers each stored tensor has, by the files' headers."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                yield torch.Size(file.get_slice(key).get_shape()).numel()
