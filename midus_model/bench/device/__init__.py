"""All that a GPU is wanted for, in minutes: `python -m midus_model.bench.device --out DIR`.

A run is a row of stages, the most valuable first, each in a process of its own with a deadline.
What they find is appended to DIR/results.jsonl, one whole line a result: a run that is killed
keeps its lines, and a second run into the same folder goes on where it stopped. Without a GPU the
same stages run on the CPU with tiny shapes, as a rehearsal whose figures say nothing about a GPU.
"""

__all__: list[str] = []
