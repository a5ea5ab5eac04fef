# Two commands do all the set-up: `make demo` and `make test`.
# PYTHON: any Python 3.11 or newer, used to make VENV. Installation runs again only where its inputs changed.
PYTHON ?= python3
VENV ?= .venv
CHECKPOINT ?= checkpoints/lomdm-enwiki

run := "$(VENV)/bin/python"
inputs := setup.py pyproject.toml constraints.txt tools/install.sh
sources := src tests tools training_scripts metrics benchmarks studies space docs setup.py

.PHONY: help demo hub-folders test test-slow format lint types docs
.NOTPARALLEL:

help:
	@echo "make demo       install, then write text with the shipped checkpoint and show the order of writing"
	@echo "make test       install what tests need, run the fast suite"
	@echo "make test-slow  run the slow tests"
	@echo "make hub-folders  write the Hub folder of each checkpoint, with its code, to export/"
	@echo "make format     format and fix the code;  make lint checks only"
	@echo "make types      check the types of modeling, data and pipelines"
	@echo "make docs       build the documentation into site/; a broken link is an error"

$(VENV)/.installed-demo: $(inputs)
	PYTHON="$(PYTHON)" tools/install.sh "$(VENV)" train,viz
	@touch "$@"

$(VENV)/.installed-dev: $(inputs)
	PYTHON="$(PYTHON)" tools/install.sh "$(VENV)" dev
	@touch "$@"

demo: $(VENV)/.installed-demo
	$(run) training_scripts/sample.py --model "$(CHECKPOINT)" --num_inference_steps 64 --seed 0 --show_order

# lomdm-smollm2 needs its base from the Hub
hub-folders: $(VENV)/.installed-demo
	for name in $(notdir $(filter-out checkpoints/lomdm-smollm2,$(wildcard checkpoints/*))); do \
	    $(run) training_scripts/export_to_hub.py --model "checkpoints/$$name" --output "export/$$name" || exit 1; \
	done

test: $(VENV)/.installed-dev
	$(run) -m pytest -m "not slow" -n auto --dist worksteal

test-slow: $(VENV)/.installed-dev
	$(run) -m pytest -m slow

format: $(VENV)/.installed-dev
	$(run) -m ruff format $(sources)
	$(run) -m ruff check --fix $(sources)

lint: $(VENV)/.installed-dev
	$(run) -m ruff format --check $(sources)
	$(run) -m ruff check $(sources)

types: $(VENV)/.installed-dev
	$(run) -m mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(run) -m mkdocs build --strict
