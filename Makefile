# Every target does the set-up it needs; what is there already is not made again (tools/setup).
# PYTHON names a Python 3.11 when it is not on the path; GALAXY_CACHE the folder for everything heavy.

PYTHON ?= python3.11
KEEP ?=
PY := .venv/bin/python
ROOTS := kserve_ext autoscaler_shim activator_replacement runtimes tools tests bench examples e2e
BENCHES := bench-rpc bench-dataplane bench-activator bench-from-zero bench-burst bench-shaped bench-coldstart bench-kv bench-kv-ttft bench-kv-peers bench-kv-gpu bench-kv-gpu-rungs bench-kv-engines-gpu bench-shaped-gpu bench-standby-gpu bench-standby-room-gpu bench-control bench-control-sockets bench-elastic
FUZZ_SECONDS ?= 60
REQUESTS ?= 10000
SECONDS ?= 120
SEED ?=
E2E ?=
#: Tests that must pass on the compiled form of the request path and of homes, too.
ON_COMPILED := tests/wire/test_http1.py tests/wire/test_knative_head.py tests/wire/http2 tests/shell/test_dataplane.py \
  tests/shell/http2 tests/shell/knative/test_activator.py tests/shell/knative/test_request_log.py \
  tests/shell/test_continuing.py tests/wire/test_continuation.py tests/core/dispatch tests/core/scaling tests/core/sharing \
  tests/shell/test_dispatch_function.py tests/shell/test_affinity.py tests/shell/test_prefill_leases.py tests/shell/test_homes.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test check unit e2e rdma storm chaos calibrate fuzz golden compiled clean $(BENCHES)

help:
	@echo 'make demo [KEEP=1]   an embedded cluster: from zero to the first token (KEEP=1 leaves it running)'
	@echo 'make test            set-up, then format, lint, types, layers and all tests'
	@echo 'make check           the same without engine and cluster tests'
	@echo 'make e2e             real etcd, Kubernetes and Knative: every behaviour against stock and against ours'
	@echo '                     (E2E="--impl ours -k websocket" are options of pytest; needs root and Go, see e2e/README.md)'
	@echo 'make rdma            KV over real verbs under a kernel with soft-RoCE (built once: six minutes)'
	@echo 'make storm           REQUESTS=10000 through a pair in which every step fails at times (quarter of an hour)'
	@echo 'make chaos           SECONDS=120 of faults by a seed on real processes, every invariant checked (SEED=n repeats a run)'
	@echo 'make calibrate       what one function of each kind bears, kept as data (three quiet minutes)'
	@echo 'make compiled        the request path and homes through mypyc, in the cache; used from then on (decision 8)'
	@echo 'make fuzz            every parser by coverage, FUZZ_SECONDS each'
	@echo 'make golden          rewrite the golden scripts from what the code does now; then read the diff'
	@echo 'make setup           only the set-up: $$GALAXY_CACHE and .venv'
	@echo 'make clean           remove .venv and caches of this clone (the shared cache folder stays)'
	@echo '$(BENCHES)'

setup:
	@command -v $(PYTHON) >/dev/null || { \
	  echo 'set-up stopped: $(PYTHON) not found. Install Python 3.11 (Debian, Ubuntu: apt install python3.11' >&2; \
	  echo 'python3.11-venv; Fedora: dnf install python3.11; or pyenv), or name it: make PYTHON=/path/to/python3.11' >&2; \
	  exit 1; }
	@$(PYTHON) -m tools.setup

demo: setup
	@$(PY) -m examples.demo $(if $(KEEP),--keep)

# Not a target of its own, so that `make -j` runs it before the tests and once.
define static_checks
@$(PY) -m ruff format --check --quiet $(ROOTS) || { echo 'run `$(PY) -m ruff format`, then again' >&2; exit 1; }
@$(PY) -m ruff check --quiet $(ROOTS)
@$(PY) -m mypy --no-error-summary $(ROOTS)
@$(PY) -m tools.layers
endef

check: setup
	$(static_checks)
	@$(PY) -m pytest -m 'not engine and not cluster'

test: setup
	$(static_checks)
	@$(PY) -m pytest
	@$(PY) -m tools.compiled
	@$(PY) -m pytest -p tests.support.compiled_form $(ON_COMPILED)

compiled: setup
	@$(PY) -m tools.compiled

unit: setup
	@$(PY) -m pytest -m 'not engine and not cluster'

e2e: setup
	@$(PY) -m e2e.build
	@$(PY) -m pytest e2e $(E2E)

rdma: setup
	@$(PY) -m tools.rdma_vm run --links pair --memory 8G --seconds 900 -- $(PY) -m pytest tests/rdma

storm: setup
	@$(PY) -m tests.engine.storm --requests $(REQUESTS)

calibrate: setup
	@$(PY) -m bench.calibrate --write

chaos: setup
	@$(PY) -m tests.chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

fuzz: setup
	@$(PY) -m tests.fuzz --seconds $(FUZZ_SECONDS)

golden: setup
	@$(PY) -m pytest -q -m 'not engine and not cluster' --update-golden

$(BENCHES): bench-%: setup
	@$(PY) -m bench.$(subst -,_,$*)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .galaxy build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
