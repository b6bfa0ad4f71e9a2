"""Tests of the workbench; a package, so that `tests.models` is found from anywhere in it."""
