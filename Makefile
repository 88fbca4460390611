PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Defuse needs Python 3.11 or newer; run: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/developer: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: .venv/installed  ## Run the whole method on 5,000 handwritten digits, into defuse-demo/
	$(BIN)/defuse demo

run: .venv/installed  ## Open the dashboard in a browser
	$(BIN)/defuse dashboard

check: .venv/developer  ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: .venv/developer browser  ## Run the tests, in minutes
	$(BIN)/python -m pytest -m 'not verify' -n logical --maxprocesses 8

verify: .venv/developer browser  ## Run what guards a release: the whole demo, kills, Ray, hostile files, mutants; an hour or two
	@failed=0; \
	$(BIN)/python -m pytest -m 'verify or hypothesis' --hypothesis-profile=verify --timeout 1800 || failed=1; \
	$(BIN)/python -m tests.campaign || failed=1; \
	$(BIN)/python -m tests.mutation || failed=1; \
	exit $$failed

APT := [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && apt-get install -y -qq

browser:
	@command -v chromium-headless-shell > /dev/null || { $(APT) chromium-headless-shell > /dev/null; } \
	  || command -v chromium google-chrome > /dev/null || { $(APT) chromium > /dev/null; } \
	  || echo "no Chromium: its tests are skipped; to have them run: apt-get install chromium-headless-shell"

screenshots: .venv/developer browser  ## Picture every page, light and dark, into screenshots/
	$(BIN)/python -m tests.screenshots

bench: .venv/developer  ## Measure speed and memory as ratios, into bench.json
	$(BIN)/python -m tests.benchmarks

.PHONY: help demo run check test verify browser screenshots bench
