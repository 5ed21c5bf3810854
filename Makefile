# `make run` and `make test` need nothing but Python 3.11+ and make: they set up .venv by themselves (tools/environment.py).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The interpreter for .venv: the first that is 3.11 or newer and can make environments, which uv does without its help.
# make PYTHON=… chooses another; TORCH=cpu or TORCH=cuda another build of torch than the one for this machine.
CANDIDATES := python3.11 python3.12 python3.13 python3.14 python3 python
SUITABLE := import sys$(if $(shell command -v uv),,, venv, ensurepip); sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" -c '$(SUITABLE)' >/dev/null 2>&1 && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.dev
CLIENTS := .venv-clients
OPEN_WEBUI := .venv-open-webui
JAVASCRIPT := .npm-clients
NPM := $(shell command -v npm)
PAGE := .venv-page
RAY := .venv-ray
PRECISION := .venv-precision
TRAINING := .venv-training
FACES := .venv-faces
TORCH ?= auto
ARGS ?=
# Byte code is kept, whatever the shell says: else each process compiles the tests, and each worker that they start itself.
unexport PYTHONDONTWRITEBYTECODE

# Three processes on two cores: half of a test's time goes by in waiting. A file's tests stay in one, since they share its
# models; files come as they stand, the heavy folders before the many small ones at the end.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder

# One thread: several processes that spin on a few cores are many times slower, and benchmarks would measure that.
test test-slow test-zoo faults mutations check bench: export OMP_NUM_THREADS = 1

.PHONY: help run draw serve test test-slow test-all test-zoo test-clients test-page test-ray test-precision test-training test-faces faults mutations check bench bench-gpu signatures schedulers errors rooms lock clean

help:  ## Say what can be made
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

run: $(READY)  ## Draw the image of test_input.json into outputs/
	@$(BIN)/python handler.py $(ARGS)

draw: $(READY)  ## Draw PROMPT='…' into outputs/; ARGS='--seed 3' says more
	@$(BIN)/imgworker run $(ARGS) -- "$$TEXT"
# As it was typed: a `$$` in it is make's otherwise.
draw: export TEXT := $(value PROMPT)

serve: $(READY)  ## Answer over HTTP on port 8000 until stopped; API_PORT=… is another
	@$(BIN)/imgworker serve

test: $(DEV)  ## Run the tests, less the slow ones; ARGS='tests/core -x' for some of them
	@$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-slow: $(DEV)  ## Run the slow tests that test leaves out, less the zoo
	@$(BIN)/python -m pytest -m "slow and not zoo" $(PARALLEL) $(ARGS)

test-all: test test-slow test-zoo  ## Run every test, which takes many minutes more

test-zoo: $(DEV)  ## Run a tiny model of every pipeline class of diffusers, which takes minutes
	@$(BIN)/python -m pytest tests/zoo -m zoo -o faulthandler_timeout=0 $(PARALLEL) $(ARGS)

test-clients: $(CLIENTS)/.ready $(OPEN_WEBUI)/.ready $(if $(NPM),$(JAVASCRIPT)/.ready)  ## Try other people's clients and servers against ours, in environments of their own
	@WORKER_PYTHON="$(abspath $(BIN)/python)" OPEN_WEBUI="$(abspath $(OPEN_WEBUI)/bin/open-webui)" \
		NODE_MODULES="$(abspath $(JAVASCRIPT)/node_modules)" OMP_NUM_THREADS=1 \
		$(CLIENTS)/bin/python -m pytest tests/clients --confcutdir=tests/clients -W ignore -o timeout=900 \
		-o faulthandler_timeout=0 $(ARGS)

test-page: $(PAGE)/.ready  ## Use the page at /ui in a headless Chromium, which has to be there (Debian: chromium); takes minutes
	@WORKER_PYTHON="$(abspath $(BIN)/python)" OMP_NUM_THREADS=1 \
		$(PAGE)/bin/python -m pytest tests/page -c tests/page/pytest.ini $(ARGS)

test-ray: $(RAY)/.ready  ## Run the worker on Ray Serve, in an environment of its own that sees .venv; takes minutes
	@OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest tests/deploy/test_ray.py tests/deploy/test_ray_deployment.py \
		-s -W ignore -o faulthandler_timeout=0 $(ARGS)

test-precision: $(PRECISION)/.ready  ## Hold weights by torchao and bitsandbytes, in an environment of its own that sees .venv; takes minutes
	@OMP_NUM_THREADS=1 $(PRECISION)/bin/python -m pytest tests/engine/test_precision_packages.py $(ARGS)

test-training: $(TRAINING)/.ready  ## Train with the packages of the extra train, in an environment of its own that sees .venv; takes minutes
	@OMP_NUM_THREADS=1 $(TRAINING)/bin/python -m pytest tests/training/packages $(ARGS)

test-faces: $(FACES)/.ready  ## Find faces by scikit-image and by a YuNet, in an environment of its own that sees .venv
	@OMP_NUM_THREADS=1 $(FACES)/bin/python -m pytest tests/service/recipes/test_faces.py $(ARGS)

faults: $(DEV)  ## Break the worker on purpose, print each figure beside its bar and write outputs/faults.json
	@FAULTS_REPORT=outputs/faults.json $(BIN)/python -m pytest tests/faults $(ARGS)

mutations: $(DEV)  ## Take each guard of the fault table out in turn and name the test that notices
	@$(BIN)/python -m tests.faults.mutations $(ARGS)

check: $(DEV)  ## What CI runs: format, lint, types, import rules, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) test

bench: $(DEV)  ## Measure; ARGS=… goes to the benchmarks
	@$(BIN)/python -m benchmarks $(ARGS)

bench-gpu: $(READY)  ## Measure everything of speed on one GPU, in ten minutes, into outputs/gpu; ARGS=--tiny for a CPU
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

signatures: $(DEV)  ## Learn the model classes of the installed diffusers, after a new one was pinned
	@$(BIN)/python -m tools.component_signatures

schedulers: $(DEV)  ## Measure which schedulers each pipeline class runs with, after a new diffusers was pinned
	@$(BIN)/python -m tests.zoo.schedulers
	@$(BIN)/python -m tools.schedulers_page

errors: $(DEV)  ## Write docs/errors.md, after a code was added
	@$(BIN)/python -m tools.errors_page

rooms: $(DEV)  ## Draw docs/rooms.svg, after a wall between rooms was moved
	@$(BIN)/python -m tools.rooms_page

# For the image: Linux on x86-64 with a GPU, from PyPI alone, whatever indexes this machine has. Pins of the old lock stay.
lock: $(READY)  ## Pin in requirements.lock, with digests, all that the image installs, after a requirement was changed
	@env -u UV_INDEX -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS -u UV_CONSTRAINT PATH="$$PATH:$(abspath $(BIN))" \
		uv pip compile --quiet --no-config --default-index https://pypi.org/simple --no-emit-index-url --generate-hashes \
		--python-platform x86_64-manylinux_2_28 --python-version 3.11 --custom-compile-command 'make lock' \
		--output-file requirements.lock requirements-gpu.txt requirements-spandrel.txt

clean:  ## Remove .venv and what the tools left; images and downloaded models stay
	rm -rf $(VENV) $(CLIENTS) $(PAGE) $(RAY) $(PRECISION) $(TRAINING) $(FACES) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.txt requirements-gpu.txt requirements-spandrel.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11+ with venv found; say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -m tools.environment run --venv $(VENV) --torch $(TORCH)
	@touch $@

$(CLIENTS)/.ready: tests/clients/requirements.txt | $(DEV)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	if [ -x "$$uv" ]; then \
		"$$uv" venv --quiet --clear --python $(BIN)/python $(CLIENTS); \
		"$$uv" pip install --quiet --python $(CLIENTS)/bin/python --requirement $<; \
	else \
		$(BIN)/python -m venv --clear $(CLIENTS); $(CLIENTS)/bin/python -m pip install --quiet --requirement $<; \
	fi
	@touch $@

$(PAGE)/.ready: tests/page/requirements.txt | $(DEV)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	if [ -x "$$uv" ]; then \
		"$$uv" venv --quiet --clear --python $(BIN)/python $(PAGE); \
		"$$uv" pip install --quiet --python $(PAGE)/bin/python --requirement $<; \
	else \
		$(BIN)/python -m venv --clear $(PAGE); $(PAGE)/bin/python -m pip install --quiet --requirement $<; \
	fi
	@touch $@

# 1.7 GB. Only uv can leave torch out, which its images do without; in a fresh copy it comes with .venv.
$(OPEN_WEBUI)/.ready: tests/clients/open-webui.txt tests/clients/open-webui-overrides.txt | $(DEV)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	if [ -x "$$uv" ]; then \
		"$$uv" venv --quiet --clear --python $(BIN)/python $(OPEN_WEBUI); \
		"$$uv" pip install --quiet --python $(OPEN_WEBUI)/bin/python --requirement $< \
			--override tests/clients/open-webui-overrides.txt; \
		touch $@; \
	else \
		echo "make: without uv Open WebUI is not tried" >&2; \
	fi

$(JAVASCRIPT)/.ready: tests/clients/javascript/package.json
	@mkdir -p $(JAVASCRIPT) && cp $< $(JAVASCRIPT)/
	@cd $(JAVASCRIPT) && npm install --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# Ray's own packages come first on its path, and then all of .venv's.
$(RAY)/.ready: pyproject.toml | $(DEV)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	if [ -x "$$uv" ]; then \
		"$$uv" venv --quiet --clear --python $(BIN)/python $(RAY); \
		"$$uv" pip install --quiet --python $(RAY)/bin/python 'ray[serve]==2.60.0'; \
	else \
		$(BIN)/python -m venv --clear $(RAY); $(RAY)/bin/python -m pip install --quiet 'ray[serve]==2.60.0'; \
	fi
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $$(echo $(RAY)/lib/python3*/site-packages)/project.pth
	@touch $@

$(PRECISION)/.ready: pyproject.toml | $(DEV)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	if [ -x "$$uv" ]; then \
		"$$uv" venv --quiet --clear --python $(BIN)/python $(PRECISION); \
		"$$uv" pip install --quiet --no-deps --python $(PRECISION)/bin/python torchao==0.18.0 bitsandbytes==0.50.2; \
	else \
		$(BIN)/python -m venv --clear $(PRECISION); \
		$(PRECISION)/bin/python -m pip install --quiet --no-deps torchao==0.18.0 bitsandbytes==0.50.2; \
	fi
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $$(echo $(PRECISION)/lib/python3*/site-packages)/project.pth
	@touch $@

# TensorBoard itself is what its files are read back with.
$(TRAINING)/.ready: pyproject.toml | $(DEV)
	@uv=$$(command -v uv || echo $(BIN)/uv); packages=$$($(BIN)/python -c \
		'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["train"])'); \
	if [ -x "$$uv" ]; then \
		"$$uv" venv --quiet --clear --python $(BIN)/python $(TRAINING); \
		"$$uv" pip install --quiet --no-deps --python $(TRAINING)/bin/python $$packages tensorboard==2.21.0 absl-py==2.5.1; \
	else \
		$(BIN)/python -m venv --clear $(TRAINING); \
		$(TRAINING)/bin/python -m pip install --quiet --no-deps $$packages tensorboard==2.21.0 absl-py==2.5.1; \
	fi
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $$(echo $(TRAINING)/lib/python3*/site-packages)/project.pth
	@touch $@

# onnx writes the net that stands for a YuNet.
$(FACES)/.ready: pyproject.toml | $(DEV)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	if [ -x "$$uv" ]; then \
		"$$uv" venv --quiet --clear --python $(BIN)/python $(FACES); \
		"$$uv" pip install --quiet --python $(FACES)/bin/python scikit-image==0.26.0 onnx==1.23.2; \
	else \
		$(BIN)/python -m venv --clear $(FACES); \
		$(FACES)/bin/python -m pip install --quiet scikit-image==0.26.0 onnx==1.23.2; \
	fi
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $$(echo $(FACES)/lib/python3*/site-packages)/project.pth
	@touch $@

$(DEV): $(READY)
	@"$(PYTHON)" -m tools.environment dev --venv $(VENV)
	@touch $@
