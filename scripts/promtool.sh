#!/bin/bash
# Puts promtool into .venv/bin, out of Debian's package "prometheus", without installing that (it
# would start a server). Does nothing when it is there or in the PATH; says so when it cannot be had,
# which only the test that uses it minds.
set -euo pipefail
cd "$(dirname "$0")/.."

target=.venv/bin/promtool
[ ! -x "$target" ] || exit 0
if command -v promtool > /dev/null; then
    ln -sf "$(command -v promtool)" "$target"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fetch() {
    (cd "$folder" && apt-get download prometheus) > "$folder/log" 2>&1
}
if ! command -v apt-get > /dev/null ||
    ! { fetch || { apt-get update > /dev/null 2>&1 && fetch; }; }; then
    echo "promtool: cannot be had, so the metrics are not checked with it" >&2
    exit 0
fi
dpkg-deb --fsys-tarfile "$folder"/prometheus_*.deb | tar -x -C "$folder" ./usr/bin/promtool
install "$folder/usr/bin/promtool" "$target"
echo "promtool: taken from Debian's prometheus"
