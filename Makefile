# Two commands do everything on a machine with Python 3.11+, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# spinning OpenMP threads make small kernels ten times slower wherever the cores are shared
export OMP_WAIT_POLICY ?= passive
export HF_HUB_OFFLINE ?= 1
DEMO := .demo

.PHONY: demo test test-slow check format bench clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fa-tune needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# where a CPU wheel of torch 2.13 is at hand this takes it; a newer CUDA build of several GB is not wanted
	$(BIN)/python -m pip install --quiet --compile --prefer-binary 'torch>=2.6,<2.14'
	$(BIN)/python -m pip install --quiet --compile --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	rm -rf $(DEMO)
	FA_TUNE_STORAGE=sqlite:///$(CURDIR)/$(DEMO)/fa-tune.db FA_TUNE_ARTIFACTS=$(CURDIR)/$(DEMO)/artifacts \
		$(BIN)/fa-tune run --study-file studies/demo/study.yaml
	FA_TUNE_STORAGE=sqlite:///$(CURDIR)/$(DEMO)/fa-tune.db $(BIN)/fa-tune export demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow --timeout 600

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/bench_operator.py
	$(BIN)/python benchmarks/bench_trial.py

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
