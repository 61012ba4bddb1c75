# demo, demo-real, test, test-slow, lint, docs: each installs what it needs into .venv first, once per change of the two files named below.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python

# Used by uv, and harmless without it: share files with its cache where it can, and be patient with large wheels.
export UV_LINK_MODE    ?= hardlink
export UV_HTTP_TIMEOUT ?= 300

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-real test test-slow lint docs clean distclean

help:
	@echo "make demo       a short demonstration on the CPU"
	@echo "make demo-real  the same with a pretrained model, about ten minutes"
	@echo "make test       the tests, without the slow ones"
	@echo "make test-slow  the slow tests"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the pages that are rendered from commands, components, keys and refusals"
	@echo "make clean      remove caches and build output (distclean: .venv too)"

demo: $(VENV)/.stamp-base
	$(VENV)/bin/dataflex-cli demo

demo-real: $(VENV)/.stamp-demo
	$(VENV)/bin/dataflex-cli demo dataflex-demo-real --real

# Tests run side by side, but for four at most: each of them takes about a gigabyte, and some start two processes.
PYTEST := $(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

test: $(VENV)/.stamp-test
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.stamp-test
	$(PYTEST) -m slow

lint: $(VENV)/.stamp-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(VENV)/.stamp-base
	$(PY) docs/render.py
	$(PY) docs/generate.py

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests benchmarks examples -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV)

# --- installing ---------------------------------------------------------------------------------------------------

# Usage: $(call require_python,<interpreter>)
define require_python
"$(1)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "dataflex needs Python 3.11 or newer, and $(1) is not: try make PYTHON=python3.11" >&2; exit 1; }
endef

$(PY):
	@$(call require_python,$(PYTHON))
	@$(PYTHON) -m venv $(VENV)

# .stamp-base is the package alone, .stamp-<extra> the package with that extra. The uv used is the one in .venv, else a
# fresh one put there, else the one on PATH (a .venv that uv made has no pip). Where uv fails, pip does the same, slower. Both
# are quiet but for errors.
$(VENV)/.stamp-%: what = $(if $(filter base,$*),.,.[$*])
$(VENV)/.stamp-%: pyproject.toml constraints.txt | $(PY)
	@$(call require_python,$(PY))
	@uv=$(VENV)/bin/uv; \
	if ! $$uv --version >/dev/null 2>&1; then \
		$(PY) -m pip install --quiet uv 2>/dev/null || uv=uv; \
	fi; \
	echo "installing $(what) into $(VENV), which takes some minutes the first time ..."; \
	$$uv pip install --quiet --python $(PY) --compile-bytecode -c constraints.txt -e '$(what)' || { \
		echo "uv cannot install here; going on with pip" >&2; \
		$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null; \
		$(PY) -m pip install --quiet -c constraints.txt -e '$(what)'; \
	}
	@touch $@
