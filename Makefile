# Each target is a line that a person could type. `make` lists them.
# The environment is made once, in .venv, from the lock requirements.txt; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
BIN := .venv/bin
# Idle threads sleep soon, so that tests stay fast beside other work: workflow/scripts/selfsup/__init__.py.
export GOMP_SPINCOUNT ?= 1000
# Compiled modules are kept: each short script would compile the package anew, which is half of what some take.
unexport PYTHONDONTWRITEBYTECODE
# Eight processes at most: each, with what its tests start, takes up to 4 GB. Tests of an xdist_group go to one process.
# The cases on Slurm go one by one: they wait most of their time, and its daemons want their own in time.
ALL_CORES := -n auto --maxprocesses 8
SMK := Snakefile workflow/Snakefile workflow/rules
PY := workflow/scripts tests benchmarks docs

.DEFAULT_GOAL := help
.PHONY: help env demo plan status report test test-long test-slurm chaos bench lint format lock

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

env: .venv/made  ## make the environment in .venv from requirements.txt

.venv/made: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { echo "error: $$($(PYTHON) --version) found, wanted Python 3.11 or 3.12: make env PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "error: $(PYTHON) lacks venv: install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --progress-bar on -r requirements.txt
	@touch $@

demo: env  ## pretrain, evaluate and print the demo's table: minutes on two cores, no GPU, no download
	$(BIN)/snakemake --cores all results/demo.csv

.PHONY: explain
explain: env  ## print a recipe with the source of each value, or compare two: make explain RECIPES="cifar10 cifar10_authors"
	$(BIN)/python workflow/scripts/explain.py $(RECIPES)

plan: env  ## estimate what the experiments of config.yaml will cost, from measured speeds
	$(BIN)/python workflow/scripts/plan.py

status: env  ## show where each run stands: segment, epoch, loss, k-NN, images/s, time left, job; WATCH=10 repeats it every 10 seconds
	@$(BIN)/python workflow/scripts/status.py $(if $(WATCH),--watch $(WATCH))

.PHONY: audit
audit: env  ## train one segment of a finished run again and compare the bits: make audit RUN=results/digits/seed0 SEGMENT=2
	@$(BIN)/python workflow/scripts/audit.py --run $(RUN) $(if $(SEGMENT),--segment $(SEGMENT)) $(if $(DATA),--data $(DATA))

.PHONY: track
track: env  ## write a run's figures for a tracker, each step once: make track RUN=results/digits/seed0 TRACKER=tensorboard
	$(BIN)/python workflow/scripts/track.py --run $(RUN) --tracker $(or $(TRACKER),tensorboard)

.PHONY: compare
compare: env  ## draw the curves of several experiments in one figure: make compare EXPERIMENTS="digits simclr_digits"
	$(BIN)/python workflow/scripts/make_curves.py --experiment $(EXPERIMENTS) --output results/figures/compare.svg

report: env  ## write results/report.html, one page with all that is finished, and results/report/workflow.html, how it was made
	$(BIN)/python workflow/scripts/config_as_run.py --output results/config.json
	$(BIN)/snakemake --cores all --rerun-triggers mtime params --configfile results/config.json --forcerun landing_page -- report
	$(BIN)/snakemake --cores all --rerun-triggers mtime params --configfile results/config.json --report results/report/workflow.html -- report

test: env  ## run the tests of units, numerics and the workflow; seven to ten minutes on two cores
	$(BIN)/pytest $(ALL_CORES) --dist loadgroup --durations=10 -m "not long"

test-long: env  ## the longer tests: the whole demo, a run disturbed again and again, compiled graphs
	$(BIN)/pytest $(ALL_CORES) --dist loadgroup --durations=10 -m long

test-slurm: env  ## test the workflow on a real two-node Slurm that is brought up on this machine; needs root on Debian or Ubuntu
	$(BIN)/pytest tests/slurm --durations=10

chaos: env  ## kill and disturb the demo 25 times, in all ways and at random moments: the encoder must be the same to the bit
	$(BIN)/python tests/chaos.py --folder $$(mktemp -d)/chaos $(if $(SEED),--seed $(SEED)) $(if $(EVENTS),--events $(EVENTS))

.PHONY: chaos-slurm
chaos-slurm: env  ## the same, 100 times, on a real two-node Slurm with four ranks; needs root on Debian or Ubuntu, and half an hour
	$(BIN)/python tests/slurm/chaos_slurm.py --folder $$(mktemp -d)/chaos $(if $(SEED),--seed $(SEED)) $(if $(EVENTS),--events $(EVENTS))

.PHONY: ranks
ranks: env  ## train on 32 ranks, 8 nodes x 4, on this machine: chain, kill, other numbers of ranks, collectives; 12 GB, 17 minutes
	$(BIN)/python tests/thirty_two_ranks.py --folder $$(mktemp -d)/ranks $(if $(SEED),--seed $(SEED)) $(if $(NODES),--nodes $(NODES))

bench: env .venv/bench  ## run the benchmarks, with text and JSON: make bench BENCH="training_step --quick" for a part
	$(BIN)/python benchmarks/run.py $(BENCH)

# --no-deps, here and in the lock: see pyproject.toml.
.venv/bench: requirements-bench.txt | env
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps -r requirements-bench.txt
	@touch $@

.PHONY: fuzz
fuzz: env  ## try bad input, made by machine: nearly 19,000 settings, pictures, archives, checkpoints, encoders, cards and tables; minutes
	FUZZ=20 $(BIN)/pytest -n0 tests/unit/test_bad_input.py tests/unit/test_bad_encoders.py tests/unit/test_csv_cells.py

.PHONY: mutants
mutants: env  ## make small wrong changes to the code, each of which a test must find; half an hour, continues where it was stopped
	$(BIN)/python tests/mutation/run.py

lint: env  ## check the style of Python and of the workflow, and the direction of imports
	$(BIN)/ruff check $(PY)
	$(BIN)/ruff format --check $(PY)
	$(BIN)/snakefmt --check $(SMK)
	PYTHONPATH=workflow/scripts $(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python tests/workflow/lint.py
	$(BIN)/pytest --collect-only -q -n0 > .collected || { cat .collected; exit 1; }; rm .collected  # of all folders together: two files of one name cannot be

format: env  ## write the style that `make lint` wants
	$(BIN)/ruff check --fix-only --quiet $(PY)
	$(BIN)/ruff format $(PY)
	$(BIN)/snakefmt $(SMK)

lock: env  ## resolve pyproject.toml into requirements.txt, for every platform that it names
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --custom-compile-command "make lock" --quiet -o requirements.txt
	$(BIN)/uv pip compile pyproject.toml --extra bench --no-deps --universal --python-version 3.11 -c requirements.txt --custom-compile-command "make lock" --quiet -o requirements-bench.txt
