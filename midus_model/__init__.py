"""The model: MIDUS memory blocks (arXiv 2512.13751) in Llama, Qwen3 and Mistral."""

from midus_model import errors
from midus_model.budgets import budgets
from midus_model.config import MidusConfig
from midus_model.finishing import BlockEnd, Change, finish_block, mixing_of
from midus_model.keys import set_query_keys
from midus_model.lean import is_watched, lean_blocks
from midus_model.loading import SHIPPED, load, load_config, load_tokenizer
from midus_model.maps import check_writable, depends_on_batch, is_plain, weight_of
from midus_model.modeling import MidusForCausalLM
from midus_model.optim import param_groups, row_sparse_optimizers
from midus_model.packaged import PACKAGED
from midus_model.placement import input_device, resolve_device, resolve_dtype, where
from midus_model.sites import (
    HeadSite,
    blocks,
    check_heads,
    chosen_heads,
    head_pairs,
    head_sites,
)
from midus_model.upscale import upscale

__all__ = [
    "PACKAGED",
    "SHIPPED",
    "BlockEnd",
    "Change",
    "HeadSite",
    "MidusConfig",
    "MidusForCausalLM",
    "blocks",
    "budgets",
    "check_heads",
    "check_writable",
    "chosen_heads",
    "depends_on_batch",
    "errors",
    "finish_block",
    "head_pairs",
    "head_sites",
    "input_device",
    "is_plain",
    "is_watched",
    "lean_blocks",
    "load",
    "load_config",
    "load_tokenizer",
    "mixing_of",
    "param_groups",
    "resolve_device",
    "resolve_dtype",
    "row_sparse_optimizers",
    "set_query_keys",
    "upscale",
    "weight_of",
    "where",
]
