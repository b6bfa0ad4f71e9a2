"""What the commands import, so that a process forked from here begins at once."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TRITON_INTERPRET", "1")

import accelerate  # noqa: F401
import datasets  # noqa: F401
import matplotlib.backends.backend_svg  # noqa: F401
import torch
import transformers.models.auto.tokenization_auto
import transformers.models.llama.modeling_llama
import transformers.trainer  # noqa: F401

import midus_model  # noqa: F401
import workbench.demo
import workbench.training  # noqa: F401
from analysis import (  # noqa: F401
    amplification,
    costs,
    doctor,
    documents,
    figures,
    head_importance,
    memory_usage,
    paper,
    rank_heads,
)
from workbench.cli import app  # noqa: F401

torch.set_num_threads(1)
