"""Continual pre-training through the Hugging Face Trainer; `workbench.training.train` begins it."""
