# `make demo` and `make test` do all of their own set-up; they need Python 3.11 to 3.13, pip, git and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint lock venv pool pool-demo pool-down

demo: venv  ## the miniature web, curated end to end under demo/
	$(BIN)/lvd demo --root demo

test: venv lint  ## every test
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

venv: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --quiet --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps -e .
	touch $@

lock: venv  ## recompiles requirements.lock; torch and torchvision must be of one default build
	printf 'torch==2.13.0\ntorchvision==0.28.0\n' > .venv/constraints.txt
	$(BIN)/uv pip compile --quiet pyproject.toml --extra cpu --extra faces --extra ray --extra dev --universal --python-version 3.11 \
		--constraint .venv/constraints.txt --generate-hashes --no-emit-index-url --no-header -o requirements.lock

pool: venv  ## a node pool on this machine: PostgreSQL, S3, Prefect, Ray of two nodes, a worker; under pool/
	$(BIN)/python -m lvd.infra.pool up

pool-demo: venv  ## the miniature web curated on that pool, on S3, by `prefect deployment run`
	$(BIN)/python -m lvd.infra.pool demo

pool-down: venv  ## ends every process of the pool
	$(BIN)/python -m lvd.infra.pool down
