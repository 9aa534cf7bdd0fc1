#!/bin/bash
# Starts a coordinator and a worker on free ports of the loopback and streams answers through
# nosactl: a short chat, and one over several thousand tokens, long enough for block selection to be
# at work. Stops both at its end, whatever the end is. With --serve they stay up until Ctrl-C.
#
#     scripts/run_demo.sh [--serve]
#
# MODEL=<Hugging Face directory> takes another model, LISTEN=HOST:PORT another address,
# WORKER_FLAGS="..." more flags of nosa-worker, BUILD=<folder> the programs of another build.
set -euo pipefail
cd "$(dirname "$0")/.."

serve=false
[ "${1:-}" = --serve ] && serve=true
bin=${BUILD:-build}/bin
logs=${BUILD:-build}/demo/$$ # of this run; they stay when a program fails
coordinator=
worker=
failed=false
long=
ports=

# Ends a program that was started here: SIGTERM, and SIGKILL if that is not enough.
end() {
    local pid=$1 i
    [ -n "$pid" ] || return 0
    kill -TERM "$pid" 2> /dev/null || true
    for ((i = 0; i < 150; i++)); do
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2> /dev/null || true
    wait "$pid" 2> /dev/null || true
}

stop() {
    trap '' INT TERM
    end "$worker"
    end "$coordinator"
    rm -f "$long" "$ports"
    $failed || rm -rf "$logs"
}
trap stop EXIT
# Ctrl-C is how --serve ends.
trap 'if $serve; then exit 0; else exit 130; fi' INT
trap 'exit 143' TERM

# Says why a program ended that should run, and gives up.
died() {
    failed=true
    echo "$1 has ended; the end of $2:" >&2
    tail -n 15 "$2" >&2
    exit 1
}

model=${MODEL:-}
if [ -z "$model" ]; then
    scripts/venv.sh
    model=$(.venv/bin/python tools/make_demo_model.py | tail -n 1)
fi
# Without an eviction head nosa's second cut has nothing to rank by: select by the query alone. The
# names of the tensors stand in the heads of the files.
attention=infllmv2
for file in "$model"/*.safetensors; do
    if grep -aqF '.self_attn.delta.weight"' <(head -c 4M "$file" 2> /dev/null); then
        attention=nosa
    fi
done
chat=(--chat)
plain=
if [ ! -e "$model/chat_template.jinja" ] &&
    ! grep -q '"chat_template"' "$model/tokenizer_config.json" 2> /dev/null; then
    chat=()
    plain=" --plain"
fi

# ---- the programs

mkdir -p "$logs"
ports=$(mktemp)
# In sessions of their own, so that Ctrl-C reaches this script alone, which lets them drain.
setsid "$bin/nosa-coordinator" --listen "${LISTEN:-127.0.0.1:0}" --http 127.0.0.1:0 --drain-timeout 5 \
    > "$ports" 2> "$logs/coordinator.log" &
coordinator=$!
until grep -q '^listening' "$ports"; do
    kill -0 "$coordinator" 2> /dev/null || died nosa-coordinator "$logs/coordinator.log"
    sleep 0.05
done
port=$(sed -n 's/^listening on port \([0-9]*\).*/\1/p' "$ports")
http=$(sed -n 's/.*http on port \([0-9]*\).*/\1/p' "$ports")
host=${LISTEN:-127.0.0.1:0}
host=${host%:*}
server=${host:-127.0.0.1}:$port
export NOSA_SERVER=$server

read -r -a worker_flags <<< "${WORKER_FLAGS:-}"
setsid "$bin/nosa-worker" --model "$model" --attention "$attention" --listen 127.0.0.1:0 --id demo \
    --coordinator "$server" --drain-timeout 5 ${worker_flags[@]+"${worker_flags[@]}"} \
    > /dev/null 2> "$logs/worker.log" &
worker=$!
echo "coordinator at $server, http at 127.0.0.1:$http; a worker loads $model"
until "$bin/nosactl" status --json --timeout 2 2> /dev/null | grep -q '"ready":true'; do
    kill -0 "$coordinator" 2> /dev/null || died nosa-coordinator "$logs/coordinator.log"
    kill -0 "$worker" 2> /dev/null || died nosa-worker "$logs/worker.log"
    sleep 0.2
done

how_to() {
    cat << END
    $bin/nosactl generate --server $1${chat[*]:+ ${chat[*]}} --prompt "Why is the sky blue?"
    $bin/nosactl top --server $1
    .venv/bin/python examples/generate.py --server $1$plain "Why is the sky blue?"
    grpcurl -plaintext -d '{"text": "The sky is", "max_tokens": 32}' \\
        $1 nosa.v1.Inference/Generate
    curl http://127.0.0.1:$2/metrics
END
}

if $serve; then
    echo "ready; logs are in $logs. To talk to it:"
    echo
    how_to "$server" "$http"
    echo
    echo "Ctrl-C stops it."
    wait -n "$coordinator" "$worker" || true
    kill -0 "$coordinator" 2> /dev/null || died nosa-coordinator "$logs/coordinator.log"
    died nosa-worker "$logs/worker.log"
fi

# ---- the answers

# Several thousand tokens of other text, then the beginning of a licence to go on with.
long=$(mktemp)
cat docs/nosa.md DESIGN.md | head -c 14000 > "$long"
echo >> "$long"
head -c 4000 LICENSE >> "$long"

echo
echo "--- a short prompt"
"$bin/nosactl" generate ${chat[@]+"${chat[@]}"} --max-tokens 96 \
    --prompt "Explain in two sentences why the sky is blue."
echo
echo "--- going on with a licence after several thousand tokens of other text, $attention attention"
"$bin/nosactl" generate --max-tokens 48 --temperature 0 --prompt-file "$long"
echo
echo "--- the same again: what its worker holds of the prompt is not computed twice"
"$bin/nosactl" generate --max-tokens 48 --temperature 0 --prompt-file "$long"
echo
sleep 1 # the worker's next heartbeat tells that it is idle again
"$bin/nosactl" workers
end "$worker"
end "$coordinator"
worker=
coordinator=
echo
echo "Both are stopped now. make serve keeps them up and prints their address; then:"
echo
how_to HOST:PORT PORT
echo
echo "Without a server:"
echo "    $bin/nosa-run --model $model${chat[*]:+ ${chat[*]}} --prompt \"Why is the sky blue?\""
