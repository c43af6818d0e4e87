# All commands for the project. `make` without a target lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh
# Tests start hundreds of interpreters, and each would compile the modules again if none were allowed to cache them.
unexport PYTHONDONTWRITEBYTECODE

VENV ?= .venv
# The first Python of 3.11 or newer on this machine.
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := $(VENV)/bin
# How many tests run at a time. Most tests wait, so this may exceed the processors. No time limit depends on it.
JOBS ?= 6
PROTOS := $(wildcard proto/cellexport/v1/*.proto proto/cellexport/store/v1/*.proto)
# The contract that `make lint` compares with. A breaking change needs a decision (docs/decisions.md).
BASELINE := proto/baseline.binpb
SERVICES := proto/cellexport/v1/cell_export.proto proto/cellexport/v1/exporter.proto

NODE := examples/node
NODE_SOURCES := $(shell find $(NODE)/src -name generated -prune -o -name '*.ts' -print) \
	$(addprefix $(NODE)/,package.json tsconfig.json google_rpc.proto)

.PHONY: help run quick test test-faults check lint bench examples format proto proto-check baseline lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run ## start server, exporter and gateway on a demo unit, and print commands to try
	@$(BIN)/python examples/demo/run.py

quick: $(VENV)/.dev ## run the tests that start no program, in half a minute
	QUICK=1 $(BIN)/python -m pytest -m "not long and not process" -n 2

test: $(VENV)/.dev ## run every test except the long fault tests
	$(BIN)/python -m pytest -m "not long" -n $(JOBS) --dist loadfile

test-faults: $(VENV)/.dev ## run the long fault tests, and property tests with all their examples
	THOROUGH=1 $(BIN)/python -m pytest -m "long or thorough" -n $(JOBS) --maxschedchunk 1

check: lint test ## run everything that must pass before a change is merged

lint: $(VENV)/.dev proto-check ## run ruff, mypy and buf; check that the contract breaks no caller, and the stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(BASELINE)
	$(BIN)/buf format --diff --exit-code

bench: $(VENV)/.dev ## measure the CPU time of a status, compared with the possible minimum
	@$(BIN)/python tests/support/bench.py
	@$(BIN)/python tests/support/bench_tokens.py
	@$(BIN)/python tests/support/bench_watch.py

examples: $(NODE)/build/.made ## compile the examples in TypeScript: needs Node 18 or newer, with npm

format: $(VENV)/.dev ## format Python and proto files
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

proto: $(VENV)/.dev ## generate the committed stubs from the contract
	$(call stubs,proto)

baseline: $(VENV)/.dev ## make the present contract the one that must not be broken
	$(BIN)/buf build --exclude-source-info -o $(BASELINE)

proto-check: $(VENV)/.dev
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call stubs,"$$fresh") && \
	for stub in $$(cd "$$fresh" && find . -type f); do \
		cmp -s "$$fresh/$$stub" "proto/$$stub" || \
		{ echo "$${stub##*/} does not match the contract: run 'make proto' and commit the file." >&2; exit 1; }; \
	done

define stubs
PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto \
	--python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS) && \
PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto \
	--grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) $(SERVICES)
endef

lock: $(VENV)/.dev ## update all dependencies to their newest versions, pinned by hash
	$(BIN)/uv pip compile -q --upgrade --universal --generate-hashes --no-annotate --no-emit-package cellexport \
		--custom-compile-command 'make lock' --extra run -o requirements.txt pyproject.toml
	$(BIN)/uv pip compile -q --upgrade --universal --generate-hashes --no-annotate --no-emit-package cellexport \
		--custom-compile-command 'make lock' --extra dev -c requirements.txt -o requirements-dev.txt pyproject.toml

clean: ## remove everything that make created, including the demo unit
	rm -rf $(VENV) var dist .mypy_cache .pytest_cache .ruff_cache .hypothesis gen
	rm -rf $(NODE)/node_modules $(NODE)/build $(NODE)/src/generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, but is not on the PATH." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Python's venv module is needed (Debian: apt install python3-venv)." >&2; exit 1; }

$(VENV)/.run: requirements.txt pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	@echo "Installing the tools for development into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

$(NODE)/node_modules/.made: $(NODE)/package-lock.json
	@echo "Installing into $(@D) ..."
	@cd $(NODE) && timeout 300 npm ci --silent --prefer-offline
	@touch $@

$(NODE)/build/.made: $(NODE)/node_modules/.made $(NODE_SOURCES) $(PROTOS)
	@rm -rf $(@D) && cd $(NODE) && npm run --silent build
	@touch $@
