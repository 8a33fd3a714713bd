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
# Against the contract as last promised. A change that breaks clients fails here; one that is meant to
# (before a release) is made known by 'make baseline', and shows in the review.
.venv/bin/buf breaking --against protos/baseline.binpb
