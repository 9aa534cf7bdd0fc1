#!/bin/bash
# Formats the C sources in place, or with --check names those that are not formatted and fails.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t files < <(find common kernels kvstore worker coordinator cli tests bench -type f \
    \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) 2> /dev/null | sort)
if [ "${1:-}" != --check ]; then
    clang-format -i "${files[@]}"
    exit 0
fi
unformatted=0
for file in "${files[@]}"; do
    if ! clang-format "$file" | cmp -s - "$file"; then
        echo "format: $file is not formatted (make format)"
        unformatted=$((unformatted + 1))
    fi
done
echo "format: ${#files[@]} files, $unformatted not formatted"
[ "$unformatted" -eq 0 ]
