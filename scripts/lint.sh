#!/bin/bash
# Runs clang-tidy over the product's sources with the flags they were compiled with (one set for a
# file that is compiled for several instruction sets). Prints the findings and fails when there are
# any.
#
#     scripts/lint.sh [build folder] [path prefix]
set -euo pipefail
cd "$(dirname "$0")/.."

build=${1:-build}
prefix=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 - "$build/compile_commands.json" "$work/compile_commands.json" "$PWD/" "$prefix" \
    > "$work/files" << 'END'
import json
import sys

source, target, root, prefix = sys.argv[1:]
chosen = {}
for entry in json.load(open(source, encoding="utf-8")):
    path = entry["file"].removeprefix(root)
    if path.startswith(prefix) and not path.startswith(("/", "tests/", "bench/")):
        chosen[path] = entry
json.dump(list(chosen.values()), open(target, "w", encoding="utf-8"))
print("\n".join(sorted(chosen)))
END
mapfile -t files < <(sed '/^$/d' "$work/files")
[ ${#files[@]} -gt 0 ] || { echo "lint: no sources below \"$prefix\" in $build" >&2; exit 1; }
if ! printf '%s\n' "${files[@]}" |
    xargs -P "$(nproc)" -n 2 clang-tidy -p "$work" --quiet 2> /dev/null; then
    echo "lint: findings above"
    exit 1
fi
echo "lint: ${#files[@]} files, no findings"
