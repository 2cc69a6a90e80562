# `make demo` and `make test` do all set-up on a fresh machine; the README gives the same as plain commands.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint types docs check mutants clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/pruneopt demo

# Two workers; tests/conftest.py gives each one thread.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict --config-file .ci/mkdocs.yml

check: lint types docs test

# Resumable: mutants that have a verdict are not run again.  ARGS='pruneopt.compose*' runs those of one module.
mutants: $(VENV)/.dev
	$(PIP) --constraint constraints.txt --editable '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python .ci/mutants.py $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "pruneopt needs Python 3.11 to 3.13; try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing pruneopt into $(VENV) (a few minutes the first time)"
	$(PIP) --constraint constraints.txt --editable '.[lp]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "installing what the tests need"
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) site out runs mutants
