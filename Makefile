# `make run` and `make test` are all a newcomer needs: each sets up what it needs, once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

UV_VERSION := 0.13.8
VENV := .venv
BIN := $(VENV)/bin
# A file inside the environment, so that deleting the environment also forgets that it was made.
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
PYTEST_ARGS ?=
# A file stays on one worker, so that what its tests share is made once; the longest files come first.
PYTEST_PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

CONFIG ?= configs/movielens-100k.yaml
WORKDIR ?= runs/movielens-100k
RUN_USER ?= 196

.PHONY: help
help:  ## Show the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 24

.PHONY: run
run: $(STAMP)  ## Fetch MovieLens-100K, train, push, and recommend under three weightings
	$(BIN)/csmf datasets fetch movielens-100k
	$(BIN)/csmf run --config $(CONFIG) --workdir $(WORKDIR)
	$(BIN)/csmf recommend --workdir $(WORKDIR) --user $(RUN_USER) -n 10 \
	  --weights exposure=1 --weights click=1 --weights click=1,conversion=2

.PHONY: test
test:  ## All tests: the fast ones first, then the slow ones
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory slow

.PHONY: unit
unit: $(STAMP)  ## Fast tests only
	$(BIN)/python -m pytest $(PYTEST_PARALLEL) -m "not slow" $(PYTEST_ARGS)

.PHONY: slow
slow: $(STAMP) browser  ## Tests with real processes, Beam pipelines or training
	$(BIN)/python -m pytest $(PYTEST_PARALLEL) -m "slow and not distributed" $(PYTEST_ARGS) tests/pipeline tests

.PHONY: test-distributed
test-distributed: $(STAMP)  ## Beam on worker processes, and on Flink where its job server can be had
	$(BIN)/python -m pytest -rs -m distributed $(PYTEST_ARGS) tests/distributed

.PHONY: lint
lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: lock
lock: | $(UV)  ## Resolve setup.py anew into requirements.lock (LOCK_ARGS=--upgrade for newer ones)
	$(UV) pip compile --quiet --python-version 3.11 --extra dev $(LOCK_ARGS) \
	  --custom-compile-command "make lock" setup.py requirements.in -o requirements.lock

# Not by Playwright: its builds come from a CDN that many networks cannot reach.
.PHONY: browser
browser:  ## Chromium, which the tests of the explorer move
	@command -v chromium chromium-browser google-chrome >/dev/null && exit 0; \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	  echo "Installing Chromium"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium; } >/dev/null && exit 0; \
	fi; \
	echo "There is no Chromium, so tests that need a browser are skipped. To have them: sudo apt-get install chromium"

.PHONY: peers
peers: | $(UV)  ## Environment of the servers that `csmf bench serving` compares with (needs g++)
	@test -x .venv-peers/bin/python || $(UV) venv --quiet --python 3.11 .venv-peers
	$(UV) pip sync --quiet --python .venv-peers/bin/python benchmarks/serving/peers/requirements.txt

.PHONY: clean
clean:  ## Delete the environment, caches and build leftovers (data/ and runs/ stay)
	rm -rf .venv .venv-peers .uv build csmf.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up ---------------------------------------------------------------------------------

# `sync` makes the environment exactly the lock. csmf itself goes in without dependencies, because
# plain resolution would refuse tfx on Python 3.11, and without build isolation, because the lock
# already brings setuptools.
$(STAMP): requirements.lock setup.py | $(UV)
	@if ! test -x $(BIN)/python; then \
	  $(UV) venv --quiet --python 3.11 $(VENV) || { \
	    echo "error: Python 3.11 was not found and uv could not download one."; \
	    echo "  Debian 12: sudo apt-get install python3.11 python3.11-venv"; \
	    echo "  elsewhere: $(UV) python install 3.11"; \
	    echo "then run make again."; exit 1; } >&2; \
	fi
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "error: $(VENV) holds $$($(BIN)/python --version), but 3.11 is needed. Run: make clean" >&2; \
	  exit 1; }
	@echo "Installing the environment into $(VENV) (about 3 GB, a minute or two, only this once)"
	$(UV) pip sync --quiet --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# uv installs from any Python with the venv module and finds or downloads Python 3.11 itself.
.uv/bin/uv:
	@python=$$(command -v python3.11 || command -v python3) || { \
	  echo "error: neither python3.11 nor python3 was found." >&2; \
	  echo "  Debian 12: sudo apt-get install python3.11 python3.11-venv" >&2; exit 1; }; \
	echo "Installing uv $(UV_VERSION) into .uv with $$python"; \
	rm -rf .uv; \
	"$$python" -m venv .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) || { \
	  rm -rf .uv; \
	  echo "error: could not make a virtual environment with uv $(UV_VERSION) (see above)." >&2; \
	  echo "  If the venv module is missing: sudo apt-get install python3.11-venv" >&2; exit 1; }
