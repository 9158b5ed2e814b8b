# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= deformscope-demo
# With OpenMP's default spinning, threads on a busy machine can be several times slower than one.
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK = 1

CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

.PHONY: demo test slow lint browser docs clean

demo: $(VENV)/.base
	$(BIN)/deformscope demo --out $(OUT)

test: lint browser
	$(BIN)/pytest -q

slow: $(VENV)/.test
	$(BIN)/pytest -q -m slow

# The tests of the page drive a real browser; without one they are skipped, and say so.
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

docs: $(VENV)/.test
	$(BIN)/python tools/draw_docs.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: $(PYTHON) cannot make a virtual environment; \
	install its venv module (on Debian: apt install python3-venv) or give PYTHON=" >&2; exit 1; }

$(VENV)/.base: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.base

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
