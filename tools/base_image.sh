#!/bin/sh
# Makes the base image of the Dockerfile from Debian packages, for machines that reach no image registry.
#
#   tools/base_image.sh [tag]                 default tag: sealane-base:bookworm
#   MIRROR=http://deb.debian.org/debian       where the packages come from
#
# Needs root, debootstrap and a running Docker engine. debootstrap checks the archive's signature.
set -eu

tag="${1:-sealane-base:bookworm}"
mirror="${MIRROR:-http://deb.debian.org/debian}"

fail() {
  echo "error: $1" >&2
  exit 1
}

command -v debootstrap >/dev/null || fail "debootstrap is not installed; apt-get install debootstrap"
[ "$(id -u)" = 0 ] || fail "debootstrap needs root; run this with sudo"
docker info >/dev/null 2>&1 || fail "no Docker engine answers; start it, or set DOCKER_HOST"

root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" "$mirror" >&2

# What an image has no use for: the package cache, lists, manuals, and device nodes that the engine makes itself.
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/* \
  "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/dev/*

tar -C "$root" --numeric-owner -c . | docker import --change 'CMD ["python3"]' - "$tag" >/dev/null
echo "$tag"
