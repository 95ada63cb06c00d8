#!/bin/sh
# Works a fleet over the HTTP API with nothing but curl: health, a run that is waited for, a run that is not, a conflict, an unknown host.
# usage: fleet.sh URL HOST SCRIPT SLOW-SCRIPT
set -eu
URL=$1 HOST=$2 SCRIPT=$3 SLOW=$4

# field EXPRESSION: of the JSON on stdin, as `a`
field() { python3 -c 'import json, sys; a = json.load(sys.stdin); v = eval(sys.argv[1]); print(v if not isinstance(v, bool) else str(v).lower())' "$1"; }
post() { curl -s -X POST "$URL$1" -H 'Content-Type: application/json' -d "$2"; }

[ "$(curl -s "$URL/health" | field 'a["ok"]')" = true ]
echo "health ok"

[ "$(post /ping "{\"hosts\":[\"$HOST\"]}" | field 'a["results"][0]["status"]')" = ok ]
echo "ping ok"

answer=$(post /run "{\"hosts\":[\"$HOST\"],\"script\":\"$SCRIPT\",\"args\":[\"one\",\"two words\"]}")
[ "$(echo "$answer" | field 'a["ok"]')" = true ]
printf 'stdout %s\n' "$(echo "$answer" | field 'a["results"][0]["stdout"]')"
printf 'exit %s\n' "$(echo "$answer" | field 'a["results"][0]["exit"]')"
reqid=$(echo "$answer" | field 'a["reqid"]')
printf '%s\n' "$reqid" | grep -Eq '^[0-9a-f]{16}$'
# The result once more, without credentials.
[ "$(curl -s "$URL/status/$reqid" | field 'a["results"][0]["exit"]')" = 0 ]
[ "$(curl -s "$URL/status/$reqid" | field 'isinstance(a["hosts"], list)')" = true ]
echo "status ok"

# A body of which curl asks first whether it may send it.
long=$(head -c 60000 /dev/zero | tr '\0' x)
printf '{"hosts":["%s"],"script":"%s","args":["%s"]}' "$HOST" "$SCRIPT" "$long" > body.json
[ "$(curl -s -X POST "$URL/run" -H 'Expect: 100-continue' --data-binary @body.json | field 'a["results"][0]["exit"]')" = 0 ]
echo "long ok"

reqid=$(post /run "{\"hosts\":[\"$HOST\"],\"script\":\"$SLOW\",\"async\":true}" | field 'a["reqid"]')
tries=0
while [ "$(curl -s "$URL/status/$reqid" | field 'a["complete"]')" != true ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ]
    sleep 0.2
done
printf 'async %s\n' "$(curl -s "$URL/status/$reqid" | field 'a["hosts"]["'"$HOST"'"]["stdout"]')"

post /run "{\"hosts\":[\"$HOST\"],\"script\":\"$SLOW\"}" > first.json &
sleep 0.7
conflict=$(curl -s -o conflict.json -w '%{http_code}' -X POST "$URL/run" -d "{\"hosts\":[\"$HOST\"],\"script\":\"$SLOW\"}")
wait
printf 'conflict %s %s %s\n' "$conflict" "$(field 'a["code"]' < conflict.json)" "$(field 'a["conflicts"][0]' < conflict.json)"
[ "$(field 'a["ok"]' < conflict.json)" = false ]
[ "$(field 'a["results"][0]["exit"]' < first.json)" = 0 ]

printf 'unknown %s\n' "$(post /run '{"hosts":["nobody"],"script":"x"}' | field 'a["error"] + ": " + a["detail"]')"
# The oldest protocol.
[ "$(curl -s --http1.0 "$URL/health" | field 'a["ok"]')" = true ]
[ "$(curl -s --http1.0 -X POST "$URL/ping" -d "{\"hosts\":[\"$HOST\"]}" | field 'len(a["results"])')" = 1 ]
printf 'hosts %s\n' "$(curl -s "$URL/discovery" | field '",".join(sorted(a["hosts"]))')"
echo done
