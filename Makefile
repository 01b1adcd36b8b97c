# make demo    sets everything up and runs the whole pipeline on the embedded world
# make test    sets everything up and passes the tests
# make bench-data DATA=...   measures the corpus stages beside what a user would take instead
# make bench-train DATA=...  measures training: speed, quality, survival, and the plan beside real runs
# make setup   what both begin with; PYTHON=python3.12 picks another Python

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
CLUSTER_STAMP := $(VENV)/.installed-cluster
DATA ?= $(MINI_CHAT_DATA)

.PHONY: demo test test-slow bench-data bench-train lint setup real chat lock clean

demo: setup
	$(BIN)/mini-chat demo

chat: setup
	$(BIN)/mini-chat chat out/demo

real: setup
	@test -n "$(DATA)" || { echo "make real: error: say where the text is: make real DATA=/path/to/data" >&2; exit 2; }
	MINI_CHAT_DATA="$(DATA)" $(BIN)/mini-chat run real-small

test: $(DEV_STAMP) lint
	$(BIN)/python -m pytest

test-slow: $(CLUSTER_STAMP)
	$(BIN)/python -m pytest -m slow

bench-data: $(DEV_STAMP)
	MINI_CHAT_DATA="$(DATA)" $(BIN)/python -m benchmarks.data

bench-train: $(DEV_STAMP)
	MINI_CHAT_DATA="$(DATA)" $(BIN)/python -m benchmarks.train

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mini_chat tests benchmarks main.py

setup: $(RUN_STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The lock file pins what was tested; pyproject.toml says what is allowed.
$(RUN_STAMP): $(BIN)/python pyproject.toml requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable .
	touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[corpus,oracle,dev]'
	touch $@

$(CLUSTER_STAMP): $(DEV_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[cluster]'
	touch $@

# After changing pyproject.toml in an environment whose tests pass.
lock: $(CLUSTER_STAMP)
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
