"""The stages of a run, the most valuable first: what each is worth is its place, and its seconds.

A new stage is one file in `stages` and one line here.
"""

from __future__ import annotations

from midus_model.bench.device.stage import Stage

PLACE = "midus_model.bench.device.stages"
STAGES = (
    Stage("ceilings", f"{PLACE}.ceilings:run", seconds=20, least=3),
    Stage("compile", f"{PLACE}.compile:run", seconds=50, least=5),
    Stage("verify", f"{PLACE}.verify:run", seconds=40, least=5, case=90),
    Stage("tune", f"{PLACE}.tune:run", seconds=90, least=10),
    Stage("recompile", f"{PLACE}.compile:tuned", seconds=25, least=3),
    Stage("rows", f"{PLACE}.rows:run", seconds=85, least=5),
    Stage("block", f"{PLACE}.block:run", seconds=50, least=5),
    Stage("decode", f"{PLACE}.decode:run", seconds=40, least=8),
    Stage("train", f"{PLACE}.train:run", seconds=45, least=10),
    Stage("profile", f"{PLACE}.profile:run", seconds=30, least=6),
    Stage("tests", f"{PLACE}.tests:run", seconds=30, least=8),
    Stage("report", f"{PLACE}.report:run", seconds=8, least=6, last=True),
)
NAMES = tuple(stage.name for stage in STAGES)
