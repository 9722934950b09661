#!/usr/bin/env bash
# The project → the image $1, by deploy/Dockerfile, on a Python of Debian's. Needs root, debootstrap, a Docker engine.
set -euo pipefail
image=$1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

debian=usage-debian:bookworm python=usage-python:bookworm
"$here/debian-image.sh" "$debian"
mkdir "$work/context"
cp "$here/service-image/Dockerfile" /etc/ssl/certs/ca-certificates.crt "$work/context/"
export DOCKER_BUILDKIT=0
docker build --quiet --network host --build-arg "BASE=$debian" -t "$python" "$work/context" >/dev/null
docker build --quiet --network host --build-arg "BASE=$python" -t "$image" -f "$here/../deploy/Dockerfile" "$here/.." \
  >/dev/null
echo "built $image"
