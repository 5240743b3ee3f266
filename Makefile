# One question, one target. `make test` and `make demo` work from a clean clone; they need git, make and Python >= 3.11 with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: test check demo bench format lint types imports unit system fault fuzz proto clean

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
pytest: $(VENV)/ready
	$(BIN)/python -m pytest

# The rooms without the system tests: seconds.
unit: $(VENV)/ready
	$(BIN)/python -m pytest -m 'not system'

system: $(VENV)/ready
	$(BIN)/python -m pytest -m system

# Kills, power cuts, full disks, registries that fail: everything three times. `make check` has it once.
fault: $(VENV)/ready
	FAULT_ROUNDS=3 $(BIN)/python -m pytest tests/fault

demo: $(VENV)/ready
	@$(BIN)/python -m tests.demo

bench: $(VENV)/ready
	$(BIN)/python -m bench.first_byte
	$(BIN)/python -m bench.tar_mount
	$(BIN)/python -m bench.durability

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
