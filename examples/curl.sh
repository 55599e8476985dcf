#!/usr/bin/env bash
# Uses of the gateway's HTTP interface with curl: examples/curl.sh PACKET
#
# PACKET is a file that `python -m edge_runtime encode` wrote. ESRT_SERVER is the gateway's address.
# ESRT_API_KEY is the API key; a gateway without a key file needs none.
set -euo pipefail

packet=${1:?usage: examples/curl.sh PACKET}
server=${ESRT_SERVER:-http://127.0.0.1:8080}
features='Content-Type: application/vnd.esrt.features'

# The key is passed in a file, because every user of a machine sees the arguments of a process.
gateway() {
  curl --silent --show-error --fail-with-body \
    --header @<(echo "${ESRT_API_KEY:+Authorization: Bearer $ESRT_API_KEY}") "$@"
  echo
}

echo "# The model and its languages"
gateway "$server/v1/models"

echo "# A translation as one JSON answer"
gateway --header "$features" --data-binary "@$packet" "$server/v1/translate?src=eng&tgt=deu"

echo "# The same translation as events, while it is decoded"
gateway --no-buffer --header "$features" --header 'Accept: text/event-stream' \
  --data-binary "@$packet" "$server/v1/translate?src=eng&tgt=deu"

echo "# Two languages, safe to repeat: the same key gets the same answer, decoded once"
for attempt in 1 2; do
  gateway --header "$features" --header "Idempotency-Key: $$" --data-binary "@$packet" \
    "$server/v1/translate?src=eng&tgt=fra,spa"
done

echo "# Features kept in the gateway's memory, for later translations without an upload"
kept=$(gateway --header "$features" --data-binary "@$packet" "$server/v1/features")
echo "$kept"
handle=$(sed -E 's/.*"features": *"([^"]+)".*/\1/' <<<"$kept")
gateway --request POST "$server/v1/translate?src=eng&tgt=kor&features=$handle"
gateway --request DELETE "$server/v1/features/$handle"
