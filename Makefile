# Everything needs only Python 3.11, git and make; the first target that runs installs the rest into .venv.
PYTHON ?= python3.11
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Errors only: pip's warnings are about the machine's own settings, and read like errors of this project.
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

.PHONY: demo test check format reference bench llama-cpp clean help

help:
	@echo "make demo       fine-tune a small model on a persona and compare it with its base (1 to 4 minutes)"
	@echo "make test       run every test, WORKERS at a time (one for each core, four at most)"
	@echo "make check      lint, types, import directions, sizes"
	@echo "make format     format the code"
	@echo "make reference  write docs/recipe.md, its Chinese twin and its JSON schema anew"
	@echo "make bench      measure a training step against transformers + PEFT"
	@echo "make llama-cpp  build llama.cpp for this processor, in place of the wheel (about 10 minutes)"

# Installed once, and again only when the pins or the dependencies change.
$(READY): constraints.txt pyproject.toml
	@test -x $(BIN)/python || command -v $(PYTHON) > /dev/null || \
		{ echo "There is no $(PYTHON) here. Install it, or name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Installing weitune and its dependencies into $(VENV) (about a minute, once) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/weitune demo

test: $(READY)
	$(BIN)/pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/sizes.py

format: $(READY)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

reference: $(READY)
	$(BIN)/python -m weitune.recipe.reference

bench: $(READY)
	$(BIN)/python -m bench.train_speed

llama-cpp: $(READY)
	CMAKE_ARGS='-DLLAMA_LLGUIDANCE=OFF -DLLAMA_BUILD_BORINGSSL=OFF' $(PIP) install \
		--constraint constraints.txt --force-reinstall --no-deps --no-binary xllamacpp xllamacpp

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
