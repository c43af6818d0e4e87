#!/usr/bin/env bash
# Start an export over HTTP, and wait until the cell is ready: TOKEN=… examples/shell/export.sh [CELL [NAME]]
#
# Over HTTP a cell is ready however its export ended. To know whether there is a snapshot, read `last_outcome` over gRPC,
# or the snapshot directory, which has NAME.zip or NAME.error.
set -euo pipefail

[[ ${TOKEN:-} ]] || { echo "TOKEN: is not set. Set it to the token that make run printed, or another." >&2 && exit 2; }
url="${URL:-http://127.0.0.1:8080}/${1:-demo}/__export"
name="${2:-}"
ready='{"status":"ready"}'
# The program gives up after this many failures in a row.
tries="${TRIES:-30}" failures=0

headers=$(mktemp)
trap 'rm -f "$headers"' EXIT

# Send one request. Set $status, $body and, if a retry makes sense, $wait (seconds). The token goes through standard input,
# because other users can see arguments.
request() {
    local response
    if response=$(printf 'header = "Authorization: Bearer %s"\n' "$TOKEN" |
        curl --silent --show-error --max-time 30 --config - --dump-header "$headers" --write-out '\n%{http_code}' "$@")
    then
        status="${response##*$'\n'}"
        body="${response%$'\n'*}"
        wait=$(awk 'tolower($1) == "retry-after:" { print $2 + 0 }' "$headers")
    else
        status=0 body="no response" wait=1
    fi
}

# Wait for $wait seconds, as the last response asks. Give up after $tries failures.
pause() {
    if ((++failures >= tries)); then
        echo "giving up after $tries tries: $body" >&2
        exit 1
    fi
    echo "$body: retrying in $wait s" >&2
    sleep "$wait"
}

# Send a request, and retry as long as a retry makes sense.
request_with_retries() {
    while request "$@" && [[ $wait ]]; do
        pause
    done
}

# Send a start, with retries. If the response to a start was lost, the export may have started. So read the status before
# each retry, and don't retry unless it is "ready".
start() {
    while request "$@" && [[ $wait ]]; do
        pause
        request_with_retries "$url"
        [[ $body == "$ready" ]] || break
    done
}

if [[ $name ]]; then
    start --data "{\"Name\":\"$name\"}" "$url"
else
    start --request POST "$url"
fi
case "$status $body" in
    202*) echo "started" ;;
    # Another caller's export is in progress: wait for its end.
    200* | '409 {"code":"PR409-CM-0002"'*) echo "$body" >&2 ;;
    *) echo "$body" >&2 && exit 1 ;;
esac

failures=0
while request_with_retries "$url" && [[ $status == 200 ]]; do
    failures=0
    echo "$body"
    [[ $body == "$ready" ]] && exit
    sleep 1
done
echo "$body" >&2
exit 1
