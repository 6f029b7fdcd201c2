# Everything that a newcomer needs; `make` alone lists it.
PYTHON ?= python3
# more options for pip, such as an index that has a CPU build of torch
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo unit test coverage compat docs kills fuzz lint types bench bench-flower flower-versions gpu settings build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY_DEV) ## install everything into .venv

$(READY): pyproject.toml runtime/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e './runtime[cpu]' -e '.[cpu,demo]'
	@touch $@

$(READY_DEV): $(READY)
	$(INSTALL) -e './runtime[cpu]' -e '.[cpu,demo,dev,flower,rtx]'
	@touch $@

demo: $(READY) ## draw, train, export and classify; writes demo/report.html
	$(BIN)/fedapt demo --out demo

unit: $(READY_DEV) ## the quick tests, one file a core at a time
	$(BIN)/python -m pytest -n auto --dist loadfile tests/unit

test: $(READY_DEV) ## all tests, one file a core at a time
	$(BIN)/python -m pytest -n auto --dist loadfile

coverage: $(READY_DEV) ## all tests, and their coverage of lines and branches (90 % or more)
	$(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term --cov-fail-under=90

compat: $(READY_DEV) ## the unit tests on Python 3.11 to 3.13, and with the lowest direct dependencies
	$(BIN)/python tests/compat.py

kills: $(READY_DEV) ## kill and restart 200 jobs at random, ten minutes; KILLS=60 for fewer
	$(BIN)/python tests/kills.py --kills $(or $(KILLS),200)
	$(BIN)/python tests/federation_kills.py --kills 20

lint: $(READY_DEV) ## style, formatting and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY_DEV) ## strict types
	$(BIN)/mypy

fuzz: $(READY_DEV) ## ten minutes of damaged files; failures go into tests/fuzz/corpus
	FEDAPT_FUZZ_SECONDS=600 $(BIN)/python -m pytest -q tests/fuzz

bench: $(READY_DEV) ## the benchmarks that need no GPU; they write benchmarks/results
	$(BIN)/python benchmarks/lite_zero_shot.py
	$(BIN)/python benchmarks/office_caltech10.py
	$(BIN)/python benchmarks/fused_agreement.py
	$(BIN)/python benchmarks/fused_speed.py
	$(BIN)/python benchmarks/headroom.py
	$(BIN)/python benchmarks/joining.py
	$(BIN)/python benchmarks/unsupervised.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/many_clients.py
	$(BIN)/python benchmarks/runtime.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/unknown_domains.py
	$(BIN)/python benchmarks/families.py
	$(BIN)/python benchmarks/plot_office.py

bench-flower: $(READY_DEV) ## the benchmarks of federations over Flower
	$(BIN)/python benchmarks/federation.py
	$(BIN)/python benchmarks/poisoned.py
	$(BIN)/python benchmarks/privacy.py
	$(BIN)/python benchmarks/secure.py
	$(BIN)/python benchmarks/many_simulated.py
	$(BIN)/python benchmarks/idle_nodes.py
	$(BIN)/python benchmarks/flood.py

flower-versions: $(READY_DEV) ## the tests of federations on the lowest, a middle and the highest version of Flower
	$(BIN)/python tests/flower_versions.py

gpu: ## tests and benchmarks that need an NVIDIA GPU, in a separate environment
	bash benchmarks/gpu.sh

docs: $(READY_DEV) ## build the documentation in site/, and check every link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

settings: $(READY) ## write docs/settings.md and its JSON schema from the code
	$(BIN)/python -m fedapt.core.settings_page docs

build: $(READY) ## build both wheels into dist
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist ./runtime .

clean: ## remove the results of these targets
	rm -rf $(VENV) .venv-gpu demo dist build site .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
