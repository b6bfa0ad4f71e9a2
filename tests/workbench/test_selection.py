"""Heads by rule and budget; parameters against models that were really made deeper."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest

from kernels.errors import HeadError
from midus_model import chosen_heads, upscale
from tests.models import tiny
from workbench import selection

RANKING = pd.DataFrame(
    {
        "layer": [2, 0, 2, 1], "head": [1, 3, 0, 2], "score": [0.4, 0.2, 0.1, -0.1],
        "p_top": [1.0, 0.97, 0.4, 0.0],
    }
)  # fmt: skip
SIZES = {"num_keys": 4, "latent_dim": 3}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("heads", [[(2, 1)], [(2, 1), (2, 0), (0, 3)]])
def test_parameters_are_those_that_upscaling_adds(family: str, heads: list) -> None:
    base = tiny(family)
    new = upscale(base, heads=heads, top_k=2, **SIZES)
    added = new.num_parameters() - base.num_parameters()
    assert selection.added_parameters(base.config, heads, **SIZES) == added > 0


def test_rules() -> None:
    assert selection.top_heads(RANKING, 2) == [(2, 1), (0, 3)]
    assert selection.sure_heads(RANKING, 0.9) == [(2, 1), (0, 3)]
    roles = pd.DataFrame({"layer": [1, 2, 0], "head": [2, 1, 0], "role": ["sink", "sink", "none"]})
    assert selection.heads_of_role(RANKING, roles, "sink") == [(2, 1), (1, 2)]
    with pytest.raises(HeadError, match="between 1 and 4"):
        selection.top_heads(RANKING, 5)
    with pytest.raises(HeadError, match="p_top"):
        selection.sure_heads(RANKING.drop(columns="p_top"), 0.9)


def test_a_budget_takes_the_best_heads_that_fit() -> None:
    config = tiny("llama").config
    one = selection.added_parameters(config, [(2, 1)], **SIZES)
    two = selection.added_parameters(config, [(2, 1), (2, 0)], **SIZES)
    assert two < 2 * one
    assert selection.heads_within(RANKING, config, one - 1, **SIZES) == []
    assert selection.heads_within(RANKING, config, one, **SIZES) == [(2, 1)]
    # (0, 3) would need a block of its own: the next head of the same layer is cheaper.
    assert selection.heads_within(RANKING, config, two, **SIZES) == [(2, 1), (2, 0)]


def test_what_is_exported_is_what_upscaling_reads(tmp_path: Path) -> None:
    path = tmp_path / "a ranking.json"
    path.write_text(json.dumps(selection.ranking_json(RANKING, [(2, 1), (1, 2)])))
    assert sorted(chosen_heads(path)) == [(1, 2), (2, 1)]
    assert json.loads(path.read_text())["scores"] == [0.4, -0.1]
    line = selection.upscale_command("pico", str(path), "runs/new one", 64, 8, 32)
    words = shlex.split(line)
    assert Path(words[0]).name == "midus"  # as the shell finds it
    assert words[1:5] == ["upscale", "pico", "-o", "runs/new one"]
    assert words[words.index("--heads") + 1] == str(path) and words[-1] == "32"
