# `make help` lists the targets. Python packages are installed only into the .venv* environments in this folder.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

PYTHON ?= python3
TORCH ?= 2.13.0
CUDA_TORCH ?= 2.11.0
CUDA_ARCHITECTURES ?= 9.0
OUT ?= benchmarks/results
GPU_PYTHON ?= python3.12
MODELS_TORCH ?= 2.14.1
MODELS_TORCHVISION ?= 0.29.1
GPU_SECONDS ?= 480
ONLY ?=
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
CUDA_VENV := .venv-cuda
CUDA_PY := $(CUDA_VENV)/bin/python
GPU_VENV := .venv-gpu
GPU_PY := $(GPU_VENV)/bin/python
MODELS_VENV := .venv-models
MODELS_PY := $(MODELS_VENV)/bin/python
PIP := -m pip --disable-pip-version-check -qq install
BUILD := -m pip --disable-pip-version-check -v install --no-build-isolation --no-deps

# The inputs of a build. Python files of the package are used in place.
SOURCES := setup.py pyproject.toml $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/cuda/*.cu csrc/cuda/*.cuh)
FACE := $(wildcard paraminit_ext/*.py paraminit_ext/*/*.py paraminit_ext/*.pyi paraminit_ext/py.typed paraminit_ext/golden.json)
REQUIREMENTS := $(wildcard requirements/*.txt)
# Shortens ninja's lines ("[3/9] c++ ... -c csrc/torch/ops.cpp ...") to the step and the file. The whole output goes to a log.
SHORTEN := sed -unE 's/.*(\[[0-9]+\/[0-9]+\]).* -c ([^ ]+).*/\1 \2/p; /[0-9)]: (warning|error|fatal error)|paraminit_ext: (building|FORCE)|ptxas error/p'

.PHONY: build demo test lint docs bench instructions wheel wheel-trials clean cuda-build gpu gpu-binary gpu-rehearsal models prove sanitize matrix help

help:
	@sed -nE 's/^# (make [a-z-]+) *: (.*)/\1\t\2/p' Makefile | expand -t 20

# The names of stamps contain the version of torch, so that another TORCH= installs that torch and builds again.
TORCH_STAMP := $(VENV)/stamp-torch-$(TORCH)
TOOLS_STAMP := $(VENV)/stamp-tools-$(TORCH)
BUILD_STAMP := build/stamp-$(TORCH)

$(TORCH_STAMP):
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/stamp-* build/stamp-*
	echo "installing torch $(TORCH) into $(VENV)"
	# Install torch first, in its own call, so that later packages find it and install no other torch.
	$(PY) $(PIP) torch==$(TORCH)
	touch $@

$(TOOLS_STAMP): $(TORCH_STAMP) $(REQUIREMENTS)
	@echo "installing the pinned requirements into $(VENV)"
	$(PY) $(PIP) -r requirements/dev.txt
	touch $@

$(BUILD_STAMP): $(TOOLS_STAMP) $(SOURCES)
	@echo "building in place (the whole output is in build/build.log)"
	mkdir -p build
	$(PY) $(BUILD) -e . 2>&1 | tee build/build.log | $(SHORTEN) || {
	    tail -n 40 build/build.log; exit 1; }
	touch $@

# make build      : set up .venv with torch (TORCH=2.13.0) and the pinned tools, and build the package in place
build: $(BUILD_STAMP)

# make demo       : initialise a model of 1.1 billion parameters with stock and with this package (ARGS="--preset small")
demo: build
	@$(PY) -m paraminit_ext demo $(ARGS)

# make test       : run the whole suite on the CPU, with every instruction set (ARGS="-k shard")
test: build
	@$(PY) -m pytest --doctest-modules tests paraminit_ext $(ARGS)

# make models     : run the tests of whole models in an environment with timm, torchvision and its torch
MODELS_TOOLS_STAMP := $(MODELS_VENV)/stamp-tools-$(MODELS_TORCH)
MODELS_BUILD_STAMP := $(MODELS_VENV)/stamp-build-$(MODELS_TORCH)

$(MODELS_TOOLS_STAMP): requirements/build.txt requirements/test.txt requirements/models.txt requirements/timm.txt
	@test -x $(MODELS_PY) || $(PYTHON) -m venv $(MODELS_VENV)
	rm -f $(MODELS_VENV)/stamp-*
	echo "installing torch $(MODELS_TORCH), torchvision $(MODELS_TORCHVISION) and the pinned requirements into $(MODELS_VENV)"
	$(MODELS_PY) $(PIP) torch==$(MODELS_TORCH) torchvision==$(MODELS_TORCHVISION)
	$(MODELS_PY) $(PIP) -r requirements/test.txt
	$(MODELS_PY) $(PIP) -r requirements/timm.txt
	touch $@

$(MODELS_BUILD_STAMP): $(MODELS_TOOLS_STAMP) $(SOURCES) $(FACE)
	@echo "building for torch $(MODELS_TORCH) (the whole output is in build/models-build.log)"
	mkdir -p build
	PARAMINIT_CUDA=0 $(MODELS_PY) $(BUILD) --force-reinstall . 2>&1 | tee build/models-build.log | $(SHORTEN) || {
	    tail -n 40 build/models-build.log; exit 1; }
	touch $@

models: $(MODELS_BUILD_STAMP)
	@here=$$PWD
	cd $(MODELS_VENV)  # so that the installed package is imported, not the sources
	"$$here/$(MODELS_PY)" -m pytest -c "$$here/pyproject.toml" --rootdir "$$here" -p no:cacheprovider \
	    "$$here"/tests/test_{models,patch,keyed,deferred,plan,audit,checkpoint}.py $(ARGS)

# make prove      : run the checks that take minutes: all 2^32 words, long samples, dieharder (ARGS="--only numbers", ARGS=--update)
prove: build
	@if ! command -v dieharder >/dev/null && [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
	    echo "installing dieharder"
	    { apt-get update && apt-get install -y --no-install-recommends dieharder; } >build/dieharder.log 2>&1 || {
	        tail -n 5 build/dieharder.log; exit 1; }
	fi
	$(PY) -m prove $(ARGS)

# make lint       : run ruff, mypy and clang-format; needs no compiled package
lint: $(TOOLS_STAMP)
	@$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	find csrc benchmarks prove tests tools -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | sort | xargs $(VENV)/bin/clang-format --dry-run -Werror
	echo "lint: clean"

# make docs       : the documentation, in build/docs; warnings are errors (ARGS="-b linkcheck" checks external links)
DOCS_STAMP := $(VENV)/stamp-docs-$(TORCH)

$(DOCS_STAMP): $(TOOLS_STAMP) requirements/docs.txt
	@$(PY) $(PIP) -r requirements/docs.txt
	touch $@

docs: build $(DOCS_STAMP)
	@rm -rf build/docs
	$(PY) -m sphinx -q -W --keep-going -b html docs build/docs $(ARGS)
	echo "docs: build/docs/index.html"

# make bench      : time fills against stock and a plain fill (ARGS="--quick", ARGS="--group fill --filter normal")
bench: build
	@$(PY) -m benchmarks $(ARGS)

# make instructions : count the instructions of fills under valgrind, and compare with the committed figures (ARGS=--update)
instructions: $(TOOLS_STAMP)
	@if ! command -v valgrind >/dev/null; then
	    if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
	        echo "instructions: valgrind is missing; as root, run: apt-get install valgrind"; exit 1
	    fi
	    echo "installing valgrind"
	    mkdir -p build
	    { apt-get update && apt-get install -y --no-install-recommends valgrind; } >build/valgrind.log 2>&1 || {
	        tail -n 5 build/valgrind.log; exit 1; }
	fi
	$(PY) -m benchmarks.instructions $(ARGS)

# make sanitize   : run the CPU fills and operators under sanitizers and valgrind (ARGS="--only threads")
sanitize: $(TOOLS_STAMP)
	@if ! command -v valgrind >/dev/null && [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
	    echo "installing valgrind"
	    { apt-get update && apt-get install -y --no-install-recommends valgrind; } >/dev/null 2>&1 || true
	fi
	$(PY) -m tools.sanitize $(ARGS)

# make matrix     : build and test with other versions of torch and Python, compilers, flags and processors
matrix: $(TOOLS_STAMP)
	@$(PY) -m tools.matrix $(ARGS)

# make wheel      : build a source distribution and, from it, a wheel for each Python, in dist/ (ARGS="--only 3.11", ARGS=--cuda)
WHEEL_TOOLS_STAMP := $(VENV)/stamp-wheel-$(TORCH)

$(WHEEL_TOOLS_STAMP): $(TOOLS_STAMP) requirements/wheel.txt
	@$(PY) $(PIP) -r requirements/wheel.txt
	touch $@

wheel: $(WHEEL_TOOLS_STAMP)
	@$(PY) -m tools.wheel build $(ARGS)

# make wheel-trials : test these wheels with torch 2.11 to 2.15 and with each Python, and the source distribution (ARGS="--only sdist", --remove)
wheel-trials: $(WHEEL_TOOLS_STAMP)
	@$(PY) -m tools.wheel try $(ARGS)

# Runs the command that follows only if the machine has no CUDA toolkit.
WITHOUT_TOOLKIT := [ -n "$${CUDA_HOME:-}" ] || command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] ||

# make cuda-build : compile the CUDA kernels (no GPU needed), fail on spills, run the stream tests with CUDA_TORCH
CUDA_TOOLS_STAMP := $(CUDA_VENV)/stamp-tools-$(CUDA_TORCH)
CUDA_BUILD_STAMP := $(CUDA_VENV)/stamp-build-$(CUDA_TORCH)
CUDA_FACE_STAMP := $(CUDA_VENV)/stamp-face-$(CUDA_TORCH)
CUDA_BUILD := FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHITECTURES)" PARAMINIT_PTXAS_VERBOSE=1 $(CUDA_PY) $(BUILD) --force-reinstall .

$(CUDA_TOOLS_STAMP): requirements/build.txt requirements/test.txt requirements/cuda-toolkit.txt
	@test -x $(CUDA_PY) || $(PYTHON) -m venv $(CUDA_VENV)
	rm -f $(CUDA_VENV)/stamp-*
	echo "installing torch $(CUDA_TORCH) and the pinned requirements into $(CUDA_VENV)"
	$(CUDA_PY) $(PIP) torch==$(CUDA_TORCH)
	$(CUDA_PY) $(PIP) -r requirements/test.txt
	$(WITHOUT_TOOLKIT) $(CUDA_PY) $(PIP) -r requirements/cuda-toolkit.txt
	touch $@

# A regular install, built in its own folder, so that the in-place CPU build stays unchanged.
$(CUDA_BUILD_STAMP): $(CUDA_TOOLS_STAMP) $(SOURCES)
	@echo "building for CUDA $(CUDA_ARCHITECTURES) (the whole output is in build/cuda-build.log)"
	mkdir -p build
	rm -rf build/cuda* build/lib* build/bdist*
	$(CUDA_BUILD) 2>&1 | tee build/cuda-build.log | $(SHORTEN) || {
	    tail -n 40 build/cuda-build.log; exit 1; }
	kernels=$$(grep -c 'bytes stack frame' build/cuda-build.log || true)
	if [ "$$kernels" -eq 0 ]; then echo "cuda-build: ptxas reported no kernel at all"; exit 1; fi
	if grep -B2 -E '[1-9][0-9]* bytes (stack frame|spill)' build/cuda-build.log; then
	    echo "cuda-build: a kernel uses local memory (above)"; exit 1
	fi
	echo "cuda-build: $$kernels device functions, no stack frame, no spill"
	touch $@

# If only Python files changed, all objects exist and ninja compiles nothing.
$(CUDA_FACE_STAMP): $(CUDA_BUILD_STAMP) $(FACE)
	@$(CUDA_BUILD) >build/cuda-install.log 2>&1 || { tail -n 40 build/cuda-install.log; exit 1; }
	touch $@

cuda-build: $(CUDA_FACE_STAMP)
	@here=$$PWD
	cd $(CUDA_VENV)  # so that the installed package is imported, not the sources
	"$$here/$(CUDA_PY)" -m paraminit_ext info
	"$$here/$(CUDA_PY)" -m pytest -c "$$here/pyproject.toml" --rootdir "$$here" -p no:cacheprovider "$$here/tests/test_stream.py" "$$here/tests/test_triton_kernels.py"
	"$$here/$(CUDA_PY)" "$$here/benchmarks/instructions/sass.py" lib/python*/site-packages/paraminit_ext/_cuda*.so

# make gpu        : build, test and measure on a machine with a GPU and its own torch (ONLY=3 runs a stage, GPU_SECONDS=480)
#   This downloads nothing. OUT has rows as JSON lines, the outcome of each step, logs, and the table that is printed last.
gpu:
	@$(PYTHON) -m tools.gpu --out "$(OUT)" --seconds "$(GPU_SECONDS)" --only "$(ONLY)"

# make gpu-binary : build a binary in build/gpu for another machine with GPU_PYTHON, CUDA_TORCH and CUDA_ARCHITECTURES
GPU_TOOLS_STAMP := $(GPU_VENV)/stamp-tools-$(CUDA_TORCH)

$(GPU_TOOLS_STAMP): requirements/build.txt requirements/gpu.txt requirements/cuda-toolkit.txt
	@echo "installing torch $(CUDA_TORCH) and the packages of a GPU machine into $(GPU_VENV)"
	test -x $(GPU_PY) || $(GPU_PYTHON) -m venv $(GPU_VENV)
	rm -f $(GPU_VENV)/stamp-*
	$(GPU_PY) $(PIP) torch==$(CUDA_TORCH)
	$(GPU_PY) $(PIP) -r requirements/build.txt
	$(GPU_PY) $(PIP) -r requirements/gpu.txt
	$(WITHOUT_TOOLKIT) $(GPU_PY) $(PIP) -r requirements/cuda-toolkit.txt
	touch $@

gpu-binary: $(GPU_TOOLS_STAMP)
	@mkdir -p build
	rm -rf build/gpu
	FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHITECTURES)" $(GPU_PY) setup.py build_ext --build-lib build/gpu 2>&1 |
	    tee build/gpu-build.log | $(SHORTEN) || { tail -n 40 build/gpu-build.log; exit 1; }
	# The setuptools of that machine may be too old to read pyproject.toml.
	$(GPU_PY) $(PIP) --target build/gpu/site --no-compile "$$(grep setuptools requirements/build.txt)"
	du -sh build/gpu/paraminit_ext/_*.so build/gpu/site

# make gpu-rehearsal : run `make gpu` in a copy with a GPU machine's packages, without network and GPU: only the build can pass
gpu-rehearsal: $(GPU_TOOLS_STAMP)
	@rm -rf build/rehearsal
	git clone -q . build/rehearsal
	cd build/rehearsal
	export TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHITECTURES)"
	unshare -rn $(MAKE) gpu PYTHON="$(CURDIR)/$(GPU_PY)" OUT="$(CURDIR)/build/rehearsal/out" ONLY="$(ONLY)" || true
	ls out

# make clean      : remove build outputs, but not the environments (`rm -r .venv*` removes those)
clean:
	@rm -rf build dist *.egg-info paraminit_ext/*.so paraminit_ext/_build_info.py .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(CUDA_VENV)/stamp-build-* $(CUDA_VENV)/stamp-face-* $(MODELS_VENV)/stamp-build-*
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -r {} +
