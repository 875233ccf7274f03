# Everything starts here: `make help`. Nothing has to be installed first but python3 (3.11 or
# newer) and make: every target makes the virtual environment it needs.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
SOURCE ?= gs://quickdraw_dataset/full/numpy_bitmap
DEST   ?= $(or $(QUICKDRAW_DATA),data/shards)


BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-cluster lint format lock shard verify plan train evaluate bench-data bench-growth bench-real bench-train bench-scaling full-size chaos clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make shard SOURCE=gs://quickdraw_dataset/full/numpy_bitmap DEST=gs://BUCKET/quickdraw"
	@echo "  make shard SOURCE='synthetic:?classes=20&per_class=1000' DEST=data/try ARGS=--dry-run"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version), 3.11 or newer is needed: make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: no venv module; on Debian: apt-get install python3-venv"; exit 2; }
	@echo "installing into $(VENV) ..."
# torch first and alone: what comes after then has nothing to choose.
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(INSTALLED) ## make .venv with everything in it, at the versions of constraints.txt

demo: $(INSTALLED) ## synthetic drawings, shards, a two-process training run and a report, in minutes
	@env -u QUICKDRAW_DATA -u QUICKDRAW_OUTPUT $(BIN)/python -m jobs.demo $(ARGS)

test: $(INSTALLED) ## the test suite, under six minutes on two cores
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

test-slow: $(INSTALLED) ## the slow tests: more whole runs that are stopped, killed or meet faults
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow $(ARGS)

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

verify: $(INSTALLED) ## prove the dataset in DEST (ARGS='--source ...' compares every pixel)
	$(BIN)/python -m jobs.verify '$(DEST)' $(ARGS)

plan: $(INSTALLED) ## what a run will need: ARGS="--official --world-size 64" before any sharding
	$(BIN)/python -m jobs.plan $(ARGS)

train: $(INSTALLED) ## train on DEST with every GPU, or every core where there is none
	@PATH="$(abspath $(BIN)):$$PATH" torchrun --nproc_per_node=auto -m quickdraw_dist.train --data '$(DEST)' $(ARGS)

evaluate: $(INSTALLED) ## measure the run in runs/quickdraw on the test split of DEST
	$(BIN)/python -m jobs.evaluate --data '$(DEST)' $(ARGS)

bench-data: $(INSTALLED) ## the data path beside webdataset, MosaicML and litdata; the last line is JSON
	$(BIN)/python -m benchmarks.data_path $(ARGS)

bench-growth: $(INSTALLED) ## shard, verify and stream 0.5 to 5 million drawings; the last line is JSON
	$(BIN)/python -m benchmarks.growth $(ARGS)

bench-real: $(INSTALLED) ## train on 30 real classes; the last line is JSON
	$(BIN)/python -m benchmarks.real_30 $(ARGS)

bench-train: $(INSTALLED) ## training speed, what each setting is worth, the limits; the last line is JSON
	$(BIN)/python -m benchmarks.train_speed $(ARGS)

full-size: $(INSTALLED) ## shard, verify and train on 50,426,266 drawings (ARGS='--fraction 0.001'); the last line is JSON
	$(BIN)/python -m benchmarks.full_size $(ARGS)

bench-scaling: $(INSTALLED) ## 1, 2 and 4 ranks here, arithmetic for 8 to 512 GPUs; the last line is JSON
	$(BIN)/python -m benchmarks.scaling $(ARGS)

chaos: $(INSTALLED) ## 100 kills over one run, equal to a run never touched; the last line is JSON
	$(BIN)/python -m benchmarks.chaos $(ARGS)

lock: ## write constraints.txt anew: the newest versions allowed beside the pinned torch
	@rm -rf .lock && $(PYTHON) -m venv .lock
	@.lock/bin/pip install --quiet torch==2.13.0 torchvision==0.28.0 numpy
	@.lock/bin/pip install --quiet -e '.[dev,cluster,timm,report,tensorboard,export,web,strokes]'
	@{ sed -n '/^#/p' constraints.txt; .lock/bin/pip freeze --exclude-editable | sed 's/+cpu//'; } > .lock/new
	@mv .lock/new constraints.txt && rm -rf .lock && echo "constraints.txt is new; now: make test"

clean: ## remove the virtual environment, caches and the demo
	rm -rf $(VENV) runs/demo .pytest_cache .ruff_cache .mypy_cache .hypothesis .lock .test.log
