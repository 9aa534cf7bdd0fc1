#!/bin/bash
# Makes dist/nosa-<version>-linux-<machine>.tar.xz: stripped programs in bin/, the CUDA library (when
# built) and every shared library they need in lib/, found by RPATH. What each Linux has stays out:
# the C and C++ runtimes and the loader. The result is unpacked and tried before it is kept.
#
#     scripts/dist.sh [build folder]
set -euo pipefail
cd "$(dirname "$0")/.."

build=${1:-build}
version=$(sed -n 's/^CMAKE_PROJECT_VERSION:STATIC=//p' "$build/CMakeCache.txt")
name=nosa-$version-linux-$(uname -m)
system='^(ld-linux.*|libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|libcuda)\.so'
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
tree=$stage/$name
mkdir -p "$tree/bin" "$tree/lib" dist

fail() {
    echo "dist: $*" >&2
    exit 1
}

# "name path" of every shared library that a file needs, directly or not.
closure() {
    local listing
    listing=$(ldd "$@")
    if grep -q 'not found' <<< "$listing"; then
        fail "a library is missing: $(grep -m1 'not found' <<< "$listing")"
    fi
    awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' <<< "$listing" | sort -u
}

copy_programs() {
    local program
    for program in "$build"/bin/nosa*; do
        [ -x "$program" ] || fail "$build/bin holds no programs"
        install -m 755 "$program" "$tree/bin/"
        strip "$tree/bin/$(basename "$program")"
        patchelf --set-rpath '$ORIGIN/../lib' "$tree/bin/$(basename "$program")"
        objects+=("$program")
    done
    if [ -e "$build/lib/libnosa_cuda.so" ]; then
        install -m 644 "$build/lib/libnosa_cuda.so" "$tree/lib/"
        objects+=("$build/lib/libnosa_cuda.so")
    fi
}

copy_libraries() {
    local library path
    while read -r library path; do
        [[ $library =~ $system ]] && continue
        install -m 644 "$path" "$tree/lib/$library"
        sources+=("$(readlink -f "$path")")
    done < <(closure "${objects[@]}")
    for path in "$tree"/lib/*.so*; do
        [ -e "$path" ] || continue
        strip --strip-unneeded "$path"
        patchelf --set-rpath '$ORIGIN' "$path"
    done
}

# Which package a library is from, and under which terms it comes.
write_notices() {
    local path package packages=()
    for path in "${sources[@]}"; do
        # A library in /lib is listed by its package under /lib or /usr/lib.
        package=$(dpkg-query -S "$path" "${path#/usr}" 2> /dev/null | head -1 | cut -d: -f1) || true
        packages+=("${package:-unpackaged:$path}")
    done
    echo "nosa $version is licensed under the Apache License 2.0, see LICENSE."
    echo "The folder lib/ holds libraries of others, unchanged but for stripped symbols and RPATH:"
    echo
    mapfile -t packages < <(printf '%s\n' ${packages[@]+"${packages[@]}"} | sort -u | sed '/^$/d')
    for package in ${packages[@]+"${packages[@]}"}; do
        case $package in
        unpackaged:*) echo "  ${package#unpackaged:} (not from a Debian package)" ;;
        *) dpkg-query -W -f '  ${Package} ${Version}: ${Homepage}\n' "$package" | sort -u ;;
        esac
    done
    for package in ${packages[@]+"${packages[@]}"}; do
        [ -r "/usr/share/doc/$package/copyright" ] || continue
        printf '\n%s\n%s\n\n' "======== $package" "$(cat "/usr/share/doc/$package/copyright")"
    done
}

# The unpacked programs start with an empty environment and load nothing but their own libraries
# and the system's.
try_archive() {
    local unpacked program library path
    unpacked=$(mktemp -d -p "$stage")
    tar -C "$unpacked" -xf "$1"
    for program in "$unpacked/$name"/bin/*; do
        while read -r library path; do
            [[ $library =~ $system ]] && continue
            case $(readlink -f "$path") in
            "$(readlink -f "$unpacked")"/*) ;;
            *) fail "$(basename "$program") takes $library from $path" ;;
            esac
        done < <(env -i PATH="$PATH" bash -c 'ldd "$1"' _ "$program" |
            awk '$2 == "=>" { print $1, $3 }')
        env -i "$program" --version > "$stage/version" || fail "$(basename "$program") does not run"
        echo "dist: $(cat "$stage/version") runs unpacked"
    done
}

objects=()
sources=()
copy_programs
copy_libraries
install -m 644 LICENSE "$tree/"
install -m 644 README.md DESIGN.md "$tree/"
install -D -m 644 -t "$tree/docs" docs/*.md
install -D -m 644 -t "$tree/proto/nosa/v1" proto/nosa/v1/*.proto
install -D -m 644 -t "$tree/examples" examples/*.py examples/*.md examples/*.txt
write_notices > "$tree/NOTICES"
archive=$stage/$name.tar.xz
tar -C "$stage" --sort=name --owner=0 --group=0 --numeric-owner -cJf "$archive" "$name"
try_archive "$archive"
mv "$archive" "dist/$name.tar.xz"
echo "dist: dist/$name.tar.xz, $(du -h "dist/$name.tar.xz" | cut -f1)," \
    "$(ls "$tree/bin" | wc -l) programs, $(ls "$tree/lib" | wc -l) libraries"
