# `make` shows what there is. Works with GNU make 3.81 (macOS) and newer; needs Python 3.11 or newer, nothing else.

PYTHON ?= python3
BIN := .venv/bin
RUNS := server,embedded
EXTRAS := $(RUNS),aws,dev

.DEFAULT_GOAL := help
.PHONY: help setup run demo test patroni check lint types crash-matrix format docs changelog screenshots bench bench-full bench-docs constraints sbom audit clean

help: ## Show this
	@echo "Mailkeep: durable outbound mail. Begin with: make demo"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(BIN)/.ready ## Install everything into .venv (the others do it when needed)
	@echo "Ready: $(BIN)/mailkeep --help"

run: $(BIN)/.runs ## Run Mailkeep with embedded servers and example mails
	@$(BIN)/mailkeep dev --examples

demo: $(BIN)/.runs ## The same, ending after the examples
	@$(BIN)/mailkeep dev --examples --once

test: $(BIN)/.ready ## Run the tests
	$(BIN)/pytest -n auto --dist worksteal

patroni: $(BIN)/.ready ## Fail over under load, with Debian's Patroni and HAProxy
	MAILKEEP_TEST_FAILOVER=1 $(BIN)/pytest -s tests/acceptance/test_patroni.py

check: lint ## Run what CI runs: format, lint, layers, types, SBOM, tests
	@$(MAKE) -j3 --no-print-directory types sbom test

lint: $(BIN)/.ready
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports

types: $(BIN)/.ready
	$(BIN)/mypy

crash-matrix: $(BIN)/.ready ## Break every step of a mail in four ways
	PYTHONPATH=tests $(BIN)/python tests/acceptance/crash_matrix.py --out docs/reference/crash-matrix.md

format: $(BIN)/.ready ## Format the code and mend what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(BIN)/.ready ## Write what follows from the code: reference, man pages, api
	@$(BIN)/python docs/generate.py
	@$(BIN)/python docs/manpages.py
	@$(BIN)/python api/generate.py

changelog: $(BIN)/.ready ## Write CHANGELOG.md anew, from changelog.d
	@$(BIN)/python docs/changelog.py

screenshots: $(BIN)/.ready ## Make the pictures of the console anew (needs Chromium)
	@$(BIN)/python docs/screenshots.py

bench: $(BIN)/.ready ## Measure throughput and latency on this machine
	$(BIN)/python -m bench

bench-full: $(BIN)/.ready ## Measure every row: four hours, a quiet machine, 20 GB
	$(BIN)/python -m bench --rows all --json bench/results.json

bench-docs: $(BIN)/.ready ## Write the pages and charts that follow from bench/results.json
	@$(BIN)/python docs/benchmarks.py

constraints: ## Renew constraints.txt (needs uv)
	@echo "# Versions that were tested together, on Python 3.11 to 3.14; \`make constraints\` renews them." > constraints.new
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --no-header -q \
		| sed -e "/ == 'win32'/d" -e "/ == 'emscripten'/d" >> constraints.new
	mv constraints.new constraints.txt

sbom: $(BIN)/.ready ## Write sbom.json (CycloneDX) of what a production installs, and judge it
	@$(BIN)/python deploy/bill_of_materials.py --out sbom.json

audit: .supply/.ready ## Ask for known vulnerabilities; needs the internet
	.supply/bin/pip-audit --disable-pip --no-deps --requirement constraints.txt || \
		{ echo "Known vulnerabilities above, or no way to the internet: see the lines before this one" >&2; exit 1; }

clean: ## Remove .venv and caches; mail data is kept
	rm -rf .venv .django .supply sbom.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist

# What `run` and `demo` need is a third of everything, so that a newcomer does not wait for the tools of tests.
$(BIN)/.runs: WANTED := $(RUNS)
$(BIN)/.ready: WANTED := $(EXTRAS)
$(BIN)/.runs $(BIN)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Mailkeep needs Python 3.11 or newer; name yours: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into .venv ($(WANTED)); later runs skip this ..."
	@if command -v uv >/dev/null; then \
		uv venv -q --allow-existing --python $(PYTHON) .venv && \
		uv pip install -q --python $(BIN)/python -e '.[$(WANTED)]' -c constraints.txt; \
	else \
		$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
			{ echo "Python's venv is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
		$(PYTHON) -m venv .venv && \
		$(BIN)/python -m pip install -q --use-pep517 --no-compile --disable-pip-version-check -e '.[$(WANTED)]' -c constraints.txt; \
	fi
	@touch $@ $(BIN)/.runs

.supply/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -m venv .supply && .supply/bin/python -m pip install -q 'pip-audit' -c constraints.txt
	@touch $@
