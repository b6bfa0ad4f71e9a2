"""What every command imports, imported once: its processes are forked from the one that did."""

from __future__ import annotations

import importlib
import pkgutil

import torch

import analysis
import midus_model
import workbench

torch.set_num_threads(1)
LATER = ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf",
         "matplotlib.backends.backend_svg", "plotly.graph_objects", "plotly.offline",
         "pyarrow.parquet", "pyarrow.dataset", "pandas.io.parquet", "scipy.stats",
         "transformers.models.llama.modeling_llama", "transformers.trainer",
         "accelerate", "rich.progress", "rich.table", "PIL.PngImagePlugin", "datasets")  # fmt: skip
SKIPPED = ("adapters", "__main__", "bench", "importance_bench", "pico", "key_study")


def _warm() -> None:
    for package in (midus_model, analysis, workbench):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not any(part in SKIPPED for part in found.name.split(".")):
                importlib.import_module(found.name)
    for name in LATER:
        importlib.import_module(name)


_warm()
