#!/bin/bash
# Builds llama.cpp, the benchmark's peer, once: from the pinned source distribution of PyPI's
# llama-cpp-python, whose SHA-256 is checked, into the cache folder. Prints the folder that holds
# llama-bench, llama-batched-bench and llama-simple; what it does goes to stderr.
#
#     scripts/peer_llama.sh
#
# The cache is $XDG_CACHE_HOME/nosa/peers, or ~/.cache/nosa/peers. Needs cmake, ninja and a C++
# compiler, and several minutes the first time.
set -euo pipefail

name=llama_cpp_python
version=0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
programs=(llama-bench llama-batched-bench llama-simple)

peers=${XDG_CACHE_HOME:-$HOME/.cache}/nosa/peers
peer=$peers/$name-$version
if [ -e "$peer/complete" ]; then
    echo "$peer/build/bin"
    exit 0
fi

say() {
    echo "peer_llama: $*" >&2
}

mkdir -p "$peer"
exec 9> "$peer/lock"
flock 9
log=$peer/log
: > "$log"
finish() {
    [ "$1" -eq 0 ] || { tail -5 "$log" >&2; say "failed; see $log"; }
}
trap 'finish $?' EXIT

archive=$peer/$name-$version.tar.gz
if ! sha256sum --check --status <<< "$sha256  $archive" 2> /dev/null; then
    say "downloading $name $version (77 MB)"
    # pip prepares the metadata of what it downloads, with the package's own build backend.
    python3 -m venv "$peer/venv" >> "$log" 2>&1
    pip=("$peer/venv/bin/python" -m pip --disable-pip-version-check --quiet)
    "${pip[@]}" install scikit-build-core >> "$log" 2>&1
    "${pip[@]}" download --no-deps --no-build-isolation --no-binary :all: --dest "$peer" \
        "llama-cpp-python==$version" >> "$log" 2>&1
    rm -rf "$peer/venv"
fi
if ! sha256sum --check --status <<< "$sha256  $archive"; then
    say "$archive: SHA-256 is not $sha256"
    exit 1
fi

rm -rf "$peer/source" "$peer/build"
mkdir "$peer/source"
tar -xzf "$archive" -C "$peer/source" --strip-components 1
say "building llama.cpp (several minutes)"
cmake -S "$peer/source/vendor/llama.cpp" -B "$peer/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_MTMD=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_EXAMPLES=ON >> "$log" 2>&1
cmake --build "$peer/build" --target "${programs[@]}" >> "$log" 2>&1
for program in "${programs[@]}"; do
    [ -x "$peer/build/bin/$program" ]
done
touch "$peer/complete"
say "built in $peer/build/bin"
echo "$peer/build/bin"
