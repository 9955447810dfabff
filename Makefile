# Everything that a person types. `make help` lists it.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# Two machines at a time: each has one virtual CPU and a gigabyte of memory.
MACHINES ?= 2
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml constraints.txt
	@.ci/host-packages fast
	@test -x $(BIN)/python || python3 -m venv $(VENV)
	@echo "Installing the commands into $(BIN)/"
	@$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.installed ## Make the commands acl-updater, acl-release and acl-lab in .venv/bin/

.PHONY: setup-lab
setup-lab: setup ## And all that the lab boots: QEMU, OVMF, the reference image's base (minutes, once)
	@.ci/host-packages lab
	@$(BIN)/python -m integration.images

.PHONY: lint
lint: setup ## Lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: test-fast
test-fast: lint ## Lint, types, unit, property and contract tests: no root, no QEMU
	$(BIN)/pytest tests -n auto

.PHONY: test
test: lint setup-lab ## Everything, with real machines in QEMU
	$(BIN)/pytest tests -n auto
	$(BIN)/pytest integration -n $(MACHINES) --dist worksteal --junitxml build/integration/junit.xml

.PHONY: matrix
matrix: setup-lab ## Every fault of the catalogue that has no verdict yet: report in build/matrix (hours; MATRIX=… chooses)
	@$(BIN)/acl-lab matrix --jobs $(MACHINES) $(MATRIX)

.PHONY: demo
demo: setup-lab ## Watch a node update itself, commit, roll back and remember
	@$(BIN)/python -m integration.demo

.PHONY: schemas
schemas: setup ## Write docs/schemas/ anew from the code
	$(BIN)/python -m integration.schemas

.PHONY: bench
bench: setup ## Measure the data path against its peers: report in build/bench, tables in docs/benchmarks.md (an hour or more)
	@$(BIN)/python -m integration.bench --write-page $(BENCH)

.PHONY: bench-quick
bench-quick: setup ## The same on a small pair, ratios only (under three minutes, once its inputs are cached)
	@$(BIN)/python -m integration.bench --quick $(BENCH)

# The two halves of the proof side by side: a recorded machine keeps one processor busy, not two.
.PHONY: crash
crash: setup-lab ## Cut power at every effect of ours and every write of a recorded update; judge all, boot 25 (hours)
	@$(MAKE) --no-print-directory -j 2 crash-effects crash-machine

.PHONY: crash-effects
crash-effects: setup
	@mkdir -p build
	@echo "  effects of the updater, in the fast proof's long form: build/crash-effects.log"
	@CRASH_SWEEP=full nice $(BIN)/pytest tests/test_power_cuts.py tests/test_power_cut_mutations.py \
	  tests/test_power_cut_orders.py -n auto -q >build/crash-effects.log 2>&1 || { cat build/crash-effects.log; exit 1; }
	@tail -n 2 build/crash-effects.log | sed 's/^/  effects: /'

.PHONY: crash-machine
crash-machine: setup
	@$(BIN)/python -m integration.crash --machines $(MACHINES) $(CRASH)

.PHONY: fuzz
fuzz: setup ## Fuzz every parser of hostile input, ten minutes each (FUZZ="gpt uki --seconds 60": some, for less)
	@$(BIN)/python -m pip install -q -e '.[dev,fuzz]'
	@$(BIN)/python -m tests.fuzz $(FUZZ)

.PHONY: clean
clean: ## Remove what was built here (the shared cache stays)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
