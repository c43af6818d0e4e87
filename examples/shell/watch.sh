#!/usr/bin/env bash
# Watch a cell's export over gRPC until it is ready, with nothing but buf: TOKEN=… examples/shell/watch.sh [CELL]
#
# buf learns the contract from the server. A watch that is cut off is not gone on with here: see the other examples.
set -euo pipefail

[[ ${TOKEN:-} ]] || { echo "TOKEN: is not set. Set it to the token that make run printed, or another." >&2 && exit 2; }
buf="${BUF:-$(dirname "$0")/../../.venv/bin/buf}"
target="${CELLEXPORT_GRPC_TARGET:-${CELLEXPORT_GRPC_LISTEN:-127.0.0.1:50051}}"

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

# The token goes by standard input (`@-`), as arguments can be seen by others.
status=0
printf 'Authorization: Bearer %s\n' "$TOKEN" |
    "$buf" curl --protocol grpc --http2-prior-knowledge --header @- \
        --data "{\"cell\": \"${1:-demo}\", \"untilReady\": true}" \
        "http://$target/cellexport.v1.CellExportService/WatchCellExport" 2>"$errors" || status=$?

# This is all that buf says where it could learn no contract, for whatever reason.
if grep -q "failed to find service" "$errors"; then
    echo "$target could not be asked: see that the server runs there, without TLS, and shows its contract" \
        "(CELLEXPORT_REFLECTION)." >&2
else
    cat "$errors" >&2
fi
exit "$status"
