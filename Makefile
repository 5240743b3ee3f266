# One question, one target. `make test` and `make demo` work from a clean clone; they need git, make and Python >= 3.11 with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: test check demo bench format lint types imports unit system fault conformance fuzz proto clean

test: check

check: lint types imports pytest

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

format: $(VENV)/ready
	$(BIN)/ruff format daemon tests bench
	$(BIN)/ruff check --fix daemon tests bench

lint: $(VENV)/ready
	$(BIN)/ruff format --check daemon tests bench
	$(BIN)/ruff check daemon tests bench

types: $(VENV)/ready
	$(BIN)/mypy

imports: $(VENV)/ready
	$(BIN)/lint-imports

.PHONY: pytest
pytest: unit system

# The rooms without the system tests: seconds.
unit: $(VENV)/ready
	$(BIN)/python -m pytest -m 'not system' -n auto --maxprocesses 4

# One after another: they look at the machine's mounts and load it themselves.
system: $(VENV)/ready
	$(BIN)/python -m pytest -m system

# Kills, power cuts, full disks, registries that fail: everything three times. `make check` has it once.
fault: $(VENV)/ready
	FAULT_ROUNDS=3 $(BIN)/python -m pytest tests/fault

# containerd's own snapshotter suite, in Go, on ext4 and on XFS: two minutes, and five more (and 3 GB in .lab) the first time.
conformance: $(VENV)/ready
	$(BIN)/python -m tests.conformance.run_go

demo: $(VENV)/ready
	@$(BIN)/python -m tests.demo

# One after another, each alone on the machine: more than an hour. `make bench BENCHES="pull far" BENCH_FLAGS=--small`: two of them, dry.
BENCHES ?= pull limited far lazy demand reading cost mount_time headers first_byte tar_mount durability verbs pull_run fuse
BENCH_FLAGS ?=
bench: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@set -e; for bench in $(BENCHES); do echo "== bench.$$bench"; $(BIN)/python -m bench.$$bench $(BENCH_FLAGS); done

# Coverage-guided. New inputs and findings go into .fuzz/; what is worth keeping is moved into the corpus by hand.
FUZZ_SECONDS ?= 600
fuzz: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,fuzz]'
	mkdir -p .fuzz/tar
	$(BIN)/python -m tests.fuzz.tar_walker -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=.fuzz/ .fuzz/tar tests/fuzz/corpus/tar

proto: $(VENV)/ready
	PYTHON=$(BIN)/python sh proto/generate.sh

clean:
	rm -rf $(VENV) .lab .fuzz build daemon/*.egg-info
