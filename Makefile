# Everything runs from .venv, which `uv` fills; on a machine without uv it is fetched from PyPI into .uv.
# Targets may be repeated at will: what is installed already is not installed again.

VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
# Broken links, anchors and pages outside the navigation are errors.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
PYTEST_ARGS ?=
VERSIONS ?=
FUZZ_ARGS ?=

export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_LINK_MODE ?= copy
# Every service is a process of its own that imports the same libraries: without their compiled form kept, which some
# images forbid, each would spend seconds compiling what the one before it had compiled.
unexport PYTHONDONTWRITEBYTECODE
# As pip does: trust what the machine trusts (a company's proxy), where it keeps a list of it.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS ?= true
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-clickhouse up down check bench chaos fuzz docs openapi openapi-breaking typescript clean

help:
	@echo 'make demo [KEEP=1]   the main job on real data, on a fresh machine too; KEEP=1 leaves the stack running'
	@echo 'make up | down       the local stack and all services, in the background'
	@echo 'make test            all tests, on the real broker and engine (PYTEST_ARGS=…)'
	@echo 'make test-unit       unit tests only: no broker, under a minute'
	@echo 'make test-clickhouse the SQL on every ClickHouse version that is claimed (VERSIONS=…)'
	@echo 'make check           format, lint, types, import contracts, documentation'
	@echo 'make bench           benchmarks; chaos: fault injection; docs: the documentation as pages in site/'
	@echo 'make openapi         docs/openapi.json from the code; typescript: the TypeScript client from it'
	@echo 'make fuzz            1,000,000 broken requests to every route (FUZZ_ARGS=--inputs N --seed N)'
	@echo 'make clean           ends the stack and removes its data'

demo: $(VENV)/.installed-demo
	$(BIN)/usage-billing demo $(if $(KEEP),--keep)

up: $(VENV)/.installed-demo
	$(BIN)/usage-billing up

down:
	@if [ -x $(BIN)/usage-billing ]; then $(BIN)/usage-billing down; fi

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/unit clients/python/client_tests -n 2 $(PYTEST_ARGS)

# What is left of `make test` for other versions of ClickHouse; each in an environment of its own, 600 MB in .cache.
test-clickhouse: $(VENV)/.installed-dev | $(UV)
	UV=$(UV) $(BIN)/python -m tests.matrix $(VERSIONS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(MKDOCS)

bench: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks

chaos: $(VENV)/.installed-dev
	$(BIN)/python -m tests.chaos

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

# The API's document in the repository; `usage-billing openapi` prints that of the code.
openapi: $(VENV)/.installed-dev
	$(BIN)/usage-billing openapi > docs/openapi.json

# What a client of the API as it is on the branch BASE could no longer do; needs Go.
BASE ?= origin/main
openapi-breaking:
	git show $(BASE):docs/openapi.json > docs/.openapi-base.json
	go run github.com/oasdiff/oasdiff@v1.37.0 breaking --fail-on ERR docs/.openapi-base.json docs/openapi.json; \
	  code=$$?; rm docs/.openapi-base.json; exit $$code

# Types from docs/openapi.json, then the type check and the build; needs Node.js and npm.
typescript:
	cd clients/typescript && npm ci --silent && npm run --silent generate && npm run --silent build

docs: $(VENV)/.installed-dev
	$(MKDOCS)

clean: down
	rm -rf $${USAGE_LOCAL_DIR:-.local} site

# --- installation ---

.uv/bin/uv:
	python3 -m pip install --quiet --disable-pip-version-check --target .uv uv

$(BIN)/python: | $(UV)
	$(UV) venv --quiet --allow-existing --python '>=3.11' $(VENV)

# The extras are what a demo needs and no more: it is to be quick on a fresh machine.
$(VENV)/.installed-demo: pyproject.toml tools/stripe-standin/pyproject.toml constraints.txt $(BIN)/python
	$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[local,demo]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml clients/python/pyproject.toml tools/stripe-standin/pyproject.toml constraints.txt \
    $(BIN)/python
	$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[local,demo,dev]' -e clients/python
	@touch $@ $(VENV)/.installed-demo
