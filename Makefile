SHELL      := /bin/bash
PY         ?= python3
UV_VERSION ?= 0.13.9
TOOLS      := .tools
UV         := $(TOOLS)/bin/uv
# all but training and export, which need Python 3.11; `numpy2` tests the rest with another NumPy
ANYWHERE   := --extra litert --extra keystore --extra server --extra postgres --extra data --extra report --extra keyboard
EXTRAS     ?= $(ANYWHERE) --extra device --extra simulation --extra scale
PYTHONS    := 3.11 3.12 3.13 3.14
MACHINES   := x86_64-manylinux_2_35 aarch64-manylinux_2_35
ARGS       ?=
PYTEST_WORKERS ?= 2
export UV_PROJECT_ENVIRONMENT := .venv
export UV_PYTHON_DOWNLOADS    := never
export UV_NO_PROGRESS         := $(if $(CI),1,0)
export TF_CPP_MIN_LOG_LEVEL   ?= 3
RUN        := $(UV) run --locked --no-sync --

.DEFAULT_GOAL := help
.PHONY: help setup demo test prove test-numpy2 lint pages reference bench-simulation bench-memory bench-device bench-server bench-fleet device-env resolve fuzz fleet-soak lock requirements clean distclean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(UV): Makefile
	@$(PY) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 15) else "fedboard: expected Python 3.11 to 3.14 (3.11 to train), found %s; try: make PY=python3.11" % sys.version.split()[0])'
	@$(PY) -c 'import ensurepip, venv' 2>/dev/null || { echo "fedboard: expected the venv module of $(PY), found none; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(TOOLS)/bin/python || $(PY) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install -q --disable-pip-version-check 'uv==$(UV_VERSION)' </dev/null
	@touch $@

.venv/.synced: pyproject.toml uv.lock $(UV)
	@$(UV) sync --locked $(EXTRAS) --group dev --python $(PY) </dev/null
	@.venv/bin/python -c 'import sys; sys.version_info[:2] == (3, 11) or print("fedboard: Python %d.%d gets the device, the server and the keyboard; training and export (TensorFlow 2.14, TFF 0.87) need 3.11: make distclean, then make setup PY=python3.11" % sys.version_info[:2])'
	@touch $@

.venv-numpy2/.synced: pyproject.toml uv.lock $(UV)
	@UV_PROJECT_ENVIRONMENT=.venv-numpy2 $(UV) sync --locked $(ANYWHERE) --group dev --group numpy2 --python $(PY) </dev/null
	@touch $@

setup: .venv/.synced ## create .venv with everything (once)
demo: setup ## chat logs -> federated training -> TFLite -> server and devices -> report (options: ARGS="--rounds 300")
	@$(RUN) fedboard demo $(ARGS) </dev/null
# what is imported once is compiled once, also where the environment forbids it
test prove test-numpy2 demo: export PYTHONDONTWRITEBYTECODE :=
test: setup ## run the test suite, on PYTEST_WORKERS cores (2); ARGS="-m quick": under a minute
	@$(RUN) pytest -q -n $(PYTEST_WORKERS) $(ARGS) </dev/null
prove: setup ## what takes longer than a test may: kills in a row, fuzzing, ten times the examples; writes docs/prove.md
	@$(UV) sync -q --locked $(EXTRAS) --group dev --group fuzz --python $(PY) </dev/null
	@$(RUN) pytest -q -n $(PYTEST_WORKERS) -m prove --page=docs/prove.md $(ARGS) </dev/null
# of what starts processes, what computes in them: `make test` has run the rest
OF_NUMBERS := tests/test_fedboard_device_day.py tests/test_device_runtime_masked.py tests/test_server_opening.py
test-numpy2: .venv-numpy2/.synced ## run the tests that need no TensorFlow with NumPy 2 and ai-edge-litert, in .venv-numpy2
	@UV_PROJECT_ENVIRONMENT=.venv-numpy2 $(RUN) pytest -q -n 2 -m "not tensorflow and not process" $(ARGS) </dev/null
	@UV_PROJECT_ENVIRONMENT=.venv-numpy2 $(RUN) pytest -q -n 2 -m "not tensorflow" $(OF_NUMBERS) $(ARGS) </dev/null
lint: setup ## ruff and mypy
	@$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy
pages: setup ## write docs/commands.md and docs/rooms.md anew, out of the application and its docstrings
	@$(RUN) python -m fedboard.pages
reference: setup ## train and export the reference bundle again, into runs/reference; docs/results.md says how long it takes
	@$(RUN) fedboard train --config configs/gboard.toml --seed 0 --out runs/reference $(ARGS) </dev/null
	@$(RUN) fedboard export runs/reference </dev/null
bench-simulation: setup ## speed of simulated training beside plain TFF, pfl and FedJAX (builds their environments; half an hour)
	@$(RUN) python benchmarks/simulation_speed.py $(ARGS) </dev/null
bench-memory: setup ## memory of 1,000 simulated rounds
	@$(RUN) python benchmarks/simulation_memory.py $(ARGS) </dev/null
bench-device: setup ## what a device's suggestions, memory, training and uploads cost, beside their bars (three minutes)
	@$(RUN) python -m benchmarks.device $(ARGS) </dev/null
device-env: $(UV) ## build .device-env, all a device needs, and print its size
	@UV_PROJECT_ENVIRONMENT=.device-env $(UV) sync -q --locked --extra device --no-dev --python $(PY) </dev/null
	@.device-env/bin/python -c 'import device_runtime.drive; from device_runtime import interpreter; interpreter.load(interpreter.chosen())' && .device-env/bin/fedboard --help >/dev/null
	@du -sm .device-env | sed 's/\t.*/ MB/'
resolve: $(UV) ## resolve all but training, as locked and from wheels only, for Python 3.11 to 3.14 on x86_64 and 64-bit ARM; runs none of it
	@set -o pipefail; for python in $(PYTHONS); do for machine in $(MACHINES); do \
	  $(UV) export -q --locked $(ANYWHERE) --extra device --no-dev --no-emit-project --no-hashes --no-header </dev/null | \
	    $(UV) pip compile -q --no-deps --only-binary :all: --python-version $$python --python-platform $$machine - >/dev/null || exit 1; \
	  echo "resolved for Python $$python on $$machine"; done; done
bench-server: setup ## what the server's check-ins, updates and downloads cost at 64 and 256 connections beside a bare FastAPI; a thousand devices; memory (ten minutes)
	@$(RUN) python -m benchmarks.server $(ARGS) </dev/null
fuzz: setup ## fuzz every reader of foreign bytes, SECONDS_EACH seconds each (60)
	@$(UV) sync -q --locked $(EXTRAS) --group dev --group fuzz --python $(PY) </dev/null
	@for reader in manifest zip checkpoint update difference codes index typing_log unfinished schedule trace recording columns chain files corpus messages proof window counted settings helper answer terms; do \
	  echo "== $$reader"; $(RUN) python fuzz/readers.py $$reader -max_total_time=$(or $(SECONDS_EACH),60) -print_final_stats=1 2>&1 </dev/null | \
	    grep -E "number_of_executed_units|Uncaught|Error|ERROR|crash-" ; test $${PIPESTATUS[0]} -eq 0 || exit 1; done
bench-fleet: setup ## what simulated fleets of ten thousand, a hundred thousand and a million devices cost (half an hour)
	@$(RUN) python -m benchmarks.fleet $(ARGS) </dev/null
fleet-soak: setup ## let SEEDS (1000) short fleets live in which everything goes wrong, from seed FIRST (0) on
	@$(RUN) python -m fleet.soak --seeds $(or $(SEEDS),1000) --first $(or $(FIRST),0) --jobs $(PYTEST_WORKERS) </dev/null
lock: $(UV) ## re-resolve uv.lock, and requirements.txt from it
	@$(UV) lock
	@$(MAKE) --no-print-directory requirements
requirements: $(UV) ## export requirements.txt for people without uv
	@$(UV) export -q --locked $(EXTRAS) --no-dev --no-emit-project --no-hashes --no-header -o requirements.txt
clean: ## remove caches
	@rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
distclean: clean ## remove the environments as well
	@rm -rf .venv .venv-numpy2 .device-env $(TOOLS)
