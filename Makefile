# Two commands do everything on a fresh machine: `make demo` and `make test`.
# `make test-long` runs what the suite only samples (README.md says what), `make fuzz CASES=2000` draws so many cases
# for each fuzz test.
# `make test TORCH=2.15.0` runs the suite with another release of torch, in a virtual environment of its own.
PYTHON ?= python3
TORCH ?=
CASES ?= 2000
VENV := .venv$(if $(TORCH),-torch$(TORCH))
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PINS := $(VENV)/constraints.txt

.PHONY: demo test test-long fuzz bench lint docs clean

demo: $(STAMP)
	$(BIN)/noble-fx demo $(ARGS)

# Types and pages are those of the release in constraints.txt, so another one is not linted with.
test: $(STAMP) $(if $(TORCH),,lint docs)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-long: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long $(ARGS)

fuzz: $(STAMP)
	NOBLE_FX_FUZZ_CASES=$(CASES) $(BIN)/python -m pytest -n 2 --dist worksteal -m fuzz $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of docs/, into site/; a link that leads nowhere is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

# torch first and alone: its pin must be in place before anything else could ask for another build of it.
# Another release of torch brings the triton and the setuptools that it was made for, so their pins go with torch's. The
# interpreter of triton 3.6, which torch 2.11 brings, takes one number of an array in a way that NumPy 2.4 refuses.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),sed -E '/^(torch|triton|setuptools)==/d; s/^numpy==.*/numpy<2.4/; $$a torch==$(TORCH)',cat) constraints.txt > $(PINS)
	$(BIN)/pip install --quiet --upgrade -c $(PINS) pip
	$(BIN)/pip install --quiet -c $(PINS) torch
	$(BIN)/pip install --quiet -c $(PINS) -e ".[onnx,report,hf,dev,docs]"
	touch $(STAMP)

clean:
	rm -rf .venv .venv-torch* demo site .pytest_cache .mypy_cache .ruff_cache .hypothesis
