# One target for each thing a person does; every target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What the demonstration needs is a third of that, and somebody waits for it.
USABLE := $(VENV)/.usable
# Many tests wait for a line or a clock: one worker more than there are cores.
WORKERS = $$(( $$(nproc) + 1 ))
# Where the environment forbids it, every one of a thousand processes would compile ted again.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help setup demo test test-long lint bench lab-test clean
help:
	@echo "make demo      build, send through two tiers, extract, update, roll back - on this machine"
	@echo "make test      the tests, with real agents, TLS, sshd and rsync"
	@echo "make test-long the rest: each type by playbook and under contract, broken plugins, kills, the demo, the tutorial"
	@echo "make lint      ruff, mypy --strict, ansible-lint, ansible-doc"
	@echo "make bench     measurements side by side with other tools"
	@echo "make lab-test  tests in network namespaces (root)"
	@echo "make clean     end the demo's agents and remove what was made here"

setup: $(READY)
$(READY): pyproject.toml scripts/setup
	PYTHON=$(PYTHON) scripts/setup $(VENV) dev
	@touch $(READY) $(USABLE)
$(USABLE): pyproject.toml scripts/setup
	PYTHON=$(PYTHON) scripts/setup $(VENV) ansible
	@touch $(USABLE)

demo: $(USABLE)
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo

test: setup
	scripts/test-packages
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -m "not slow and not long" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-long: setup
	scripts/test-packages
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -m "long and not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/lint-ansible

bench: setup
	scripts/test-packages
	$(BIN)/python -m benchmarks

lab-test: setup
	scripts/test-packages
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -m lab $(PYTEST_ARGS)

clean:
	-@test -x $(BIN)/ansible-playbook && echo "ending the demo's agents: up to a minute" && PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-playbook -i inventories/demo playbooks/uninstall.yml >/dev/null 2>&1
	rm -rf run $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
