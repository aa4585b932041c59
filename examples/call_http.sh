#!/bin/sh
# Ask a running service about an image: sh examples/call_http.sh [http://127.0.0.1:8000]. `make serve` starts one.
set -eu
address=${1:-http://127.0.0.1:8000}
image=$(dirname "$0")/../app/demo/images/7.json

curl --fail --silent --show-error "$address/v2/health/ready"
curl --fail --silent --show-error "$address/v2/models/digits/infer" -H 'Content-Type: application/json' -d "@$image"
echo
