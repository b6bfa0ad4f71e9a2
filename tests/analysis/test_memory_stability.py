"""Stability of usage: against scipy's own divergence and correlation, and at both ends."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr

from analysis import tables
from analysis.documents import documents
from analysis.memory import memory_usage, usage_stability
from kernels.errors import IncomparableTables, MidusError
from tests.analysis.memory_models import LENGTHS, N_KEYS, PLANTED_BLOCK, planted, texts, up_scaled
from tests.models import HEADS, tiny


def test_a_usage_is_as_stable_as_can_be_against_itself():
    usage = memory_usage(up_scaled(), texts(LENGTHS))
    table = usage_stability(usage, usage)
    assert table[["layer", "head"]].values.tolist() == usage[["layer", "head"]].values.tolist()
    np.testing.assert_allclose(table["similarity"], 1.0)
    np.testing.assert_allclose(table["spearman"], 1.0)
    np.testing.assert_allclose(table["both"], 1.0)


def test_usages_without_a_common_slot_have_no_similarity():
    """Token 3 sends planted head h to row (3 + h) // 4, token 11 to the row two further."""
    first, second = (
        memory_usage(planted(), documents([[token] * 8] * 20, model=tiny(), context=8))
        for token in (3, 11)
    )
    table = usage_stability(first, second)
    assert set(table["layer"]) == {PLANTED_BLOCK} and len(table) == HEADS
    np.testing.assert_allclose(table[["similarity", "both"]], 0.0, atol=1e-12)
    assert (table["spearman"] < 0).all()


def test_columns_equal_scipys():
    first = memory_usage(up_scaled(), texts([30] * 20))
    second = memory_usage(up_scaled(), texts([9] * 25))
    table = usage_stability(first, second)
    for row in table.itertuples():
        weight, hit = [], []
        for usage in (first, second):
            slots = usage.slots(row.layer, row.head).set_index("slot")["weight"]
            weight.append(slots.reindex(range(N_KEYS**2), fill_value=0.0).to_numpy())
            hit.append(set(slots.index))
        distance = jensenshannon(*weight, base=2)
        assert row.similarity == pytest.approx(1 - distance**2)
        assert row.spearman == pytest.approx(spearmanr(*weight).statistic)
        assert row.both == len(hit[0] & hit[1]) / len(hit[0] | hit[1])
    assert table["similarity"].min() > 0 and table["similarity"].max() < 1


def test_the_table_says_what_it_compared(tmp_path):
    before, data = up_scaled(), texts(LENGTHS)
    after = up_scaled()
    after.model.layers[2].memory.row_keys.data.neg_()
    first, second = memory_usage(before, data), memory_usage(after, data)
    table = usage_stability(first[first["layer"] == 2], second)
    assert set(table["layer"]) == {2}  # a selection stays one
    assert table.attrs["first"]["model_hash"] != table.attrs["second"]["model_hash"]
    assert table.attrs["first"]["data_hash"] == table.attrs["second"]["data_hash"]
    tables.save(table, tmp_path / "stability")
    assert tables.load(tmp_path / "stability").equals(table)


def test_other_shapes_and_stored_tables_are_refused(tmp_path):
    usage = memory_usage(up_scaled(), texts(LENGTHS))
    for options in ({"num_keys": 4}, {"blocks": [1]}, {"heads": [(1, 2), (3, 0)]}):
        other = memory_usage(up_scaled(**options), texts(LENGTHS))
        with pytest.raises(
            IncomparableTables, match="different shapes: block 2: 4 heads, 64 slots"
        ):
            usage_stability(usage, other)
    with pytest.raises(MidusError, match="no counts of slots"):
        tables.save(usage, tmp_path / "usage")
        from analysis.memory import MemoryUsage

        usage_stability(usage, MemoryUsage(tables.load(tmp_path / "usage")))
