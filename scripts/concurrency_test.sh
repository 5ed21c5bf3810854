#!/usr/bin/env bash
# Sends several edits at once to a running worker, as many callers would, and says how each was answered.
#
#   scripts/concurrency_test.sh [IMAGE [REQUESTS]]      URL=http://127.0.0.1:7000 KEY=… PROMPT=… STEPS=… MODEL=…
#
# Ends with 0 if every answer is an image, or says when to come back (503 with Retry-After); with 1 if any is neither.
set -euo pipefail

url=${URL:-http://127.0.0.1:7000}
image=${1:-}
requests=${2:-4}
[[ $requests =~ ^[1-9][0-9]*$ ]] || { echo "REQUESTS must be a whole number from 1 up; $requests was said." >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [[ -z $image ]]; then # a red square
    python3 - "$work/square.png" <<'PY'
import struct, sys, zlib
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
rows = (b"\0" + b"\xc8\x1e\x1e" * 256) * 256
head = struct.pack(">IIBBBBB", 256, 256, 8, 2, 0, 0, 0)
with open(sys.argv[1], "wb") as file:
    file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
PY
    image=$work/square.png
fi
[[ -r $image ]] || { echo "$image cannot be read; name an image." >&2; exit 2; }

ask() { # number of the request
    local form=(-F "image=@$image" -F "prompt=${PROMPT:-a red hat}" -F "seed=$1")
    [[ -z ${STEPS:-} ]] || form+=(-F "steps=$STEPS")
    [[ -z ${MODEL:-} ]] || form+=(-F "model=$MODEL")
    [[ -z ${KEY:-} ]] || form+=(-H "Authorization: Bearer $KEY")
    curl -sS -o "$work/$1.body" -D "$work/$1.head" -w '%{http_code} %{content_type} %{time_total}' "${form[@]}" \
        "$url/edit" >"$work/$1.said" 2>"$work/$1.failed" || echo "000 none 0" >"$work/$1.said"
}

for ((number = 1; number <= requests; number++)); do ask "$number" & done
wait

drawn=0 later=0 wrong=0
for ((number = 1; number <= requests; number++)); do
    read -r status type seconds <"$work/$number.said" || true
    if [[ $status == 200 && $type == image/* ]]; then
        drawn=$((drawn + 1)) note="$type, $(wc -c <"$work/$number.body" | tr -d ' ') bytes"
    elif [[ $status == 503 ]] && grep -qi '^retry-after:' "$work/$number.head"; then
        later=$((later + 1)) note="busy; $(grep -i '^retry-after:' "$work/$number.head" | tr -d '\r')"
    else
        wrong=$((wrong + 1)) note=$(head -c 300 "$work/$number.body" 2>/dev/null || true)
        [[ -n $note ]] || note=$(head -c 300 "$work/$number.failed")
    fi
    printf 'request %d: %s after %s s: %s\n' "$number" "$status" "$seconds" "$note"
done
printf '%d drawn, %d told to come back, %d wrong\n' "$drawn" "$later" "$wrong"
((wrong == 0))
