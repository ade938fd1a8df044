# Each target does all the set-up it needs, in a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-nfs oldest lint format type bench bench-peers wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# The stamps make the set-up happen once, and again when the requirements change.
$(VENV)/.demo: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("qwf needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; call: make PYTHON=python3.x") if sys.version_info < (3, 10) else 0'
	@echo "Setting up $(VENV) (once; about half a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing what tests and checks need (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	@touch $@

demo: $(VENV)/.demo ## train rolling models on real prices and print their signals
	@$(BIN)/qwf demo

test: $(VENV)/.dev ## run the tests
	@$(BIN)/python -m pytest --numprocesses=2

test-all: $(VENV)/.dev ## run the tests with many more generated examples
	@HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest --numprocesses=2 --timeout=600

# 77 says that nothing was tested, because this machine cannot; the one line that is printed says why.
test-nfs: $(VENV)/.dev ## run the pool on a real NFS server with two nodes, in a kernel of its own
	@$(BIN)/python -m tests.nfs.run || test $$? -eq 77

oldest: ## run the tests with the oldest supported versions of the dependencies
	@$(PYTHON) -m venv $(VENV)-oldest
	@$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' \
		'pandas==2.0.*' 'numpy==1.23.*' 'pyarrow==14.*' 'filelock==3.12.*' 'pyyaml==6.0.*'
	@$(VENV)-oldest/bin/python -m pytest --numprocesses=2 -W default

lint: $(VENV)/.dev ## check the style
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

type: $(VENV)/.dev ## check the types
	@$(BIN)/mypy

bench: $(VENV)/.demo ## measure against the raw system calls
	@for script in benchmarks/bench_*.py; do $(BIN)/python $$script --quick || exit 1; done

bench-peers: ## measure beside Qlib on MLflow, in a virtual environment of its own (minutes)
	@$(PYTHON) -m venv $(VENV)-bench
	@$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@for script in benchmarks/bench_*.py; do $(VENV)-bench/bin/python $$script || exit 1; done

wheel: $(VENV)/.dev ## build the wheel into dist/
	@rm -rf build dist
	@$(BIN)/python -m build --wheel --outdir dist .

clean: ## remove everything that the targets have made
	@rm -rf $(VENV) $(VENV)-oldest $(VENV)-bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .nfs
