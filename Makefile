# `make` alone lists what there is. Everything happens in .venv; nothing outside this folder is changed.

PYTHON ?= python3
VENV   ?= .venv
PYTEST_ARGS ?= -n 2 --dist loadfile

BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCK := requirements/ci.txt

BENCH := build/bench
BENCH_ARGS ?=

LAWS_ARGS ?= --seeds 0-10000
SOAK_ARGS ?=

FUZZ_ARGS ?=

# Folders are in the list so that a file that goes away counts as a change too.
SOURCES := pyproject.toml README.md LICENSE \
	$(shell find extractor config -not -name '__pycache__' -not -name '*.py[co]')

# The lock holds for this interpreter and system only; elsewhere pip resolves anew.
LOCKED := import sys; sys.exit((sys.implementation.name, sys.platform, sys.version_info[:2]) != ("cpython", "linux", (3, 11)))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup demo check lint types imports test test-long format lock clean bench bench-memory bench-pacing runs-8640 laws laws-mutations nights backfill-year spark fuzz audit soak soak-steady

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## extract a made-up account from the built-in sandbox: no key, no network
	@$(BIN)/skysql-extract demo

setup: $(VENV)/.developed ## install the package and the tools of its developers into .venv

check: lint types imports test ## all that CI runs: format, lint, types, import direction, tests

lint: $(VENV)/.tools ## ruff: form and lint
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: $(VENV)/.tools ## mypy --strict
	@$(BIN)/mypy

imports: $(VENV)/.tools ## the direction of imports
	@$(BIN)/lint-imports --no-logo

# `pytest`, not `python -m pytest`: that would put this folder on sys.path, before the installed package.
test: $(VENV)/.developed ## all tests, against the installed package
	@SKYSQL_EXTRACTOR_TEST_INSTALLED=1 $(BIN)/pytest $(PYTEST_ARGS)

test-long: $(VENV)/.developed ## all tests, and those that take long
	@SKYSQL_EXTRACTOR_TEST_INSTALLED=1 SKYSQL_EXTRACTOR_TEST_LONG=1 $(BIN)/pytest $(PYTEST_ARGS)

format: $(VENV)/.tools ## put the code into the project's form
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(BENCH)/.installed ## speed and memory against a bare loop and dlt; BENCH_ARGS="--help" says more
	@$(BENCH)/venv/bin/python -m tests.bench $(BENCH_ARGS)

bench-memory: $(BENCH)/.installed ## peak memory up to ten million rows and samples
	@$(BENCH)/venv/bin/python -m tests.bench.memory $(BENCH_ARGS)

bench-pacing: $(VENV)/.developed ## how much of a server's rate limit is used, and refused; BENCH_ARGS="--rate 50"
	@$(BIN)/python -m tests.bench.pacing $(BENCH_ARGS)

runs-8640: $(VENV)/.developed ## a month of runs, every five minutes: what the lake and its log grow to, readers beside
	@$(BIN)/python -m tests.bench.runs $(BENCH_ARGS)

# Against the files as they stand here, not the installed package.
laws: $(VENV)/.developed ## whole runs in 10,000 made-up worlds; LAWS_ARGS="--seed 7" replays one
	@$(BIN)/python -m tests.laws $(LAWS_ARGS)

laws-mutations: $(VENV)/.developed ## plant each known bug in a copy, and see that the laws find it
	@$(BIN)/python -m tests.laws.mutations

# In an environment of its own: Spark is 800 MB, and needs Java.
spark: build/spark/.installed ## read a lake of ten changing nights with Spark, too, with what `ddl` prints for it
	@build/spark/bin/python -m pytest -q --timeout 300 tests/flow/test_readers.py

nights: $(VENV)/.developed ## thirty nights of an account that lives on, without crashes and with; NIGHTS_ARGS="--seed 2"
	@$(BIN)/python -m tests.nights $(NIGHTS_ARGS)

backfill-year: $(VENV)/.developed ## a year of notifications and log archives, killed twice, beside two nightly runs
	@$(BIN)/python -m tests.nights.year

fuzz: $(VENV)/.developed ## ten minutes of damaged input for each reader; FUZZ_ARGS="--target json --minutes 2"
	@$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

audit: ## known vulnerabilities of what is locked; needs a network
	@test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/python -m pip \
		--disable-pip-version-check --quiet install 'pip-audit>=2.9'; }
	@build/audit/bin/pip-audit --strict --disable-pip --require-hashes -r $(LOCK)

soak: $(VENV)/.developed ## kill runs at random instants for hours; SOAK_ARGS="--kills 20 --mean 5" for a short one
	@$(BIN)/python -m tests.soak $(SOAK_ARGS)

soak-steady: $(VENV)/.developed ## half an hour at 200 requests a second: nothing may grow; SOAK_ARGS="--minutes 2"
	@$(BIN)/python -m tests.soak.steady $(SOAK_ARGS)

lock: ## resolve the developers' requirements anew, into requirements/ci.txt
	@rm -rf build/lock
	@$(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip --disable-pip-version-check --quiet install 'pip-tools>=7.5'
	@CUSTOM_COMPILE_COMMAND='make lock' build/lock/bin/pip-compile --quiet --upgrade --extra dev --strip-extras \
		--generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--output-file $(LOCK) pyproject.toml
	@rm -rf build/lock

clean: ## remove .venv, builds and caches
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find extractor tests -name '__pycache__' -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# Two environments, so that what the others need never stands in the way of the package.
$(BENCH)/.installed: requirements/bench.txt $(SOURCES)
	@echo "installing skysql-extractor and what it is compared with into $(BENCH)"
	@for name in venv venv-peers; do test -x $(BENCH)/$$name/bin/python || $(PYTHON) -m venv $(BENCH)/$$name || exit; done
	@$(BENCH)/venv/bin/python -m pip --disable-pip-version-check --quiet install .
	@$(BENCH)/venv-peers/bin/python -m pip --disable-pip-version-check --quiet install -r requirements/bench.txt
	@touch $@

build/spark/.installed: requirements/spark.txt $(SOURCES)
	@echo "installing skysql-extractor and Spark into build/spark"
	@test -x build/spark/bin/python || $(PYTHON) -m venv build/spark
	@build/spark/bin/python -m pip --disable-pip-version-check --quiet install '.[dev]' -r requirements/spark.txt
	@touch $@

# Three stamps: the package with what it needs, the developers' tools, the package among those tools.
$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	@echo "installing skysql-extractor into $(VENV)"
	@$(PIP) install .
	@touch $@

$(VENV)/.tools: pyproject.toml $(LOCK) | $(BIN)/python
	@echo "installing the developers' tools into $(VENV)"
	@if $(BIN)/python -c '$(LOCKED)'; then $(PIP) install --require-hashes -r $(LOCK); else $(PIP) install '.[dev]'; fi
	@touch $@

$(VENV)/.developed: $(VENV)/.tools $(SOURCES)
	@echo "installing skysql-extractor into $(VENV)"
	@$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	@touch $@
