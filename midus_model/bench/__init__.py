"""The kernel benchmark, `python -m midus_model.bench`: it verifies, then times, then reports.

It needs torch and transformers only, so that it runs on a bare GPU machine.
"""

__all__: list[str] = []
