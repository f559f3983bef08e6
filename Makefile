# make demo   the whole library on bundled digits: writes report/ and prints the table of claims
# make test   the test suite, in the same environment
# make lint   ruff, mypy, and the order of imports (import-linter)
# make docs   the site, in site/: runs every example, needs no network once installed
# make clean  removes the environment, the report and the caches

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# The install is editable: tests and the demo then always run the sources as they are, and an install is stale only if
# what it reads has changed, which is these files.
INSTALL := pyproject.toml constraints.txt src/lowhanging/_version.py
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
PIP     := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/lowhanging reproduce --out report

test: $(VENV)/.installed-test
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "not slow and not long"
	$(PYTEST) --dist load -m "slow and not long"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict
	@echo "Open site/index.html, or: $(BIN)/python -m http.server --directory site"

clean:
	rm -rf $(VENV) report site .pytest_cache .mypy_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Each extra holds what the ones before it hold, so that one install is enough.
$(VENV)/.installed: $(INSTALL) | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: $(INSTALL) | $(BIN)/python
	$(PIP) -e '.[test]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-dev: $(INSTALL) | $(BIN)/python
	$(PIP) -e '.[dev]'
	touch $(VENV)/.installed $(VENV)/.installed-test $@

# Beside the others: whoever reads the site needs no linters, whoever tests no site.
$(VENV)/.installed-docs: $(INSTALL) | $(BIN)/python
	$(PIP) -e '.[docs]'
	touch $(VENV)/.installed $@
