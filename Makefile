# The set-up commands: `make run` does the study at the mini scale, `make test` checks the project.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: run test test-long check audit setup system clean

run: setup
	$(BIN)/harness run
	$(BIN)/harness report

test: setup system check
	$(BIN)/python -m pytest

test-long: setup system
	$(BIN)/python -m pytest -m long

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Debian's Slurm, Chromium and the like, where the user is root; without them their tests skip.
system:
	tests/system-packages

clean:
	rm -rf .venv .venv-audit build *.egg-info .mypy_cache .ruff_cache .pytest_cache
