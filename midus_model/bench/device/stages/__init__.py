"""One file a stage, listed in `midus_model.bench.device.plan`; each has `run(run: Run)`."""

__all__: list[str] = []
