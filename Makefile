# The two commands of a newcomer are `make quickstart` and `make test`. Both set up .venv first.
.PHONY: quickstart test test-cluster lint benchmark clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
# pip would compile on one core what is compiled on all of them afterwards.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
# A run is many processes, and each would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

quickstart: $(INSTALLED)
	$(BIN)/igpt-jobs quickstart $(QUICKSTART)

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -n 3 --dist worksteal --ignore tests/cluster $(TESTS)

# A real Slurm and a real Ray of several nodes on this machine: needs root, and apt's slurm-wlm,
# munge, iproute2, slurmdbd, mariadb-server and faketime.
test-cluster: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -n 3 --dist load --maxschedchunk 1 tests/cluster

lint: $(INSTALLED_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(INSTALLED_DEV)
	$(BIN)/python -m benchmarks

$(INSTALLED): pyproject.toml constraints.txt | $(VENV)
	$(INSTALL) -e .
	$(COMPILE)
	touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(VENV)
	$(INSTALL) -e ".[dev]"
	$(COMPILE)
	touch $@ $(INSTALLED)

$(VENV):
	$(PYTHON) -c 'import sys; sys.exit("igpt-jobs needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) dist build
