#!/bin/bash
# Builds the fuzz targets with clang's libFuzzer and the sanitizers and runs each on its corpus.
#
#     scripts/fuzz.sh [--jobs N] [--build DIR] [LIMIT [TARGET ...]]
#
# LIMIT is seconds for each target, or executions: 10000000x (default: 60 seconds). TARGET is
# config, message, safetensors, tokenizer or tokenizer_text (default: all). A target runs as N
# processes that find one another's inputs in a shared corpus (default: one for each core). DIR is
# the build folder (default: build-fuzz); inputs that reach new code go to DIR/corpus/TARGET, those
# that fail to DIR/failures, what libFuzzer says to DIR/logs. Prints one line for each target with
# its executions, the edges that it covers and its failures; exits with 1 when there is one.
set -euo pipefail
cd "$(dirname "$0")/.."

# The longest input, and what else suits the target. Longer inputs only cost time.
declare -A options=(
    [config]="-max_len=700"
    [safetensors]="-max_len=1024"
    [tokenizer]="-max_len=1300"
    [tokenizer_text]="-max_len=96"
    [message]="-max_len=600"
)
order="safetensors config tokenizer_text tokenizer message"
build=build-fuzz
jobs=$(nproc)
while [ $# -gt 0 ]; do
    case $1 in
    --jobs) jobs=${2:?--jobs needs a number} && shift 2 ;;
    --build) build=${2:?--build needs a folder} && shift 2 ;;
    -*) echo "fuzz: unknown option $1" >&2 && exit 2 ;;
    *) break ;;
    esac
done
limit=${1:-60}
[ $# -eq 0 ] || shift
targets=${*:-$order}
if ! [[ $limit =~ ^[1-9][0-9]*x?$ && $jobs =~ ^[1-9][0-9]*$ ]]; then
    echo "fuzz: LIMIT is seconds or executions (10000000x), N a number of processes" >&2
    exit 2
fi
for target in $targets; do
    if [ -z "${options[$target]:-}" ]; then
        echo "fuzz: no target \"$target\" ($order)" >&2
        exit 2
    fi
done
case $limit in
*x) bound=-runs=$(((${limit%x} + jobs - 1) / jobs)) ;;
*) bound=-max_total_time=$limit ;;
esac
# Freed memory is kept apart for a while, and the way to each allocation noted: less of both is
# twice as fast.
export ASAN_OPTIONS=quarantine_size_mb=16:malloc_context_size=8${ASAN_OPTIONS:+:$ASAN_OPTIONS}

CC=clang cmake -S . -B "$build" -G Ninja -DNOSA_FUZZ=ON -DNOSA_SANITIZE=address > /dev/null
cmake --build "$build" --target $(printf 'fuzz_%s ' $targets)
mkdir -p "$build/failures" "$build/logs"

# Ends the processes of a target with the script.
pids=()
trap '[ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2> /dev/null || true' EXIT

# Starts the processes of a target and waits for them; prints how many failed.
run_target() {
    local target=$1 job pid failed=0
    local found=$build/corpus/$target
    mkdir -p "$found"
    pids=()
    for job in $(seq "$jobs"); do
        # Inputs that run long are chosen less often.
        "$build/tests/fuzz_$target" "$bound" ${options[$target]} -print_final_stats=1 \
            -entropic_scale_per_exec_time=1 -rss_limit_mb=4096 -timeout=60 \
            -artifact_prefix="$build/failures/$target-" "$found" "tests/fuzz/corpus/$target" \
            > "$build/logs/$target-$job.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || failed=$((failed + 1))
    done
    pids=()
    return "$failed"
}

# Executions (all processes together) and edges (the most of any) from the logs.
summarise() {
    awk '/^stat::number_of_executed_units:/ { runs += $2 }
         match($0, / cov: [0-9]+/) { n = substr($0, RSTART + 6, RLENGTH - 6) + 0
                                     if (n > edges) edges = n }
         END { printf "%d executions, %d edges covered", runs, edges }' "$@"
}

failures=0
for target in $targets; do
    rm -f "$build/logs/$target"-*.log
    failed=0
    started=$SECONDS
    run_target "$target" || failed=$?
    failures=$((failures + failed))
    echo "fuzz: $target: $(summarise "$build/logs/$target"-*.log), $failed failures," \
        "$((SECONDS - started)) s"
    if [ "$failed" -gt 0 ]; then
        tail -n 40 "$build/logs/$target"-*.log >&2
        ls "$build/failures" >&2
    fi
done
echo "fuzz: $(wc -w <<< "$targets") targets, $failures failures"
[ "$failures" -eq 0 ]
