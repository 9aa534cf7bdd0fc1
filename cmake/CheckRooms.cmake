# Fails when a source file includes a header of a room that its own room may not use, an
# *_internal.h of another folder, or a vendor's header outside its one place. The include roots of
# nosa_room stop most of this at compile time; this also sees headers that happen to be reachable.
#
#     cmake -DROOT=<source tree> -P cmake/CheckRooms.cmake
#
# Tests and benchmarks look into every room and are not checked.
cmake_minimum_required(VERSION 3.22)
if(NOT ROOT)
    message(FATAL_ERROR "usage: cmake -DROOT=<source tree> -P CheckRooms.cmake")
endif()

# Rooms, and for each the path prefixes that its files may include from.
set(rooms common/base common/tokenizer common/rpc common/http kernels kvstore worker/model
    worker/comm worker/scheduler worker/engine worker/options worker/run worker/service worker
    coordinator cli)
set(uses_common/base common/base/)
set(uses_common/tokenizer common/base/ common/tokenizer/)
set(uses_common/rpc common/base/ common/rpc/ proto/)
set(uses_common/http common/base/ common/http/)
set(uses_kernels common/base/ kernels/)
set(uses_kvstore common/base/ kernels/ kvstore/)
set(uses_worker/model common/base/ worker/model/)
set(uses_worker/comm common/base/ kernels/ worker/comm)
set(uses_worker/scheduler common/base/ worker/scheduler/)
set(uses_worker/engine common/base/ kernels/ kvstore/ worker/model/ worker/comm worker/engine/)
set(uses_worker/options common/base/ kvstore/policy.h worker/engine/ worker/options/)
set(uses_worker/run common/base/ common/tokenizer/ worker/engine/ worker/options/ worker/run/)
set(uses_worker/service common/base/ common/rpc/ common/http/ proto/ worker/model/ worker/engine/
    worker/scheduler/ worker/options/ worker/service/)
set(uses_worker common/ proto/ kernels/ kvstore/ worker/)
set(uses_coordinator common/ proto/ coordinator/)
set(uses_cli common/ proto/ cli/)

# A pattern of vendor headers, "=", and the only path prefixes where they may be included.
set(vendors
    "^grpc=common/rpc/"
    "^liburing=kvstore/io_uring.c"
    "^nccl=worker/comm_nccl"
    "^cu(da|blas|file|solver|rand)=kernels/cuda/|worker/comm_nccl"
    "^openssl/=common/base/hash|common/rpc/tls"
    "^xxhash=common/base/hash"
    "^pcre2|^utf8proc=common/tokenizer/"
    "^microhttpd=common/http/"
    "dnnl=bench/")

set(include_roots common kernels kvstore worker coordinator cli)
set(violations 0)

function(report file text)
    message(NOTICE "${file}: ${text}")
    math(EXPR count "${violations} + 1")
    set(violations ${count} PARENT_SCOPE)
endfunction()

# The tree path of a quoted include, or "" when it is no file of the tree.
function(resolve file header result)
    get_filename_component(folder ${file} DIRECTORY)
    string(REGEX MATCH "^[^/]+" own_root ${file})
    foreach(base ${folder} ${own_root} ${include_roots})
        if(EXISTS ${ROOT}/${base}/${header})
            get_filename_component(path ${ROOT}/${base}/${header} ABSOLUTE)
            file(RELATIVE_PATH path ${ROOT} ${path})
            set(${result} ${path} PARENT_SCOPE)
            return()
        endif()
    endforeach()
    set(${result} "" PARENT_SCOPE)
endfunction()

function(starts_with_any path prefixes result)
    set(${result} FALSE PARENT_SCOPE)
    foreach(prefix ${prefixes})
        string(FIND ${path} ${prefix} position)
        if(position EQUAL 0)
            set(${result} TRUE PARENT_SCOPE)
        endif()
    endforeach()
endfunction()

macro(check_own_header room file header)
    resolve(${file} ${header} path)
    if(path)
        starts_with_any(${path} "${uses_${room}}" allowed)
        if(NOT allowed)
            report(${file} "room ${room} may not use ${path}")
        endif()
        if(path MATCHES "_internal\\.h$")
            get_filename_component(owner ${path} DIRECTORY)
            starts_with_any(${file} ${owner}/ allowed)
            if(NOT allowed)
                report(${file} "${path} is internal to ${owner}/")
            endif()
        endif()
    endif()
endmacro()

macro(check_vendor_header file header)
    foreach(vendor ${vendors})
        string(REGEX REPLACE "=[^=]*$" "" pattern "${vendor}")
        string(REGEX REPLACE "^.*=" "" places "${vendor}")
        string(REPLACE "|" ";" places "${places}")
        if("${header}" MATCHES "${pattern}")
            starts_with_any(${file} "${places}" allowed)
            if(NOT allowed)
                report(${file} "<${header}> is only for ${places}")
            endif()
        endif()
    endforeach()
endmacro()

get_filename_component(ROOT ${ROOT} REALPATH)
set(checked 0)
foreach(room ${rooms})
    file(GLOB_RECURSE files RELATIVE ${ROOT} ${ROOT}/${room}/*.c ${ROOT}/${room}/*.h
         ${ROOT}/${room}/*.cu ${ROOT}/${room}/*.cuh ${ROOT}/${room}/*.inc)
    foreach(file ${files})
        math(EXPR checked "${checked} + 1")
        file(STRINGS ${ROOT}/${file} lines REGEX "^[ \t]*#[ \t]*include[ \t]*[\"<]")
        foreach(line ${lines})
            string(REGEX REPLACE "^[ \t]*#[ \t]*include[ \t]*[\"<]([^\">]+).*" "\\1" header
                   "${line}")
            if(line MATCHES "include[ \t]*\"")
                check_own_header(${room} ${file} ${header})
            endif()
            check_vendor_header(${file} ${header})
        endforeach()
    endforeach()
endforeach()
if(violations GREATER 0)
    message(FATAL_ERROR "rooms: ${violations} includes cross the dependency line")
endif()
if(checked EQUAL 0)
    message(FATAL_ERROR "rooms: no sources below ${ROOT}")
endif()
