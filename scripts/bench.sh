#!/bin/bash
# The benchmark: the machine's limits, the kernels, the model, decoding against context, and the
# model beside llama.cpp. docs/benchmarks.md tells what each measures.
#
#     scripts/bench.sh [part ...] [options]
#
# Parts, in this order without any: limits kernels model context peers
#
#     --model DIR     Hugging Face directory (default: the demo model, made when it is not there)
#     --threads N     of every program (default: the cores of this process)
#     --rounds N      rounds of which the median counts (default: 3 for model, 5 for the others)
#     --only NAMES    of kernels (matmul,kv,rows), or of model and peers (prefill-512,decode-128...);
#                     name one of these parts with it
set -euo pipefail
cd "$(dirname "$0")/.."

programs=${NOSA_BENCH_PROGRAMS:-build/bin}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nosa/peers
model=""
threads=()
rounds=()
only=()
parts=()

fail() {
    echo "bench: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    limits | kernels | model | context | peers) parts+=("$1") ;;
    -h | --help)
        sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    --model | --threads | --rounds | --only)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in
        --model) model=$2 ;;
        --threads) threads=("$1" "$2") ;;
        --rounds) rounds=("$1" "$2") ;;
        --only) only=("$1" "$2") ;;
        esac
        shift
        ;;
    *) fail "'$1' is no part and no option (see --help)" ;;
    esac
    shift
done
[ ${#parts[@]} -gt 0 ] || parts=(limits kernels model context peers)
[ -x "$programs/nosa-bench" ] || fail "$programs/nosa-bench was not built"

# Both are needed by some parts only, and made once. The peer knows no eviction head, and full
# attention, in which both run, is that of the plain model.
need_model() {
    [ -z "$model" ] || return 0
    scripts/venv.sh
    model=$(.venv/bin/python tools/make_demo_model.py --plain)
}

# The model's weights as GGUF in the cache, named by the directory and the time of its weights.
need_gguf() {
    local stamp
    stamp=$( (realpath "$model" && stat -L -c '%s %Y' "$model"/*.safetensors &&
        cat tools/write_gguf.py) | sha256sum | cut -c1-16)
    gguf=$cache/$(basename "$(realpath "$model")")-$stamp.gguf
    [ ! -e "$gguf" ] || return 0
    scripts/venv.sh
    mkdir -p "$cache"
    .venv/bin/python tools/write_gguf.py "$model" "$gguf"
}

title() {
    printf '\n== %s\n\n' "$*"
}

for part in "${parts[@]}"; do
    case $part in
    limits)
        title "limits of this machine"
        "$programs/nosa-bench" limits "${threads[@]}"
        ;;
    kernels)
        title "kernels"
        "$programs/nosa-bench" kernels "${threads[@]}" "${only[@]}"
        ;;
    model)
        title "model"
        need_model
        "$programs/nosa-bench" model --model "$model" "${threads[@]}" "${only[@]}" \
            "${rounds[@]:---rounds=3}"
        ;;
    context)
        title "decoding against context"
        "$programs/nosa-bench" context "${threads[@]}" "${rounds[@]}"
        ;;
    peers)
        title "beside llama.cpp"
        need_model
        peer=$(scripts/peer_llama.sh)
        need_gguf
        python3 scripts/bench_peers.py --programs "$programs" --peer "$peer" --model "$model" \
            --gguf "$gguf" "${threads[@]}" "${rounds[@]}" "${only[@]}"
        ;;
    esac
done
