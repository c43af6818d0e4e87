#!/usr/bin/env bash
# Start an export over HTTP, and wait until the cell is ready: TOKEN=… examples/shell/export.sh [CELL [NAME]]
#
# Over HTTP a cell is said to be ready however its export ended. Whether there is a snapshot is told over gRPC, as
# `last_outcome`, and by the snapshot directory, which has NAME.zip or NAME.error.
set -euo pipefail

[[ ${TOKEN:-} ]] || { echo "TOKEN: is not set. Set it to the token that make run printed, or another." >&2 && exit 2; }
url="${URL:-http://127.0.0.1:8080}/${1:-demo}/__export"
name="${2:-}"
ready='{"status":"ready"}'
# After so many failures in a row there is no use in another try.
tries="${TRIES:-30}" failures=0

headers=$(mktemp)
trap 'rm -f "$headers"' EXIT

# One request; sets $status, $body and, if it is worth trying again, $wait: seconds. The token goes by standard input,
# since arguments can be seen by others.
ask() {
    local answer
    if answer=$(printf 'header = "Authorization: Bearer %s"\n' "$TOKEN" |
        curl --silent --show-error --max-time 30 --config - --dump-header "$headers" --write-out '\n%{http_code}' "$@")
    then
        status="${answer##*$'\n'}"
        body="${answer%$'\n'*}"
        wait=$(awk 'tolower($1) == "retry-after:" { print $2 + 0 }' "$headers")
    else
        status=0 body="no answer" wait=1
    fi
}

# Wait for as long as the last answer says, or give up.
pause() {
    if ((++failures >= tries)); then
        echo "given up after $tries tries: $body" >&2
        exit 1
    fi
    echo "$body: again in $wait s" >&2
    sleep "$wait"
}

# As `ask`, again and again as long as the answer is to try again.
ask_patiently() {
    while ask "$@" && [[ $wait ]]; do
        pause
    done
}

# As `ask_patiently`, for a start. One whose answer was lost may have been made: so before another the status is asked
# for, and one that isn't "ready" is the last word.
start() {
    while ask "$@" && [[ $wait ]]; do
        pause
        ask_patiently "$url"
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
    # Somebody else's export is as good a reason to wait.
    200* | '409 {"code":"PR409-CM-0002"'*) echo "$body" >&2 ;;
    *) echo "$body" >&2 && exit 1 ;;
esac

failures=0
while ask_patiently "$url" && [[ $status == 200 ]]; do
    failures=0
    echo "$body"
    [[ $body == "$ready" ]] && exit
    sleep 1
done
echo "$body" >&2
exit 1
