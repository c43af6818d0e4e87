#!/usr/bin/env bash
# Start an export over HTTP, and wait until the cell is ready: TOKEN=… examples/shell/export.sh [CELL [NAME]]
set -euo pipefail

url="${URL:-http://127.0.0.1:8080}/${1:-demo}/__export"
name="${2:-}"

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

# As `ask`, again and again as long as the answer is to try again.
ask_patiently() {
    while ask "$@" && [[ $wait ]]; do
        echo "$body: again in $wait s" >&2
        sleep "$wait"
    done
}

if [[ $name ]]; then
    ask_patiently --data "{\"Name\":\"$name\"}" "$url"
else
    ask_patiently --request POST "$url"
fi
case $status in
    202) echo "started" ;;
    # Somebody else's export is as good a reason to wait.
    409) echo "$body" >&2 ;;
    *) echo "$body" >&2 && exit 1 ;;
esac

while ask_patiently "$url" && [[ $status == 200 ]]; do
    echo "$body"
    [[ $body == '{"status":"ready"}' ]] && exit
    sleep 1
done
echo "$body" >&2
exit 1
