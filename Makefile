# Spark Control: `make demo` shows it, `make test` and `make lab-test` prove it.

# The first Python that is new enough; a pyenv shim that only explains itself does not count.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PORT ?= 9999
DEMO_LOAD_SECONDS ?= 6
ROUNDS ?= 50
FIRST ?= 0
VENV := .venv

.PHONY: demo install test fuzz chaos bench lint clean lab lab-down lab-test molecule
.DEFAULT_GOAL := demo

# One run of pip for what is wanted: each builds the package anew. What Python never imports it need not compile.
define fill
	@test -n "$(PYTHON)" || { echo "Spark Control needs Python 3.11 or newer (with venv)." >&2; exit 1; }
	@echo "Installing into $(VENV) …"
	@# An old pip cannot add an extra to what is installed (httpx with and without http2).
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv --upgrade-deps $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.$(1)'
	@touch $@
endef

$(VENV)/ready: pyproject.toml
	$(call fill)

$(VENV)/ready-test: pyproject.toml
	$(call fill,[test])

$(VENV)/ready-demo: pyproject.toml
	$(call fill,[demo])

install: $(VENV)/ready

demo: $(VENV)/ready-demo
	@PORT=$(PORT) DEMO_LOAD_SECONDS=$(DEMO_LOAD_SECONDS) exec roles/demo_spark/files/demo.sh

# Unit, integration and browser tests: no docker, no root.
test: $(VENV)/ready-test
	@tests/need-debian.sh chromium-headless-shell rsync
	@$(VENV)/bin/python -m pytest -n 2 --dist loadgroup -m 'not lab' $(PYTEST_ARGS)

# The properties once more, each with a thousand new examples.
fuzz: $(VENV)/ready-test
	@$(VENV)/bin/python -m pytest -n 2 -m hypothesis --hypothesis-profile=fuzz tests/unit $(PYTEST_ARGS)

# Rounds of killing and half-writing while a model is swapped; two clusters side by side.
chaos: $(VENV)/ready-test
	@CHAOS_FIRST=$(FIRST) CHAOS_ROUNDS=$(ROUNDS) $(VENV)/bin/python -m pytest -n 2 tests/chaos $(PYTEST_ARGS)

# A lab of Sparks with a real sshd and a real dockerd each: up, down, and what is proven on it.
lab: $(VENV)/ready-test
	@$(VENV)/bin/python -m tests.lab up

lab-down: $(VENV)/ready-test
	@$(VENV)/bin/python -m tests.lab down

lab-test: $(VENV)/ready-test
	@$(VENV)/bin/python -m pytest -n 2 --dist loadgroup -m lab tests/lab $(PYTEST_ARGS)
	@CHAOS_FIRST=10 CHAOS_ROUNDS=42 $(VENV)/bin/python -m pytest -n 2 tests/chaos $(PYTEST_ARGS)

# Every role's scenario; for one of them: cd roles/<role> && molecule test
molecule: $(VENV)/ready-test
	@$(VENV)/bin/python -m pytest tests/lab/test_molecule.py $(PYTEST_ARGS)

bench: $(VENV)/ready-test
	@for bench in tests/bench/bench_*.py; do $(VENV)/bin/python $$bench || exit 1; done

lint: $(VENV)/ready-test
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/lint-imports --no-logo
	@$(VENV)/bin/ansible-playbook --syntax-check -i inventory/demo playbooks/*.yml >/dev/null
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/ansible-lint --offline -q
	@tests/sanity.sh

clean:
	@rm -rf $(VENV) var .pytest_cache .ruff_cache
