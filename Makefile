# Every target sets up what it needs. make help lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.cryobench-ready
PACKAGES := conf datasets encoders workers orchestrator
DEMO ?= .demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-faults test-all lint typecheck bench format clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## Create the virtual environment with the pinned packages.

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cryobench needs Python 3.11 or newer, found $$($(PYTHON) --version). Set PYTHON=/path/to/python3."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gfm,lora]'
	@touch $@

demo: setup ## Generate two data sets, sweep 24 trials over them, print the leaderboard.
	@mkdir -p $(DEMO)
	$(BIN)/cryobench data synth glid --data-dir $(DEMO)/data
	$(BIN)/cryobench data synth caffe --data-dir $(DEMO)/data
	$(BIN)/cryobench sweep sweep=demo --data-dir $(DEMO)/data --storage $(DEMO)/storage
	$(BIN)/cryobench leaderboard --storage $(DEMO)/storage
	@echo "Leaderboard file: $(DEMO)/storage/leaderboard/leaderboard.parquet"
	@echo "MLflow UI:        $(BIN)/cryobench ui --storage $(DEMO)/storage   (then open http://127.0.0.1:5000)"

test: setup ## Run the quick tests.
	$(BIN)/python -m pytest -m "not slow and not faults" -n 2 --dist loadfile --no-loadscope-reorder -q

test-slow: setup ## Run the slow tests; those that run whole sweeps one after the other.
	$(BIN)/python -m pytest -m "slow and not alone and not faults" -n 2 --dist load -q
	$(BIN)/python -m pytest -m "slow and alone and not faults" -q

test-faults: setup ## Run sweeps while workers, nodes, drivers, servers and networks fail; prints a table.
	$(BIN)/python -m pytest -m faults -q -s

test-all: test test-slow ## Run all tests.

lint: setup ## Check style, imports and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: setup ## Check types.
	@mkdir -p build/typecheck/cryobench
	@for package in $(PACKAGES); do ln -sfn ../../../$$package build/typecheck/cryobench/$$package; done
	MYPYPATH=build/typecheck $(BIN)/mypy -p cryobench
	MYPYPATH=build/typecheck:. $(BIN)/mypy --explicit-package-bases --implicit-reexport tests benchmarks

format: setup ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Run the benchmarks.
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean: ## Remove the environment and everything generated.
	rm -rf $(VENV) build $(DEMO) *.egg-info .mypy_cache .ruff_cache .pytest_cache
