# Bare `make` lists what there is. Nothing here is more than one command: what it runs can be typed by hand.
SHELL := /bin/sh
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup test test-hot scenarios lint lab demo bench lock

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Debian packages, .venv from the lock, compiled code (root)
	./setup.sh

test: ## quick: pure Python, without the laboratory, about a minute
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest -q -m "not lab"

test-hot: ## the same tests, compiled
	$(BIN)/pytest -q -m "not lab"

scenarios: ## only the scenario files: model = pure pipeline = compiled pipeline
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest -q tests/test_scenarios.py
	$(BIN)/pytest -q tests/test_scenarios.py

lint: ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy

lab: ## a laboratory of network namespaces with the appliance, left up (root)
	$(BIN)/krononat lab up
	$(BIN)/krononat lab status

demo: ## what ./run.sh shows (root)
	$(BIN)/krononat lab demo --report report

bench: ## every bench, quickly; figures and plots in report/ (root, for memif and veth)
	$(BIN)/krononat bench all --quick

lock: ## write requirements.lock anew from setup.cfg
	$(BIN)/pip-compile --upgrade --generate-hashes --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-options \
		--allow-unsafe --extra bench --extra dev --output-file requirements.lock setup.cfg
