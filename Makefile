# One word each: `make run` on a new machine gives text; `make check` is all that CI runs.
#
# Needs Python 3.11 or newer with pip and venv. A C compiler is used where there is one; without it bloomery works, and
# `bloomery info` says so. What is made lies in .venv, and the compiled library beside its source.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input

# Where torch comes from. On Linux pip's own index has the CUDA build (several GB), so a machine without an NVIDIA driver
# takes the CPU build from PyTorch's index. `make run TORCH_INDEX=` takes pip's own index; any other URL works as well.
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),$(if $(HAS_GPU),,https://download.pytorch.org/whl/cpu))
HAS_GPU = $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all check check-native clean

help:
	@echo "make run       install into $(VENV) and generate a text with the built-in model"
	@echo "make setup     install into $(VENV) only"
	@echo "make test      the tests that take seconds"
	@echo "make test-all  every test that needs no GPU"
	@echo "make check     style, types, architecture and make test: what CI runs"
	@echo "make check-native  the kernels' tests, with every access and every sum watched (needs gcc)"
	@echo "make clean     remove what the build and the tools made; $(VENV) keeps its downloads"

setup: $(VENV)/.run

run: $(VENV)/.run
	@$(VENV)/bin/bloomery generate "It was the best of times" --temperature 0.8 --seed 1

test: $(VENV)/.dev
	$(VENV)/bin/pytest -m "not slow and not gpu"

test-all: $(VENV)/.dev
	$(VENV)/bin/pytest -m "not gpu"

check: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pytest -m "not slow and not gpu"

# The library is built once more, in a copy of the tree, with AddressSanitizer and UndefinedBehaviorSanitizer.
WATCHED := build/watched
check-native: $(VENV)/.dev
	rm -rf $(WATCHED)
	mkdir -p $(WATCHED)
	cp -r src setup.py pyproject.toml $(WATCHED)
	rm -f $(WATCHED)/$(LIBRARY)
	cd $(WATCHED) && CFLAGS="-g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" \
		$(CURDIR)/$(VENV)/bin/python setup.py --quiet build_ext --inplace
	test -f $(WATCHED)/$(LIBRARY)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONPATH=$(CURDIR)/$(WATCHED)/src $(VENV)/bin/pytest -p no:cacheprovider tests/ops/native

# Without the stamps the next install builds the library again.
clean:
	rm -rf build dist src/bloomery.egg-info src/bloomery/ops/native/*.so $(VENV)/.run $(VENV)/.dev
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +

# --- installing: said on stderr, so that stdout is the text alone; again only when one of these files changes ---------

SOURCES := pyproject.toml setup.py constraints.txt $(wildcard src/bloomery/ops/native/*.[ch])

$(VENV)/.run: $(SOURCES) | $(VENV)/bin/pip
	@$(call install,.)
	@touch $@

$(VENV)/.dev: $(SOURCES) | $(VENV)/bin/pip
	@$(call install,.[dev])
	@touch $(VENV)/.run $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("bloomery needs Python 3.11 or newer, not " + sys.version.split()[0] + ": make \
	PYTHON=/path/to/python" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) >&2

# $(1): what to install. setuptools builds us; torch comes alone, since nothing else may come from its index.
install = { \
	[ -d $(VENV)/lib/python3*/site-packages/torch ] || echo "bloomery: downloading $(DOWNLOAD)"; \
	$(PIP) install --quiet -c constraints.txt setuptools || exit 1; \
	if [ -n "$(TORCH_INDEX)" ]; then \
		$(PIP) install --no-deps --timeout 10 --retries 1 --index-url "$(TORCH_INDEX)" $(TORCH) || \
		echo "bloomery: no torch from $(TORCH_INDEX): taking the build of pip's own index, which on Linux is the CUDA one" \
		"($(WITH_CUDA); Ctrl-C stops it)"; \
	fi; \
	rm -f $(LIBRARY); \
	$(PIP) install -c constraints.txt --no-build-isolation -e '$(1)' || exit 1; \
	[ -f $(LIBRARY) ] || echo "bloomery: no C compiler here, so the slower paths without one are used"; \
	} >&2

LIBRARY := src/bloomery/ops/native/libbloomery.so

TORCH = $(shell grep ^torch== constraints.txt)
WITH_CUDA := about 2.8 GB, 4.8 GB on disk
DOWNLOAD = PyTorch and what it needs: $(if $(findstring /cpu,$(TORCH_INDEX)),about 230 MB$(COMMA) 1.1 GB on disk,with \
	CUDA $(WITH_CUDA))
COMMA := ,
