# make demo       set up, then run the whole loop on this machine (no GPU, no key, no network but the package index)
# make test       set up, then run every test
# make test-fast  the pure parts only
# make lint       format, lint, types
# make lock       write requirements/*.txt from pyproject.toml
#
# PYTHON=python3.12 chooses the interpreter (3.11 or later), PINS=requirements/gpu.txt the packages of a GPU machine,
# TESTS_AT_ONCE=2 spares a slow machine: where three want its cores, Ray's heartbeats come too late.

PYTHON ?= python3
PINS ?= requirements/cpu.txt
TESTS_AT_ONCE ?= 3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1

.PHONY: setup demo test test-fast lint lock

setup: $(READY)

$(READY): $(PINS) requirements/no-deps.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: name a newer one with PYTHON=…"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --no-compile -r $(PINS) -r requirements/no-deps.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@# On all cores, where pip takes one; a file that a package brings for a later Python fails, as it does in pip.
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib dream_ray >/dev/null || true
	@touch $@

demo: $(READY)
	$(BIN)/dream-ray student build/student
	$(BIN)/dream-ray demo-prompts build/demo
	$(BIN)/python jobs/rlaif.py --config configs/local.yaml

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n 2
	@# Three processes on two cores unless told: much of a test is waiting, for Ray and for models to load.
	$(BIN)/python -m pytest -m slow -n $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n 2

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

lock: $(READY)
	requirements/lock
