# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GOLF := $(BIN)/python -m golf_lightning
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint types check clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(STAMP)  ## prepare text, train, export, score and print the result: 5 minutes on 2 CPU cores
	$(GOLF) prepare demo data/demo
	$(GOLF) fit --config configs/demo.yaml

test: $(STAMP)  ## the whole test suite
	$(BIN)/pytest -q -n auto --dist worksteal

lint: $(STAMP)  ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy on both packages
	$(BIN)/mypy

check: test lint types demo  ## everything that CI runs

clean:  ## remove the environment, prepared data, runs and caches
	rm -rf $(VENV) data/demo runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: a machine that offers a CPU build of exactly this version keeps it.
$(STAMP): setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep -E '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test]'
	touch $(STAMP)
