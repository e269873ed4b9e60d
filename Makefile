# RedFlag. Two commands matter: `make up` runs it, `make test` proves it.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DATA   ?= .redflag
ARGS   ?=
TEXT   := redflag_core redflag_server redflag_agent integrations docs tests mkdocs.yml Makefile README.md CHANGELOG.md CONTRIBUTING.md

.PHONY: help up test test-full coverage mutation check bench docs constraints clean

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

up: $(VENV)/.up ## set up and run: server, local agent, dashboard
	@$(BIN)/redflag up --data $(DATA) $(ARGS)

test: $(VENV)/.dev ## all that a change can break
	$(BIN)/python -m pytest -n auto -m "not full" $(ARGS)

test-full: $(VENV)/.dev coverage ## the exhaustive sweeps too, on every supported Python that is installed
	$(BIN)/python -m pytest -n auto $(ARGS)
	tests/other_pythons.sh

coverage: $(VENV)/.dev ## that the tests of redflag_core take every line and every branch of it
	$(BIN)/python -m pytest -n auto -m "not full" --cov --cov-report=term-missing tests/core

mutation: $(VENV)/.mutation ## that the tests notice mistakes in the modules that verify; ARGS names some of them
	$(BIN)/python -m pytest -n 0 -q tests/mutation
	$(BIN)/python -m tests.mutation $(ARGS)

check: $(VENV)/.dev ## ruff, mypy --strict, import-linter, codespell, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell $(TEXT)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev ## ratios, measured in one run
	$(BIN)/python -m tests.benchmarks

docs: $(VENV)/.dev ## serve the documentation on loopback
	$(BIN)/mkdocs serve

constraints: $(VENV)/.dev ## pin what is installed in constraints.txt
	$(BIN)/python -m tests.helpers.constraints > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean: ## remove what was built (never the data directory)
	rm -rf $(VENV) .venv-3.* build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .coverage .coverage.* htmlcov

# A virtual environment without pip is worse than none: it would look finished to the next run.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "RedFlag needs Python 3.11 or newer. On Debian: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "Python's venv module is missing. On Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/.up: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing RedFlag into $(VENV) ..."
	@$(PIP) -e '.[all]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing RedFlag and its tests into $(VENV) ..."
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.up

$(VENV)/.mutation: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing RedFlag, its tests and mutmut into $(VENV) ..."
	@$(PIP) -e '.[dev,mutation]'
	@touch $@ $(VENV)/.dev $(VENV)/.up
