"""The modules whose tests are tried, and which tests those are."""

from __future__ import annotations

A, M, K = "tests/analysis/test_", "tests/midus_model/test_", "tests/kernels/test_"

MODULES: dict[str, list[str]] = {
    "analysis/race.py": [A + "race.py", A + "race_found.py"],
    "analysis/race_found.py": [A + "race_found.py", A + "race.py"],
    "analysis/sequences.py": [A + "sequences.py", A + "race.py"],
    "analysis/tails.py": [A + "tails.py", A + "race.py"],
    "analysis/ranking.py": [A + "ranking_parts.py", A + "ranking.py"],
    "analysis/intervals.py": [A + "intervals.py", A + "statistics.py"],
    "analysis/shrinkage.py": [A + "shrinkage.py"],
    "analysis/statistics.py": [A + "statistics.py"],
    "analysis/engine.py": [A + "engine.py", A + "metrics.py"],
    "analysis/gates.py": [A + "gate_parts.py"],
    "analysis/ablation.py": [A + "ablation.py", A + "workers.py"],
    "analysis/metrics.py": [A + "metrics.py"],
    "analysis/tables.py": [A + "tables.py"],
    "analysis/baselines.py": [A + "baselines.py"],
    "midus_model/upscale.py": [M + "upscale.py"],
    "midus_model/sites.py": [M + "sites.py"],
    "midus_model/memory.py": [M + "memory.py"],
    "kernels/headwise_memory/eager.py": [K + "headwise_memory.py", K + "operators.py"],
    "kernels/latent_bag/eager.py": [K + "latent_bag.py", K + "eager.py"],
    "kernels/product_key_select/eager.py": [K + "product_key_select.py", K + "eager.py"],
}
