# `make run` and `make test` need nothing but Python 3.11+, make and a C compiler: they set up .venv by themselves.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The interpreter for .venv: the first that is 3.11 or newer and can make environments. make PYTHON=… chooses another.
CANDIDATES := python3.11 python3.12 python3.13 python3.14 python3 python
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" -c '$(SUITABLE)' >/dev/null 2>&1 && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
# Two processes; a file's tests stay in one, since they share its models.
PARALLEL := -n 2 --dist loadfile

# One thread: several processes that spin on a few cores are many times slower, and benchmarks would measure that.
test test-slow test-zoo check bench: export OMP_NUM_THREADS = 1

.PHONY: help run test test-slow test-all test-zoo check bench signatures schedulers rooms clean

help:  ## Say what can be made
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

run: $(READY)  ## Draw the image of test_input.json into outputs/
	@$(BIN)/python handler.py $(ARGS)

test: $(READY)  ## Run the tests, less the slow ones; ARGS='tests/core -x' for some of them
	@$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-slow: $(READY)  ## Run the slow tests that test leaves out, less the zoo
	@$(BIN)/python -m pytest -m "slow and not zoo" $(PARALLEL) $(ARGS)

test-all: test test-slow test-zoo  ## Run every test, which takes many minutes more

test-zoo: $(READY)  ## Run a tiny model of every pipeline class of diffusers, which takes minutes
	@$(BIN)/python -m pytest tests/zoo -m zoo $(PARALLEL) $(ARGS)

check: $(READY)  ## What CI runs: format, lint, types, import rules, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) test

bench: $(READY)  ## Measure; ARGS=… goes to the benchmarks
	@$(BIN)/python -m benchmarks $(ARGS)

signatures: $(READY)  ## Learn the model classes of the installed diffusers, after a new one was pinned
	@$(BIN)/python -m tools.component_signatures

schedulers: $(READY)  ## Measure which schedulers each pipeline class runs with, after a new diffusers was pinned
	@$(BIN)/python -m tests.zoo.schedulers
	@$(BIN)/python -m tools.schedulers_page

rooms: $(READY)  ## Draw docs/rooms.svg, after a wall between rooms was moved
	@$(BIN)/python -m tools.rooms_page

clean:  ## Remove .venv and what the tools left; images and downloaded models stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.txt requirements-spandrel.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11+ with venv found; say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { rm -rf $(VENV); "$(PYTHON)" -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-spandrel.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
