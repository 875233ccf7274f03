# Start with `make help`. Only python3 (3.11 or newer) and make have to be installed: every target
# makes the virtual environment it needs.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
SOURCE ?= gs://quickdraw_dataset/full/numpy_bitmap
DEST   ?= $(or $(QUICKDRAW_DATA),data/shards)


BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLD       := .venv-torch-2.11
CORE      := $(addprefix tests/,base data distributed evaluation models run training)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-old-torch test-cluster lint format lock shard verify plan train evaluate bench-data bench-strokes bench-growth bench-input bench-real bench-train bench-scaling bench-gpu full-size chaos clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make shard SOURCE=gs://quickdraw_dataset/full/numpy_bitmap DEST=gs://BUCKET/quickdraw"
	@echo "  make shard SOURCE=gs://quickdraw_dataset/full/binary DEST=gs://BUCKET/strokes ARGS='--shard.content strokes'"
	@echo "  make shard SOURCE='synthetic:?classes=20&per_class=1000' DEST=data/try ARGS=--dry-run"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version), 3.11 or newer is needed. Run make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: python3 has no venv module. On Debian: apt-get install python3-venv"; exit 2; }
	@echo "installing into $(VENV) ..."
# torch first and alone: its build is then fixed for the second pip.
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(INSTALLED) ## make .venv with all dependencies, at the versions of constraints.txt

demo: $(INSTALLED) ## synthetic drawings, shards, a two-process training run and a report, in minutes
	@env -u QUICKDRAW_DATA -u QUICKDRAW_OUTPUT $(BIN)/python -m jobs.demo $(ARGS)

test: $(INSTALLED) ## the test suite, under six minutes on two cores
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

test-slow: $(INSTALLED) ## the slow tests: more whole runs that are stopped, killed or meet faults
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow $(ARGS)

$(OLD)/.installed: pyproject.toml constraints.txt
	@test -x $(OLD)/bin/python || $(PYTHON) -m venv $(OLD)
	@echo "installing into $(OLD) (5 GB) ..."
	@sed -E '/^torch(vision)?==/d' constraints.txt >$(OLD)/constraints.txt
	@$(OLD)/bin/pip install --quiet --disable-pip-version-check -c $(OLD)/constraints.txt torch==2.11.0 numpy
	@$(OLD)/bin/pip install --quiet --disable-pip-version-check -c $(OLD)/constraints.txt torch==2.11.0 -e '.[dev]'
	@touch $@

test-old-torch: $(OLD)/.installed ## the core suites with torch 2.11, a CUDA build that needs no GPU
	$(OLD)/bin/python -m pytest -n auto --dist worksteal $(CORE) $(ARGS)

test-cluster: $(INSTALLED) ## as root: what is shipped for clusters, run; installs what that needs
	@PATH="$(abspath $(BIN)):$$PATH" tests/cluster/install.sh
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest tests/cluster $(ARGS)

lint: $(INSTALLED) ## ruff, mypy and import-linter, as in CI
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

shard: $(INSTALLED) ## shard SOURCE into DEST; restartable (ARGS=--dry-run prints the plan)
	$(BIN)/python -m jobs.shard --source '$(SOURCE)' --dest '$(DEST)' $(ARGS)

verify: $(INSTALLED) ## verify the dataset in DEST (ARGS='--source ...' compares every pixel)
	$(BIN)/python -m jobs.verify '$(DEST)' $(ARGS)

plan: $(INSTALLED) ## print what a run will need (ARGS="--official --world-size 64": before sharding)
	$(BIN)/python -m jobs.plan $(ARGS)

train: $(INSTALLED) ## train on DEST with all GPUs, or all cores if there is none
	@PATH="$(abspath $(BIN)):$$PATH" torchrun --nproc_per_node=auto -m quickdraw_dist.train --data '$(DEST)' $(ARGS)

evaluate: $(INSTALLED) ## evaluate the run in runs/quickdraw on the test split of DEST
	$(BIN)/python -m jobs.evaluate --data '$(DEST)' $(ARGS)

bench-data: $(INSTALLED) ## the data path compared with webdataset, MosaicML and litdata; the last line is JSON
	$(BIN)/python -m benchmarks.data_path $(ARGS)

bench-strokes: $(INSTALLED) ## bytes, speed per core and nearness of pen strokes; the last line is JSON
	$(BIN)/python -m benchmarks.strokes $(ARGS)

bench-growth: $(INSTALLED) ## shard, verify and stream 0.5 to 5 million drawings; the last line is JSON
	$(BIN)/python -m benchmarks.scale.growth $(ARGS)

bench-input: $(INSTALLED) ## compare augmentations and inputs on real drawings, hours; the last line is JSON
	$(BIN)/python -m benchmarks.input_ablation $(ARGS)

bench-real: $(INSTALLED) ## train on 30 real classes; the last line is JSON
	$(BIN)/python -m benchmarks.real_30 $(ARGS)

bench-train: $(INSTALLED) ## training speed, the effect of each setting, the limits; the last line is JSON
	$(BIN)/python -m benchmarks.train_speed $(ARGS)

bench-gpu: $(INSTALLED) ## all that a GPU has to prove, in 8 minutes (ARGS=--cpu: in miniature); the last line is JSON
	$(BIN)/python -m benchmarks.gpu $(ARGS)

full-size: $(INSTALLED) ## shard, verify and train on 50,426,266 drawings (ARGS='--fraction 0.001'); the last line is JSON
	$(BIN)/python -m benchmarks.scale.full_size $(ARGS)

bench-scaling: $(INSTALLED) ## 1, 2 and 4 ranks here, arithmetic for 8 to 512 GPUs; the last line is JSON
	$(BIN)/python -m benchmarks.scale.ranks $(ARGS)

chaos: $(INSTALLED) ## 100 kills over one run, equal to an undisturbed run; the last line is JSON
	$(BIN)/python -m benchmarks.chaos $(ARGS)

lock: ## rewrite constraints.txt: the newest versions allowed with the pinned torch
	@rm -rf .lock && $(PYTHON) -m venv .lock
	@.lock/bin/pip install --quiet torch==2.13.0 torchvision==0.28.0 numpy
	@.lock/bin/pip install --quiet -e '.[dev,cluster,timm,report,tensorboard,export,web,strokes]'
	@{ sed -n '/^#/p' constraints.txt; .lock/bin/pip freeze --exclude-editable | sed 's/+cpu//'; } > .lock/new
	@mv .lock/new constraints.txt && rm -rf .lock && echo "constraints.txt is rewritten. Now run: make test"

clean: ## remove the virtual environment, caches and the demo
	rm -rf $(VENV) $(OLD) runs/demo .pytest_cache .ruff_cache .mypy_cache .hypothesis .lock .test.log
