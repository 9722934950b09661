#!/usr/bin/env bash
# A minimal Debian → the image $1, where it is not there yet. Needs root, debootstrap, a Docker engine.
set -euo pipefail
image=$1
docker image inspect "$image" >/dev/null 2>&1 && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase bookworm "$work/root" >"$work/debootstrap.log" 2>&1 ||
  { tail -n 20 "$work/debootstrap.log" >&2; exit 1; }
tar -C "$work/root" -c . | docker import - "$image" >/dev/null
