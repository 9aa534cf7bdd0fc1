#!/bin/bash
# Builds the fuzz targets with clang's libFuzzer and the sanitizers and runs each on its corpus.
#
#     scripts/fuzz.sh [seconds per target, or RUNSx, e.g. 10000000x]      (default: 60 seconds)
#
# Inputs that reach new code go to build-fuzz/corpus/<target>; an input that fails is kept in
# build-fuzz/failures, and the script then exits with 1.
set -euo pipefail
cd "$(dirname "$0")/.."

limit=${1:-60}
case $limit in
*x) bound=-runs=${limit%x} ;;
*) bound=-max_total_time=$limit ;;
esac
CC=clang cmake -S . -B build-fuzz -G Ninja -DNOSA_FUZZ=ON -DNOSA_SANITIZE=address > /dev/null
targets=$(ninja -C build-fuzz -t targets all | sed -n 's|^tests/\(fuzz_[a-z0-9_]*\): .*|\1|p' |
    sort -u)
if [ -z "$targets" ]; then
    echo "fuzz: no targets" >&2
    exit 1
fi
cmake --build build-fuzz --target $targets
failed=0
mkdir -p build-fuzz/failures
for target in $targets; do
    corpus=(build-fuzz/corpus/"$target")
    mkdir -p "${corpus[0]}"
    committed=tests/fuzz/corpus/${target#fuzz_}
    [ ! -d "$committed" ] || corpus+=("$committed")
    echo "fuzz: $target"
    if ! "build-fuzz/tests/$target" "$bound" -print_final_stats=1 -verbosity=0 \
        -rss_limit_mb=4096 -artifact_prefix="build-fuzz/failures/$target-" "${corpus[@]}"; then
        failed=$((failed + 1))
    fi
done
echo "fuzz: $(wc -w <<< "$targets") targets, $failed failed"
[ "$failed" -eq 0 ]
