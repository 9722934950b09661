#!/usr/bin/env bash
# make-secrets.sh [DIRECTORY]: everything secret that compose.yaml beside it mounts, once. Needs openssl.
#
# The directory is its owner's alone; the files in it can be read by the users of the containers, whatever their numbers.
set -euo pipefail
templates=$(cd "$(dirname "$0")" && pwd)
directory=${1:-$templates/secrets}
[ ! -e "$directory" ] || { echo "$directory exists: secrets are never written over" >&2; exit 1; }
umask 077
mkdir -p "$directory"
cd "$directory"

openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj '/CN=usage-billing' -keyout ca.key -out ca.pem 2>/dev/null
password=$(openssl rand -hex 24)
for node in 1 2 3; do
  openssl req -newkey rsa:3072 -nodes -subj "/CN=kafka-$node" -keyout "kafka-$node.key" -out "kafka-$node.csr" 2>/dev/null
  openssl x509 -req -in "kafka-$node.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 1825 -out "kafka-$node.crt" \
    -extfile <(printf 'subjectAltName=DNS:kafka-%s,DNS:localhost' "$node") 2>/dev/null
  openssl pkcs8 -topk8 -nocrypt -in "kafka-$node.key" -out "kafka-$node.pkcs8"
  cat "kafka-$node.pkcs8" "kafka-$node.crt" ca.pem >"kafka-$node.pem"
  sed -e "s/@NODE@/$node/g" -e "s/@PASSWORD@/$password/g" "$templates/server.properties" >"kafka-$node.properties"
  rm "kafka-$node".{key,csr,crt,pkcs8}
done

clickhouse=$(openssl rand -hex 24)
cat >clickhouse-users.xml <<XML
<clickhouse>
    <users>
        <default remove="remove"/>
        <usage>
            <password_sha256_hex>$(printf %s "$clickhouse" | openssl dgst -sha256 -r | cut -d' ' -f1)</password_sha256_hex>
            <networks><ip>::/0</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
            <access_management>0</access_management>
        </usage>
    </users>
</clickhouse>
XML

cat >services.env <<ENV
USAGE_KAFKA_SASL_PASSWORD=$password
USAGE_CLICKHOUSE_DSN=http://usage:$clickhouse@clickhouse:8123/usage
USAGE_ADMIN_KEY=ubk_$(openssl rand -hex 24)
USAGE_SESSION_SECRET=$(openssl rand -hex 24)
STRIPE_API_KEY=
STRIPE_WEBHOOK_SECRET=
ENV
chmod 0444 -- *.pem kafka-*.properties clickhouse-users.xml services.env
chmod 0400 ca.key
echo "written to $directory; set STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET in services.env, and keep ca.key elsewhere"
