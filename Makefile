# All that one does with this repository. `make help` lists the verbs.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
IMAGE := generated/hansard/hansard.binpb
BASELINE := proto/baseline.binpb
BUF_CHECK := --path hansard --config buf.yaml

# The first Python of these that runs, is new enough and can make a virtual environment.
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11 python
PYTHON ?= $(shell for python in $(PYTHONS); do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
		>/dev/null 2>&1 && echo "$$python" && break; done)

# Where it is set, every server that a test starts compiles all modules anew, for a second and more.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup gen fmt lint types breaking baseline checkgen test polyglot check bench soak run clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with Hansard (editable) and all tools in it
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv found; name one: make PYTHON=..." >&2; exit 1; }
	@echo "Installing Hansard and its tools into $(VENV); the first time takes some minutes."
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

gen: $(READY) ## Make generated/ from proto/
	$(BIN)/python tools/generate.py

fmt: $(READY) ## Format the code and mend what ruff can mend by itself
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lint: $(READY) ## Check style: ruff for the code, buf for the contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint $(IMAGE) $(BUF_CHECK)

types: $(READY) ## Check types: mypy, strict
	$(BIN)/mypy

breaking: $(READY) ## Check that the contract breaks no client of the last baseline
	@if test -f $(BASELINE); then \
		$(BIN)/buf breaking $(IMAGE) --against $(BASELINE) --against-config buf.yaml $(BUF_CHECK); \
	else echo "$(BASELINE) does not exist: this contract is the first baseline, nothing to compare."; fi

baseline: checkgen breaking ## Make today's contract the baseline (at a release; commit the file)
	cp $(IMAGE) $(BASELINE)

checkgen: $(READY) ## Check that generated/ is what proto/ says
	$(BIN)/python tools/generate.py --check

test: $(READY) ## Run every test, on SQLite and PostgreSQL (ARGS="-k name" for some)
	$(BIN)/pytest --numprocesses auto $(ARGS)

polyglot: $(READY) ## Run the clients in other languages, grpcurl and ghz against a server
	$(BIN)/pytest tests/polyglot -m "soak or not soak" $(ARGS)

check: lint types breaking checkgen test ## Run `make test` and all static checks, as CI does

bench: $(READY) ## Run the benchmarks
	$(BIN)/pytest tests/benchmarks --capture=no $(ARGS)

soak: $(READY) ## Run the tests marked soak, which take minutes to hours
	$(BIN)/pytest -m soak $(ARGS)

run: $(READY) ## Start a server to try out
	$(BIN)/hansard demo

clean: ## Remove all that these verbs made, .venv too (not generated/)
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests tools generated -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
