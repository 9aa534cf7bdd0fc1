#!/bin/bash
# Makes the Python environment of tests and tools in .venv from tools/requirements.txt, and promtool;
# does nothing when it is there and the requirements have not changed. More requirement files may be
# named.
#
#     scripts/venv.sh [requirements.txt ...]
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || set -- tools/requirements.txt
mkdir -p .venv
for file in "$@"; do
    stamp=.venv/installed-$(basename "$file")
    if [ -x .venv/bin/python ] && cmp -s "$file" "$stamp"; then
        continue
    fi
    if [ ! -x .venv/bin/pip ]; then
        echo "venv: making .venv"
        python3 -m venv .venv
    fi
    echo "venv: installing $file"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file"
    cp "$file" "$stamp"
done
scripts/promtool.sh
