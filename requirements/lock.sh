#!/bin/sh
# Make the locks anew. Hashes alone: no address of an index is kept.
set -eu
uv="$1"
compile() {
  "$uv" pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-emit-find-links --no-annotate --no-header "$@"
}
compile ../pyproject.toml --extra dev -o dev.lock
compile ../pyproject.toml --extra dev --extra tensorflow -c dev.lock -o tensorflow.lock
compile ../pyproject.toml --extra server --extra worker --extra litert -c dev.lock -o server.lock
compile build.in -o build.lock
compile codegen.in -o codegen.lock
compile triton.in -o triton.lock
compile kserve.in -o kserve.lock
compile together.in -o together.lock
compile --no-deps perf.in -o perf.lock
compile node.in -o node.lock
compile mxnet.in -o mxnet.lock
compile ../pyproject.toml torch.in --extra torch-onnx -o torch.lock
compile moto.in -o moto.lock
compile signing.in -o signing.lock
compile mlflow.in -c tensorflow.lock -o mlflow.lock
