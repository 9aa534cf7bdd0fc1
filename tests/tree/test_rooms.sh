#!/bin/sh
# The dependency check passes on the tree, and fails on trees with one planted crossing each.
# Prints TAP. Usage: test_rooms.sh <source tree> <cmake>
set -u
tree=$1
cmake=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
number=0
failed=0

result() { # <ok?> <name>
    number=$((number + 1))
    if [ "$1" -eq 0 ]; then
        echo "ok $number - $2"
    else
        echo "not ok $number - $2"
        sed 's/^/# /' "$work/output"
        failed=1
    fi
}

check() {
    "$cmake" -DROOT="$1" -P "$tree/cmake/CheckRooms.cmake" > "$work/output" 2>&1
}

plant() { # <file> <include line> <expected text; empty: allowed> <name>
    rm -rf "$work/planted"
    mkdir -p "$work/planted/common/base" "$work/planted/kernels/cpu" "$work/planted/worker/engine" \
        "$work/planted/worker/service" "$work/planted/kvstore" "$work/planted/$(dirname "$1")"
    for header in common/base/status.h kernels/device.h kernels/cpu/cpu_internal.h \
        kvstore/kv_store.h worker/engine/engine.h worker/service/loop.h; do
        : > "$work/planted/$header"
    done
    echo "$2" > "$work/planted/$1"
    if check "$work/planted"; then code=0; else code=1; fi
    if [ -z "$3" ]; then
        result $code "$4"
    elif [ $code -ne 0 ] && tr -s ' \n' ' ' < "$work/output" | grep -qF "$3"; then
        result 0 "$4"
    else
        result 1 "$4"
    fi
}

check "$tree"
result $? test_rooms_of_the_tree
plant worker/a.c '#include "device.h"' '' test_rooms_worker_uses_kernels
plant kernels/cpu/a.c '#include "cpu/cpu_internal.h"' '' test_rooms_internal_in_its_folder
plant kernels/a.c '#include "engine/engine.h"' 'room kernels may not use worker/engine/engine.h' \
    test_rooms_kernels_may_not_use_worker
plant worker/model/a.c '#include "engine/engine.h"' \
    'room worker/model may not use worker/engine/engine.h' test_rooms_model_may_not_use_engine
plant worker/run/a.c '#include "engine/engine.h"' '' test_rooms_run_uses_engine
plant worker/run/a.c '#include "service/loop.h"' \
    'room worker/run may not use worker/service/loop.h' test_rooms_run_may_not_use_service
plant worker/options/a.c '#include "service/loop.h"' \
    'room worker/options may not use worker/service/loop.h' test_rooms_options_may_not_use_service
plant worker/service/a.c '#include "kv_store.h"' \
    'room worker/service may not use kvstore/kv_store.h' test_rooms_service_may_not_use_kvstore
plant kernels/cpu/a.c '  #  include "../../kvstore/kv_store.h"' \
    'room kernels may not use kvstore/kv_store.h' test_rooms_relative_path
plant common/base/a.h '#include "device.h"' 'room common/base may not use kernels/device.h' \
    test_rooms_common_may_not_use_kernels
plant coordinator/a.c '#include "kv_store.h"' 'room coordinator may not use kvstore/kv_store.h' \
    test_rooms_coordinator_may_not_use_kvstore
plant worker/engine/a.c '#include "cpu/cpu_internal.h"' 'is internal to kernels/cpu/' \
    test_rooms_internal_stays
plant worker/a.c '#include <grpc/grpc.h>' 'is only for common/rpc/' test_rooms_grpc
plant kvstore/a.c '#include <liburing.h>' 'is only for kvstore/io_uring.c' test_rooms_liburing
plant kvstore/io_uring.c '#include <liburing.h>' '' test_rooms_liburing_in_its_place
plant worker/engine/a.c '#include <nccl.h>' 'is only for worker/comm_nccl' test_rooms_nccl
plant worker/comm_nccl.c '#include <nccl.h>' '' test_rooms_nccl_in_its_place
plant worker/a.c '#include <cuda_runtime.h>' 'is only for kernels/cuda/' test_rooms_cuda
echo "1..$number"
exit $failed
