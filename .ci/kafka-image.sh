#!/usr/bin/env bash
# jars of the local broker + a minimal Debian → the image $1. Needs root, debootstrap, a Docker engine.
set -euo pipefail
image=$1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

base=usage-debian:bookworm
"$here/debian-image.sh" "$base"

mkdir "$work/context"
cp "$here"/kafka-image/* "$here/../deploy/local/kafka/log4j2.xml" "$work/context/"
jars=$("$here/../.venv/bin/python" -c 'from deploy.local.kafka import resolve_jars; print(resolve_jars())')
cp -r "$jars" "$work/context/jars"
DOCKER_BUILDKIT=0 docker build --quiet --network host --build-arg "BASE=$base" -t "$image" "$work/context" >/dev/null
echo "built $image"
