# Two commands to begin with:
#   make train    make the environment, train a small model, sample it
#   make test     the same environment, and the tests
#
# make train RECIPE=recipes/learning.yaml ARGS="--max_iters=100"

RECIPE ?= recipes/quick_experiment.yaml
# The demonstration run is made anew each time. Any other run is kept: pass ARGS=--resume or ARGS=--overwrite.
ARGS ?= $(if $(filter recipes/quick_experiment.yaml,$(RECIPE)),--overwrite)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := $(VENV)/.ready
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip install --quiet \
	--constraint constraints.txt

.PHONY: docs pages train test unit coverage test-long fuzz bench gpu kernels check format clean

# The NVIDIA cards that a run may use: those of CUDA_VISIBLE_DEVICES, otherwise all. Slices of a card are listed below
# it, and CUDA uses one of them. What the launcher is not told, it says that it assumes.
COMMA := ,
LISTED = $(shell nvidia-smi --list-gpus 2>/dev/null | sed -n 's/^GPU .*/card/p; s/^ *MIG .*/slice/p')
CARDS := $(if $(filter undefined,$(origin CUDA_VISIBLE_DEVICES)),$(if $(filter slice,$(LISTED)),1,$(words $(LISTED))),$(words $(subst $(COMMA), ,$(CUDA_VISIBLE_DEVICES))))
CARDS := $(or $(filter-out 0,$(CARDS)),1)
# The cards share a step's sequences equally: of six, the demonstration run's 16 sequences use four.
CARDS := $(shell n=$(CARDS); while [ $$((16 % n)) -ne 0 ]; do n=$$((n - 1)); done; echo $$n)
LAUNCH = --quiet --num_processes $(CARDS) --num_machines 1 --mixed_precision no --dynamo_backend no \
	$(if $(filter-out 1,$(CARDS)),--multi_gpu)

train: $(READY)
	@$(BIN)/accelerate launch $(LAUNCH) scripts/train.py $(RECIPE) $(ARGS)
	@echo "$(ENTER)"

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not long"

# The tests that start no scripts, for other systems and other versions of the libraries.
unit: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not e2e and not long"

# The tests with the share of lines that they run, which may not fall below the floor in pyproject.toml.
coverage: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not long" --cov --cov-report=term:skip-covered

test-long: $(READY)
	$(BIN)/python -m pytest -m long

# Looks for input that ends in a traceback, for so many minutes; what it finds is tried first the next time.
FUZZ_MINUTES ?= 5

fuzz: $(READY)
	FUZZ_MINUTES=$(FUZZ_MINUTES) $(BIN)/python -m pytest -m fuzz -s tests/fuzz

# NANOGPT=path, TEXT=file and GPT2_TOKENIZER=folder reach it as environment variables; BENCH="--only small" its flags.
bench: $(READY)
	@$(BIN)/python benchmarks/bench.py $(BENCH)

# What a card must show, under ten minutes a call. NANOGPT=path runs nanoGPT beside it; GPU="--only profile" its flags.
gpu: $(READY)
	@$(BIN)/python benchmarks/gpu.py $(GPU)

# The compiled step's kernels for cards that are not here (KERNELS="80 90"); needs a CUDA build of torch, and no card.
kernels: $(READY)
	@$(BIN)/python benchmarks/build_kernels.py $(KERNELS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hfgpt scripts
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m pytest tests/test_prose.py
	@if command -v vale >/dev/null; then vale $(PROSE); fi

# What Vale reads, where it is installed; tests/test_prose.py holds the same rules everywhere, and in messages.
PROSE = README.md CONTRIBUTING.md SECURITY.md docs/en hfgpt

# The documentation site in site/, with warnings as errors; links between its pages and into the repository are checked.
docs: $(READY)
	$(PIP) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The course's output, the diagram of the folders and the reference of parameters, as the code has them now.
pages: $(READY)
	$(BIN)/python scripts/parameter_reference.py
	$(BIN)/python docs/architecture.py
	$(BIN)/python docs/course.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The set-up speaks the user's language, which hfgpt finds in the same way once it is installed.
ifneq ($(filter zh%,$(or $(HFGPT_LANG),$(LC_ALL),$(LC_MESSAGES),$(LANG))),)
SETTING_UP := 正在建立 $(VENV)，只需一次：要几分钟时间和几 GB 磁盘空间。
ENVIRONMENT := 1/2  环境
PACKAGES := 2/2  软件包
SECONDS := 秒
ENTER := 自己输入命令之前，先进入环境：source $(BIN)/activate
TOO_OLD := hfgpt 需要 Python 3.11 或更新版本；可以这样指定：PYTHON=python3.12 make …
else
SETTING_UP := Setting up $(VENV), once: some minutes, and a few GB of disk.
ENVIRONMENT := 1/2  environment
PACKAGES := 2/2  packages
SECONDS := s
ENTER := Before you type commands yourself, enter the environment: source $(BIN)/activate
TOO_OLD := hfgpt needs Python 3.11 or newer; PYTHON=python3.12 make … chooses one
endif

# Installed once, and again when one of these files changes.
$(READY): setup.cfg setup.py pyproject.toml constraints.txt $(wildcard hfgpt/locale/*/*.po)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(TOO_OLD)")'
	@echo "$(SETTING_UP)"
	@began=$$(date +%s); $(PYTHON) -m venv $(VENV) && echo "$(ENVIRONMENT)  $$(($$(date +%s) - began)) $(SECONDS)"
	@began=$$(date +%s); $(PIP) --quiet --editable '.[dev]' && echo "$(PACKAGES)  $$(($$(date +%s) - began)) $(SECONDS)"
	@touch $(READY)

clean:  # not out/, where the runs are
	rm -rf $(VENV) site build *.egg-info .pytest_cache .mypy_cache .ruff_cache
