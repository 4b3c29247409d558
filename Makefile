# The two commands of the README, and the checks behind them. Needs Python 3.11+ and make, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEVSTAMP := $(VENV)/.installed-dev
DEMO_OUT ?= runs/demo
JOBS   ?= 2
# Pure tests and those of files: no ranks, no clusters, no browsers.
QUICK  := $(addprefix tests/,config objective metrics augment packing run tuning/test_space.py tuning/test_state.py tuning/test_asha.py data/test_plan.py data/test_sampler.py data/test_decode.py test_files.py test_layers.py)

.PHONY: help demo install test quick lint docs coverage benchmarks campaign clean

help:
	@echo "make demo        install, pack the sample, train on two processes, evaluate, write $(DEMO_OUT)/report.html"
	@echo "make quick       lint, types and the tests that start no processes, in a minute and a half"
	@echo "make test        install, lint, type-check, run the whole suite"
	@echo "make docs        build the documentation site into site/ (make test builds it, too)"
	@echo "make coverage    the suite with a coverage table"
	@echo "make benchmarks  what the documentation's figures come from"
	@echo "make campaign    slow checks of correctness, for hours: seeded bugs, faults, crashes, lives of jobs"

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"marc-dist needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[weights]'
	@touch $@

$(DEVSTAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/marc-shard --dataset sample --out data/sample --force
	rm -rf $(DEMO_OUT)
	$(BIN)/marc-launch --procs-per-node 2 local benchmarks/demo.yaml train.run_dir=$(DEMO_OUT)
	$(BIN)/marc-eval $(DEMO_OUT)

lint: $(DEVSTAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes, then the tests with time limits of their own that nothing may share the cores with.
test: lint
	$(BIN)/pytest -n $(JOBS) -m "not alone and not campaign" --durations=25
	$(BIN)/pytest -m alone

quick: lint
	$(BIN)/pytest -n $(JOBS) $(QUICK)

# The variable silences a notice about MkDocs 2; warnings of the build itself stay errors.
docs: $(DEVSTAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "open site/index.html"

coverage: $(DEVSTAMP)
	$(BIN)/pytest -m "not campaign" --cov --cov-report=term-missing:skip-covered

benchmarks: $(DEVSTAMP)
	@status=0; for script in loss_speed loss_memory loss_precision loss_peers temperature_forms loss_gpu augment_speed pack_speed pack_scale index_scale look_alikes reader_speed shuffle_quality train_speed robust_cost metrics_speed search_speed search_memory index_memory busy_cores sameness tune_search tune_gain loss_study recipe_study real_data; do \
	  echo "== $$script"; $(BIN)/python benchmarks/$$script.py || status=1; done; exit $$status

campaign: $(DEVSTAMP)
	$(BIN)/pytest -m campaign
	$(BIN)/python benchmarks/mutations.py
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python -m tests.simulation.crash_campaign
	$(BIN)/python -m tests.simulation.failing_campaign
	$(BIN)/python -m tests.simulation.job_life --seeds 10000 --procs $(JOBS)
	$(BIN)/python -m tests.simulation.job_life --theme ray --seeds 5000 --procs $(JOBS)
	$(BIN)/python -m tests.simulation.job_life --planted --seeds 200

clean:
	rm -rf $(VENV) data runs site .pytest_cache .mypy_cache .ruff_cache
