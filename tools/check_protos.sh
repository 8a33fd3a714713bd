#!/bin/sh
# The committed generated code is what the protos generate, and no released field has changed.
set -eu
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
.venv-codegen/bin/python tools/generate_protos.py --out "$out"
(cd "$out" && find . -name '*_pb2*' | sort) > "$out/made.txt"
(cd src && find . -name '*_pb2*' -not -path '*/__pycache__/*' | sort) > "$out/kept.txt"
diff "$out/kept.txt" "$out/made.txt" || { echo "generated files are missing or left over; run 'make protos'" >&2; exit 1; }
while read -r file; do
  cmp -s "src/$file" "$out/$file" || { echo "src/$file is stale; run 'make protos'" >&2; exit 1; }
done < "$out/made.txt"
# Against the contract as last released (the newest tag), where there is one.
tag=$(git describe --tags --abbrev=0 2>/dev/null || true)
if [ -n "$tag" ]; then
  .venv/bin/buf breaking --against ".git#tag=$tag"
else
  echo "no release yet: buf breaking has nothing to compare with"
fi
