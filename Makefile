# Everything a person or CI calls. `make` alone lists it. Nothing but make and Python >= 3.11 is presupposed: the
# environment is made in .venv from requirements/lock.txt, once (requirements/environment.py). PYTHON=... chooses one.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
# Dozens of processes start here: each would compile torch's modules anew, which takes longer than running them.
unexport PYTHONDONTWRITEBYTECODE

PYTHON_CHOSEN := $(if $(filter command line environment override,$(origin PYTHON)),--chosen)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; exit; }; done; echo python3)
endif

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Whole files to each process: a file's fixtures are made once. Three keep two cores busy, since some tests wait for
# others; the slow ones train, two are enough.
WORKERS ?= 3
SLOW_WORKERS ?= 2
PARALLEL := --dist loadfile --no-loadscope-reorder

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile

.PHONY: env
env: # the environment, if it is not there yet; says so in words where Python is too old or absent
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		found=$$($(PYTHON) --version 2>&1) || found="no Python that runs"; \
		echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$found" >&2; \
		echo "  -> install it, or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) requirements/environment.py $(PYTHON_CHOSEN)

.PHONY: demo
demo: env ## train, evaluate and report on made-up vessels and on a real picture (5 minutes)
	@$(BIN)/python scripts/demo.py

.PHONY: demo-panorama
demo-panorama: env ## questions about directions in made-up panoramas, with and without overlap (5 minutes)
	@$(BIN)/python scripts/demo_panorama.py

.PHONY: demo-scenes
demo-scenes: env ## rooms of 3D objects, sampled one by one and as scenes
	@$(BIN)/python scripts/demo_scenes.py

.PHONY: test
test: env ## the default tests: CPU, no network (4 minutes)
	@$(PYTEST) -m "not slow and not cluster" -n $(WORKERS) $(PARALLEL)

.PHONY: test-slow
test-slow: env ## learning checks, kill drills, two ranks (15 minutes)
	@$(PYTEST) -m "slow and not cluster and not ranks" -n $(SLOW_WORKERS) $(PARALLEL)
	@$(PYTEST) -m "slow and ranks"

.PHONY: cluster
cluster: env ## two Kubernetes nodes on this machine, for tests (Linux, root, Go; 35 GB; cold 15 minutes, warm 1)
	@$(BIN)/python -m cluster up

.PHONY: cluster-down
cluster-down: env ## stop them; PURGE=1 frees the disk too
	@$(BIN)/python -m cluster down $(if $(PURGE),--purge)

# One process: the tests share two nodes, and some take one away. ARGS="-k name" chooses.
.PHONY: test-cluster
test-cluster: env ## tests on a real cluster: ours, or the one of STAGELINE_TEST_KUBECONFIG (20 minutes cold)
	@$(BIN)/python -m cluster test -m "cluster and not slow" $(ARGS)

.PHONY: test-cluster-slow
test-cluster-slow: env ## the longer ones: kills in the middle, leftovers
	@$(BIN)/python -m cluster test -m "cluster and slow" $(ARGS)

.PHONY: soak
soak: env ## launchers killed, pods evicted, jobs cancelled at random (MINUTES=30)
	@$(BIN)/python -m cluster enter $(BIN)/python -m tests.cluster.soak --minutes $(or $(MINUTES),30) $(ARGS)

.PHONY: lint
lint: env ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

.PHONY: format
format: env ## rewrite the code as ruff wants it
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

.PHONY: lock
lock: env ## pin every dependency by hash (UPGRADE=--upgrade takes newer ones)
	@$(COMPILE) $(UPGRADE) --extra dev pyproject.toml -o requirements/lock.txt
	@$(COMPILE) --extra pipelines --extra cluster -c requirements/lock.txt pyproject.toml -o requirements/launcher.txt
	@$(COMPILE) --extra train --extra vlm --extra cluster -c requirements/lock.txt pyproject.toml \
		-o requirements/trainer.txt
	@echo setuptools | $(COMPILE) -c requirements/lock.txt - -o requirements/build.txt
	@echo "uv==$$($(BIN)/uv --version | cut -d' ' -f2)" | $(COMPILE) - -o requirements/uv.txt

.PHONY: images
images: ## build the trainer and the launcher (BASE_IMAGE=name@sha256:.. or ALLOW_TAG=1; BUILDER= REGISTRY= PUSH=1)
	@$(PYTHON) images/build.py --builder='$(BUILDER)' --base-image='$(BASE_IMAGE)' --registry='$(REGISTRY)' \
		--build-flags='$(BUILD_FLAGS)' --created='$(CREATED)' --source='$(SOURCE)' \
		$(if $(ALLOW_TAG),--allow-tag) $(if $(PUSH),--push) $(IMAGES)

.PHONY: sbom
sbom: ## what is in the images, as CycloneDX, into dist/sbom
	@$(PYTHON) images/sbom.py

.PHONY: render
render: env ## write what follows from something else: pipelines, manifests, the chart's tables
	@$(BIN)/python scripts/render_components.py
	@$(BIN)/python scripts/render_pipelines.py
	@$(BIN)/python scripts/render_chart.py
	@$(BIN)/python scripts/render_jobs.py
	@$(BIN)/python -m tests.jobs.jobs
	@$(BIN)/python -m tests.families.jobs

.PHONY: bench
bench: env ## measurements side by side, as ratios
	@for script in benchmarks/bench_*.py; do $(BIN)/python "$$script" || exit 1; done

.PHONY: clean
clean: ## remove what the other targets made, but for .venv
	@rm -rf build dist demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis src/*.egg-info
	@find . -path ./.venv -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf
