# RedFlag. Two commands matter: `make up` runs it, `make test` proves it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DATA   ?= .redflag
ARGS   ?=

.PHONY: up test test-full check bench docs clean help

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

up: $(VENV)/.up ## set up and run: server, local agent, dashboard
	@$(BIN)/redflag up --data $(DATA) $(ARGS)

test: $(VENV)/.dev ## all that a change can break
	$(BIN)/python -m pytest -n auto -m "not full" $(ARGS)

test-full: $(VENV)/.dev ## the exhaustive sweeps too, on every supported Python that is installed
	$(BIN)/python -m pytest -n auto $(ARGS)
	tests/other_pythons.sh

check: $(VENV)/.dev ## ruff, mypy --strict, import-linter, codespell, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell redflag_core redflag_server redflag_agent integrations docs tests README.md CHANGELOG.md CONTRIBUTING.md
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev ## ratios, measured in one run
	$(BIN)/python -m tests.benchmarks

docs: $(VENV)/.dev ## serve the documentation on loopback
	$(BIN)/mkdocs serve

clean: ## remove what was built (never the data directory)
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.up: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[all]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.up
