#!/usr/bin/env bash
# Watch a cell's export over gRPC until it is ready, with nothing but buf: TOKEN=… examples/shell/watch.sh [CELL]
#
# buf reads the contract from the server. This example doesn't continue a watch that was cut off: the other examples do.
set -euo pipefail

[[ ${TOKEN:-} ]] || { echo "TOKEN: is not set. Set it to the token that make run printed, or another." >&2 && exit 2; }
buf="${BUF:-$(dirname "$0")/../../.venv/bin/buf}"
target="${CELLEXPORT_GRPC_TARGET:-${CELLEXPORT_GRPC_LISTEN:-127.0.0.1:50051}}"

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

# The token goes through standard input (`@-`), because other users can see arguments.
status=0
printf 'Authorization: Bearer %s\n' "$TOKEN" |
    "$buf" curl --protocol grpc --http2-prior-knowledge --header @- \
        --data "{\"cell\": \"${1:-demo}\", \"untilReady\": true}" \
        "http://$target/cellexport.v1.CellExportService/WatchCellExport" 2>"$errors" || status=$?

# If buf can't read the contract from the server, it prints only this text, whatever the reason.
if grep -q "failed to find service" "$errors"; then
    echo "can't read the contract from $target: check that the server runs there, without TLS, and has" \
        "CELLEXPORT_REFLECTION=on." >&2
else
    cat "$errors" >&2
fi
exit "$status"
