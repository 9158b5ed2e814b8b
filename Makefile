# `make demo` and `make test` install what they need into a virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= deformscope-demo
PORT ?= 8000
# OpenMP's default is to spin while waiting, which on a busy machine makes several threads slower than one.
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK = 1

CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

.PHONY: demo test slow coverage lint lint-js size browser docs docs-serve pictures clean

demo: $(VENV)/.base
	$(BIN)/deformscope demo --out $(OUT)

# One process per core, at most eight; the tests of a file share what is slow to make.
test: lint browser
	$(BIN)/pytest -q -n auto --maxprocesses 8 --dist loadfile --durations 10

slow: $(VENV)/.test
	$(BIN)/pytest -q -m slow

# The lines that no fast test runs, in the terminal and in build/coverage.
coverage: $(VENV)/.test browser
	$(BIN)/pytest -q -n auto --maxprocesses 8 --dist loadfile --cov --cov-report term --cov-report html:build/coverage

# The tests of the page need a browser; without one they are skipped with a message.
browser:
ifeq ($(CHROMIUM),)
	@{ apt-get update && apt-get install -y --no-install-recommends chromium; } >/dev/null 2>&1 || \
	echo "make: no Chromium, browser tests will be skipped (apt install chromium, or set DEFORMSCOPE_CHROMIUM)" >&2
endif

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The page's JavaScript; needs Node, which nothing else does.
lint-js:
	npm install --no-audit --no-fund --no-package-lock
	npx eslint src/deformscope/explorer

# Lines and files of Python, by room, and files past 400 lines.
size:
	@sh tools/size.sh

# The site, in build/docs: opened from there it works without a network, search included.
docs: $(VENV)/.docs
	rm -rf docs/generated
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/docs $(PORT)

# The pictures of README.md and docs/, which are committed.
pictures: $(VENV)/.test
	$(BIN)/python tools/draw_docs.py
	$(BIN)/python tools/draw_explorer.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: $(PYTHON) cannot make a virtual environment; \
	install its venv module (on Debian: apt install python3-venv) or give PYTHON=" >&2; exit 1; }

$(VENV)/.base: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.base

$(VENV)/.docs: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	touch $@ $(VENV)/.base

clean:
	rm -rf $(VENV) build dist docs/generated *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
