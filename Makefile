# Two commands do all set-up on a fresh machine: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install --require-hashes -r

WORKERS ?= $(shell echo $$(($$(nproc) * 2))) # of the tests, most of which wait for git and for jobs
SOAK_SECONDS ?= 900
FUZZ_SECONDS ?= 900

.PHONY: demo test test-trixie soak fuzz check bench audit-deps format lock clean

demo: .venv/run ## a tour: a forge of its own, a branch that fails and one that merges
	@$(BIN)/python forge.py demo $(ARGS)

test: .venv/test ## everything that must hold before a merge
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-trixie: ## on Debian 13, in a folder of its own: what touches git, Nix, bubblewrap, ssh, systemd and the command line
	@.ci/trixie $(ARGS)

bench: .venv/run ## figures beside those of the bare commands, in one run
	@$(BIN)/python tests/bench.py $(ARGS)

soak: .venv/test ## fifteen minutes of pushes while the server is killed, then every promise is looked at
	@$(BIN)/python tests/soak.py --seconds $(SOAK_SECONDS) $(ARGS)

fuzz: .venv/test ## fifteen minutes of requests, hook payloads, journals and ref names that nobody sane would send
	@$(BIN)/python tests/fuzz.py --seconds $(FUZZ_SECONDS) $(ARGS)

audit-deps: .venv/test ## are there known holes in what is installed? Wants the network; what could not be looked up fails
	@$(BIN)/pip-audit --strict --require-hashes --disable-pip -r .ci/requirements-test.txt

format: .venv/test
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

lock: ## pin what .ci/*.in ask for, with hashes; on the oldest Python that is supported
	cd .ci && for set in requirements requirements-test; do \
	  pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
	    --no-emit-options --output-file $$set.txt $$set.in; done

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis __pycache__ tests/__pycache__

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "forge needs Python 3.10 or newer; say make PYTHON=…")'
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/run: .venv/python .ci/requirements.txt
	@$(PIP) .ci/requirements.txt
	@touch $@

.venv/test: .venv/python .ci/requirements-test.txt .ci/axe/package-lock.json
	@$(PIP) .ci/requirements-test.txt
	@if command -v npm >/dev/null; then mkdir -p .venv/axe && cp .ci/axe/*.json .venv/axe && \
	  npm ci --silent --prefix .venv/axe --ignore-scripts --no-audit --no-fund >/dev/null; fi
	@touch $@ .venv/run
