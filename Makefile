# Everything a person types. `make help` lists it.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || python3 -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.installed ## Make the commands in .venv/bin/ (no root, no QEMU)

.PHONY: lint
lint: setup ## Lint and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
