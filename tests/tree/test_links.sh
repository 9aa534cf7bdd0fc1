#!/bin/sh
# The offline program must start on any machine: no gRPC, no CUDA, no NCCL, no liburing by linking.
# Prints TAP. Usage: test_links.sh <nosa-run>
set -u
libraries=$(ldd "$1") || exit 1
number=0
failed=0
for library in libgrpc libprotobuf libcuda libcublas libnccl liburing libmicrohttpd; do
    number=$((number + 1))
    if echo "$libraries" | grep -q "$library"; then
        echo "not ok $number - $(basename "$1") links $library"
        failed=1
    else
        echo "ok $number - $(basename "$1") does not link $library"
    fi
done
number=$((number + 1))
if echo "$libraries" | grep -q "not found"; then
    echo "not ok $number - $(basename "$1") lacks a library"
    echo "$libraries" | sed 's/^/# /'
    failed=1
else
    echo "ok $number - $(basename "$1") finds its libraries"
fi
echo "1..$number"
exit $failed
