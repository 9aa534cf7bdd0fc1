#!/bin/bash
# Sees to the Debian packages that the build needs. Installs what is missing when run by root, else
# names it. Says what it did; says nothing when all is there.
#
#     scripts/deps.sh [build] [test] [dist] [dev]     (no argument: all of them)
set -euo pipefail

declare -A groups=(
    [build]="build-essential cmake ninja-build pkg-config libjansson-dev libpcre2-dev
             libutf8proc-dev libxxhash-dev libssl-dev libgrpc-dev libprotobuf-c-dev
             protobuf-c-compiler protobuf-compiler libmicrohttpd-dev liburing-dev"
    [test]="libcmocka-dev libdnnl-dev openssl python3 python3-venv etcd-server etcd-client"
    [dist]="patchelf xz-utils binutils"
    [dev]="clang clang-format clang-tidy fio"
)

[ $# -gt 0 ] || set -- build test dist dev
packages=()
for group in "$@"; do
    if [ -z "${groups[$group]:-}" ]; then
        echo "deps: no group \"$group\" (build, test, dist, dev)" >&2
        exit 2
    fi
    read -r -d '' -a names <<< "${groups[$group]}" || true
    packages+=("${names[@]}")
done

if ! command -v dpkg-query > /dev/null; then
    echo "deps: this is not Debian, nothing was installed; the build needs what these packages" \
        "hold: ${packages[*]}" >&2
    exit 0
fi

installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' "${packages[@]}" 2> /dev/null |
    awk '$1 == "ii" { print $2 }' || true)
missing=()
for package in "${packages[@]}"; do
    grep -qxF "$package" <<< "$installed" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "deps: missing packages; install them with:" >&2
    echo "    sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi
echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# Services that packages bring are neither started nor enabled: the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ] || [ ! -w "${policy%/*}" ]; then
    policy=
else
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
trap 'rm -f "$log" $policy' EXIT
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } \
    > "$log" 2>&1; then
    tail -20 "$log" >&2
    echo "deps: could not install ${missing[*]}" >&2
    exit 1
fi
if [[ " ${missing[*]} " == *" etcd-server "* ]]; then
    update-rc.d etcd disable > "$log" 2>&1 || tail -1 "$log" >&2
fi
echo "deps: installed ${#missing[@]} packages"
