# Two commands do everything on a machine with Python 3.11+, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# spinning OpenMP threads make small kernels ten times slower wherever the cores are shared
export OMP_WAIT_POLICY ?= passive
export HF_HUB_OFFLINE ?= 1
DEMO := .demo
# the real engine on an emulated NPU, in an environment of its own; see docs/vllm-omni.md
OMNI := .venv-omni
EMULATED := tests/omni/emulated_npu
IN_OMNI := PYTHONPATH=$(CURDIR)/$(EMULATED)/startup FA_TUNE_EMULATE_NPU=1

.PHONY: demo test test-slow test-omni bench-omni bench-search bench-service check format openapi bench clean

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

# fa-tune is installed as a user would, by plain pip beside a vllm-omni that is there: that must change no version
$(OMNI)/.installed: pyproject.toml tests/omni/requirements.txt tests/omni/overrides.txt $(EMULATED)/pyproject.toml
	rm -rf $(OMNI)
	$(PYTHON) -m venv $(OMNI)
	$(OMNI)/bin/python -m pip install --quiet --upgrade pip uv
	$(OMNI)/bin/uv pip install --quiet --python $(OMNI)/bin/python --compile-bytecode \
		--index-strategy unsafe-best-match $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS)) \
		--override tests/omni/overrides.txt --requirements tests/omni/requirements.txt
	$(OMNI)/bin/python -m pip freeze > $(OMNI)/before.txt
	$(OMNI)/bin/python -m pip check > $(OMNI)/check-before.txt || true
	$(OMNI)/bin/python -m pip install --quiet --compile --editable .
	$(OMNI)/bin/python -m pip install --quiet --compile --no-build-isolation --editable $(EMULATED)
	$(OMNI)/bin/python -m pip install --quiet --compile pytest pytest-timeout hypothesis
	touch $@

test-omni: $(OMNI)/.installed
	$(IN_OMNI) $(OMNI)/bin/python -m pytest tests/omni tests/contract/test_engine_contract.py --timeout 900

bench-omni: $(OMNI)/.installed
	$(IN_OMNI) $(OMNI)/bin/python benchmarks/bench_omni.py

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: $(VENV)/.installed
	$(BIN)/python -c 'from fa_tuner_api.openapi import snapshot; print(snapshot(), end="")' > docs/openapi.json

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/bench_operator.py
	$(BIN)/python benchmarks/bench_trial.py

# about six minutes; PostgreSQL is the tests' (FA_TUNE_TEST_POSTGRES)
bench-service: $(VENV)/.installed
	$(BIN)/python benchmarks/bench_service.py

# twenty to forty minutes; the picture goes to docs
bench-search: $(VENV)/.installed
	$(BIN)/python benchmarks/bench_search.py --plot docs/search.png
	$(BIN)/python benchmarks/bench_noise.py

clean:
	rm -rf $(VENV) $(OMNI) $(DEMO) build dist *.egg-info
