"""What holds for every test: one thread a worker, fixed seeds, nothing from the network."""

from __future__ import annotations

import os

# Read when the libraries are first imported, so before them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

import random
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():  # Triton's kernels then run in its interpreter
    os.environ["TRITON_INTERPRET"] = "1"

# `make verify` asks for more examples, and then for other ones each time.
EXAMPLES = int(os.environ.get("MIDUS_EXAMPLES", "0"))
hypothesis.settings.register_profile(
    "midus", derandomize=not EXAMPLES, deadline=None, max_examples=EXAMPLES or 30, database=None
)
hypothesis.settings.load_profile("midus")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same random numbers in every test, whatever ran before it; the default dtype is kept."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert before == torch.float32, f"a fixture or a thread left {before} as the default dtype"
    yield
    after = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert after == torch.float32, f"the test left {after} as the default dtype"
