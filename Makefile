# Everything runs in .venv, which is made on first use; only Python >= 3.11 need be there.
PYTHON ?= python3
# Test processes, with one thread each.
JOBS ?= 2

BIN := .venv/bin
export MPLBACKEND ?= Agg

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help demo test quick check docs bench zoo fuzz clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: .venv/.installed-examples ## Train a network on digits, explain it, write pictures to build/demo
	$(BIN)/python examples/demo.py

check: .venv/.installed-test ## Lint, check the format, the types and the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src tests/typing_cases.py
	$(BIN)/lint-imports --no-cache

test: export OMP_NUM_THREADS := 1
test: check ## Check, then run the tests and doctests with coverage
	$(BIN)/pytest -n $(JOBS) --dist worksteal --cov --cov-report=term --cov-fail-under=95

quick: export OMP_NUM_THREADS := 1
quick: .venv/.installed-test ## Run some of all tests, in under 90 seconds on two cores
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow"

docs: .venv/.installed-docs ## Build the documentation into build/docs, warnings as errors
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html -d build/doctrees docs build/docs

bench: .venv/.installed-bench ## Measure cost as a multiple of the plain gradient's
	$(BIN)/python benchmarks/speed.py

zoo: .venv/.installed-test ## Compare some 200 networks with their references, write docs/zoo.md
	$(BIN)/python -m benchmarks.zoo

fuzz: export OMP_NUM_THREADS := 1
fuzz: .venv/.installed-test ## Compare 20,000 random programs with their surrogates, write docs/fuzz.md
	$(BIN)/python -m tests.fuzz --programs 20000

clean: ## Remove what was built, but not .venv
	rm -rf build dist .coverage .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# One stamp for each extra, so that nothing is installed twice and a changed pin is.
.venv/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("relprop needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
