# `make demo` and `make test` set up everything they need in .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/digits
BIN := $(VENV)/bin

export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint style types typed-use check figures docs build lowest clean

demo: $(VENV)/.installed
	$(BIN)/superweights train recipes/digits.yaml --out $(RUN) --overwrite
	$(BIN)/superweights evaluate $(RUN)
	$(BIN)/superweights plot $(RUN)

# The committed figures, from committed results.
figures: $(VENV)/.installed
	$(BIN)/superweights plot benchmarks/results/digits --out figures/digits
	$(BIN)/superweights plot benchmarks/results/digits-search --out figures/digits-search
	$(BIN)/superweights plot benchmarks/results/cifar10-small --out figures/cifar10-small
	$(BIN)/superweights plot benchmarks/results/cifar10-few-images --out figures/cifar10-few-images
	$(BIN)/superweights plot benchmarks/results/cifar10-16px --out figures/cifar10-16px
	$(BIN)/superweights plot benchmarks/results/cifar10-16px-ablations --out figures/cifar10-16px-ablations
	$(BIN)/superweights plot benchmarks/results/cifar10-16px-overfit --out figures/cifar10-16px-overfit
	$(BIN)/python benchmarks/draw.py benchmarks/results/growth --out figures/growth
	$(BIN)/python benchmarks/draw.py benchmarks/results/npas --out figures/npas
	$(BIN)/python benchmarks/draw.py benchmarks/results/npas-vit --out figures/npas-vit
	$(BIN)/python benchmarks/draw.py benchmarks/results/learned-widths --out figures/learned-widths
	$(BIN)/superweights plot benchmarks/results/adaptive-ensemble/learned --out figures/adaptive-ensemble

# A process a core, one thread each: half the time of one process.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: style types typed-use

style: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# Public types, as a user's strict checker sees them; a cache of its own, as other flags make the first one useless.
typed-use: $(VENV)/.installed-dev
	$(BIN)/mypy --strict --follow-imports=silent --cache-dir=.mypy_cache/strict tests/typed_use.py

# The documentation site, into site/; a broken link or a missing name fails.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

check: lint docs test

# A source archive, and a wheel that is built from it; in an environment of their own, which needs no PyTorch.
build:
	test -x .venv-build/bin/python || $(PYTHON) -m venv .venv-build
	.venv-build/bin/python -m pip install --quiet --disable-pip-version-check 'build>=1.2.1,<2' 'twine>=6.1,<8'
	rm -rf dist
	.venv-build/bin/python -m build
	.venv-build/bin/python -m twine check --strict dist/*

# The oldest versions that pyproject.toml names, on a part of the tests; for Python 3.10 and 3.11, as old numpy has no
# wheels for newer ones. One test is left out: torch 2.11 was seen to abort there ("corrupted size vs. prev_size") while
# it trained a network of four channels in bfloat16 on a CPU.
lowest:
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv-lowest/constraints.txt --editable '.[export,tensorboard]' pytest hypothesis
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest tests/test_documentation.py tests/test_options.py tests/plan \
		tests/storage/test_states.py tests/experiment/test_recipe.py tests/report/test_report.py \
		--deselect tests/test_options.py::test_distillation_of_weight_zero_is_none

clean:
	rm -rf $(VENV) .venv-build .venv-lowest runs build dist site .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing PyTorch and the library into $(VENV): one to three minutes, the first time only."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing PyTorch, the library and its test tools into $(VENV): one to three minutes, the first time only."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.installed
