# `make demo` and `make test` install what each needs (once) on a Debian 12 machine, as root.
# `make test-unit` needs neither root nor apt nor /dev/fuse, only what pip can install.

PYTHON := .venv/bin/python
DEMO   := .venv/.demo
VENV   := .venv/.made
READY  := .venv/.ready
RESULTS ?= build/benchmarks.json

.PHONY: demo test test-unit test-long coverage fuzz soak bench bench-report bench-guest lint docs site deb clean

demo: $(DEMO)
	$(PYTHON) -m vconfs demo

test: lint
	scripts/run-tests

test-unit: $(VENV)
	$(PYTHON) -m pytest tests/unit

# More kills, more data, and floods and noise of a minute.
test-long: export VCONFS_LONG := 1
test-long: test

# Says which lines of vconfs the unit tests do not run.
coverage: $(READY)
	$(PYTHON) -m coverage run -m pytest -q tests/unit
	$(PYTHON) -m coverage report

# make fuzz TARGET=stream_guest TIME=60: without TARGET every target; TIME is seconds for each.
fuzz: $(READY)
	$(PYTHON) -m pip install -q -c tests/constraints.txt -e ".[fuzz]"
	$(PYTHON) -m tests.fuzz $(TARGET) --time $(or $(TIME),60)

# make soak TIME=20m SEED=1
soak: $(READY)
	$(PYTHON) -m tests.soak --time $(or $(TIME),20m) $(if $(SEED),--seed $(SEED))

# make bench NAME="costs memory": without NAME all.
bench: $(READY)
	$(PYTHON) -m benchmarks --results $(RESULTS) $(NAME)

# Writes docs/benchmarks.md and its plots from the results of make bench, or of another file.
bench-report: $(READY)
	$(PYTHON) -m pip install -q -c tests/constraints.txt -e ".[bench]"
	$(PYTHON) -m benchmarks.report $(RESULTS) docs

bench-guest: $(READY)
	$(PYTHON) -m benchmarks.guest
	$(PYTHON) -m benchmarks.uml

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

# Writes anew what the pages of docs/ take from the code, and the files of share/.
docs: $(READY)
	$(PYTHON) docs/generate.py

# Builds build/site from docs/; a dead link is an error.
site: $(READY)
	$(PYTHON) docs/site/build.py build/site

# Builds the Debian package in dist/, with what lintian says of it.
deb:
	scripts/build-deb dist

$(READY): scripts/bootstrap scripts/venv pyproject.toml tests/constraints.txt
	scripts/bootstrap test
	touch $@ $(VENV) $(DEMO)

$(DEMO): scripts/bootstrap scripts/venv pyproject.toml
	scripts/bootstrap demo
	touch $@

$(VENV): scripts/venv pyproject.toml tests/constraints.txt
	scripts/venv test
	touch $@

clean:
	rm -rf .venv .cache build dist
