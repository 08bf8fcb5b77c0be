# The only place where commands live. `make demo` and `make test` do everything on a fresh machine.
export PYTHONSAFEPATH := 1
PY   ?= python3
BIN  := .venv/bin
PROTOS := $(wildcard protos/packkv_protos/v1/*.proto)

.PHONY: help protos
help:       ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

build/protoc: pyproject.toml
	$(PY) -m venv --upgrade-deps $@ && $@/bin/pip install -q --group protos && touch $@
protos: build/protoc ## regenerate the protobuf code (committed; only after a change of a .proto)
	PATH="$(CURDIR)/$</bin:$$PATH" python -m grpc_tools.protoc -I protos --python_out=protos \
	  --grpc_python_out=protos --mypy_out=quiet:protos --mypy_grpc_out=quiet:protos $(PROTOS)
