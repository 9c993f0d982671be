# Two commands do everything on a fresh machine: `make demo` and `make test`. They need Python 3.11-3.13, make, and a
# package source that pip can reach for the first set-up.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c '' 2>/dev/null && { echo $$p; break; }; done)
PY := .venv/bin/python
PACKAGES = $(wildcard core cluster federated hanse)
TESTS ?=
JOBS ?= 3
SWEEP ?= 20
SIDE_BY_SIDE = -n $(JOBS) --dist loadfile --no-loadscope-reorder
unexport PYTHONDONTWRITEBYTECODE  # set in many containers: then each process that a test starts compiles everything anew

.DEFAULT_GOAL := help
.PHONY: help setup demo test sweep check format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with the tested versions: 0.5 GB to download the first time, nothing after that
	@$(or $(PYTHON),python3) deploy/bootstrap.py

demo: setup ## train on real data, here and on two Ray workers, and compare (under a minute after set-up)
	@echo "demo: .venv/bin/hanse demo"
	@.venv/bin/hanse demo

test: setup ## all tests, core first, three at a time (TESTS=tests/core runs a part one after the other, JOBS=1 all)
	@echo "test: core, where ray and flwr cannot be imported; then everything else"
ifeq ($(TESTS),)
	@HANSE_TEST_WITHOUT=ray,flwr $(PY) -m pytest -q tests/core $(SIDE_BY_SIDE)
	@$(PY) -m pytest -q tests --ignore=tests/core $(SIDE_BY_SIDE)
else
	@$(PY) -m pytest -q $(TESTS)
endif

sweep: setup ## tests that try drawn cases, with SWEEP times as many (TESTS=tests/fuzz, SWEEP=20)
	@echo "sweep: $(or $(TESTS),tests/fuzz), $(SWEEP) times as many cases"
	@HANSE_SWEEP=$(SWEEP) $(PY) -m pytest -q --timeout 0 $(or $(TESTS),tests/fuzz)

check: setup ## formatting, lint, types, architecture: what must hold before a commit
	@echo "check: ruff format, ruff check, mypy --strict, tests/architecture"
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy $(PACKAGES) deploy/bootstrap.py
	@$(PY) -m pytest -q tests/architecture

format: setup ## rewrite the sources in the project's format and order of imports
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix-only --quiet .

bench: setup ## the measurements behind docs/results.md, one JSON line each
	@$(PY) -m bench

clean: ## remove what make made: .venv and caches; runs/ stays
	@echo "clean: removing .venv, caches and builds (runs/ stays)"
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
