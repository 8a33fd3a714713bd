# Sets itself up: needs Python >= 3.11, make and git. Environments are made from the locks in requirements/.
PYTHON ?= python3
UV = .venv/bin/uv
BIN = .venv/bin
SYNC = $(UV) pip sync -q --require-hashes --compile-bytecode

.PHONY: demo test check protos up bench bench-peers promises lock format clean baseline

# -- environments ----------------------------------------------------------------------------------
.venv/.uv:
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q --disable-pip-version-check uv==0.13.8
	touch $@

# Without TensorFlow: the services, the SDK, LiteRT, the checks.
.venv/.dev: .venv/.uv requirements/dev.lock pyproject.toml
	test -e .venv/.tensorflow || $(UV) pip install -q --python $(BIN)/python --require-hashes --compile-bytecode -r requirements/dev.lock
	$(UV) pip install -q --python $(BIN)/python --no-deps -e .
	touch $@

.venv/.tensorflow: .venv/.uv requirements/tensorflow.lock pyproject.toml
	$(UV) pip install -q --python $(BIN)/python --require-hashes -r requirements/tensorflow.lock
	$(UV) pip install -q --python $(BIN)/python --no-deps -e .
	touch $@ .venv/.dev

# tritonclient wants protobuf < 7, the code generator another one: environments of their own.
.venv-triton/.ready: .venv/.uv requirements/triton.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-triton
	$(UV) pip install -q --python .venv-triton/bin/python --require-hashes -r requirements/triton.lock
	touch $@

# MXNet's last release wants numpy < 1.24; the tests of its importer ask it.
.venv-mxnet/.ready: .venv/.uv requirements/mxnet.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-mxnet
	$(UV) pip install -q --python .venv-mxnet/bin/python --require-hashes -r requirements/mxnet.lock
	touch $@

# 4.5 GB of CUDA libraries: made only by who asks for it. Tests of the torch runtime are skipped without.
.venv-torch/.ready: .venv/.uv requirements/torch.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-torch
	$(UV) pip install -q --python .venv-torch/bin/python --require-hashes -r requirements/torch.lock
	touch $@

.venv-codegen/.ready: .venv/.uv requirements/codegen.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-codegen
	$(UV) pip install -q --python .venv-codegen/bin/python --require-hashes -r requirements/codegen.lock
	touch $@

lock: .venv/.uv
	cd requirements && sh lock.sh ../$(UV)

# -- what people run -------------------------------------------------------------------------------
# Two cameras, one cut cable. LIGHT=1 skips training and TensorFlow.
ifeq ($(LIGHT),1)
demo: .venv/.dev
else
demo: .venv/.tensorflow
endif
	$(BIN)/python -m sealane_local.demo $(if $(filter 1,$(LIGHT)),--light) --data var/demo

test: .venv/.tensorflow .venv-triton/.ready .venv-mxnet/.ready .venv-codegen/.ready
	$(BIN)/python -m pytest tests

up: .venv/.dev
	$(BIN)/sealane up --data var/local

bench: .venv/.tensorflow
	$(BIN)/python bench/latency.py

# Against the peers, each in an environment of its own under .venvs-peers; needs g++, libgrpc++-dev, pkg-config, wrk.
bench-peers: .venv/.tensorflow
	$(BIN)/python -m bench.peers $(if $(QUICK),--quick) --json bench/peers/results --docs docs

promises: .venv/.tensorflow .venv-triton/.ready
	$(BIN)/python bench/promises.py $(if $(AREA),--area $(AREA)) $(if $(LONG),--long)

# -- the fast gate ---------------------------------------------------------------------------------
check: .venv/.dev .venv-codegen/.ready
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/python tools/check_house.py
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code
	sh tools/check_protos.sh
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit

protos: .venv-codegen/.ready
	$(BIN)/buf format -w
	.venv-codegen/bin/python tools/generate_protos.py

# The contract that later changes are held against.
baseline: .venv/.dev
	$(BIN)/buf build -o protos/baseline.binpb

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venvs-peers .venv-triton .venv-mxnet .venv-torch .venv-codegen var
