# All set-up is here: every target makes what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One process more than cores, since some tests wait for others or for a program to end.
WORKERS := $(shell $(PYTHON) -c "import os; print(min(8, os.cpu_count() + 1))")
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
COMPARED := outputs/compare/$(shell date +%Y-%m-%d_%H-%M-%S)

.DEFAULT_GOAL := help
.PHONY: help setup train test check-all check-page check-gpu measure-gpu lint style types suite data compare reproduce tensorboard clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make .venv and install newllm with all that it needs

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,export,text]"
	@touch $@

train: $(READY)  ## train the default experiment; ARGS="key=value ..." changes it
	$(BIN)/python -m newllm.train $(ARGS)

test: $(READY) style  ## lint, types and the whole test suite
	$(MAKE) --jobs=2 types suite

check-all: $(READY) style  ## the test suite and the checks that take minutes each
	$(MAKE) --jobs=2 types suite MARKED='-m "not browser"'

check-page: $(READY)  ## the page of docs/export in a browser; needs chromium and npm
	cd docs/export && npm install --no-audit --no-fund
	$(BIN)/python -m pytest -m browser tests/test_export_page.py

check-gpu: $(READY)  ## check that everything works on a GPU (minutes)
	@$(BIN)/python -c "import torch, sys; torch.cuda.is_available() or sys.exit('check-gpu: torch finds no GPU here')"
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/gpu/checks.py --device cuda

measure-gpu: $(READY)  ## measure the speed on a GPU (eight minutes)
	$(BIN)/python -m newllm.benchmark --device cuda --output outputs/gpu

lint: style types  ## style, types and the order of imports

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

suite: $(READY)
	$(PYTEST) $(MARKED)

data: $(READY)  ## print a card for each corpus
	$(BIN)/python -m newllm.data

compare: $(READY)  ## the published final experiment beside the modern recipe
	$(BIN)/python -m newllm.train hydra.run.dir=$(COMPARED)/original
	$(BIN)/python -m newllm.train experiment=modern hydra.run.dir=$(COMPARED)/modern
	$(BIN)/python -m newllm.report $(COMPARED)/original $(COMPARED)/modern --figure $(COMPARED)/curves.png

reproduce: $(READY)  ## run the whole published series (about 15 minutes a seed) and report it; ARGS="seed=1"
	$(BIN)/python -m newllm.train sweep=series $(ARGS)
	$(BIN)/python -m newllm.report outputs/runs

tensorboard: $(READY)  ## look at runs in a browser; RUNS="FOLDER ..." chooses some
	$(BIN)/python -m newllm.board $(RUNS)

clean:  ## remove the environment and caches; never outputs/ or data/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find newllm tests -name __pycache__ -type d -prune -exec rm -rf {} +
