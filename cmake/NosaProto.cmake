# Code from .proto files, made in the build folder: protobuf-c sources, included as
# "<path of the .proto>.pb-c.h", and one descriptor set of all of them for reflection.

find_program(NOSA_PROTOC protoc REQUIRED)
find_program(NOSA_PROTOC_C protoc-c REQUIRED)
set(NOSA_EMBED ${CMAKE_CURRENT_LIST_DIR}/EmbedBytes.cmake)

# nosa_proto(NAME ROOT <import root> PROTOS <paths below ROOT> [IMPORTS <other import roots>]
#            [USES targets]): a static library. The set is <NAME>_descriptor_set in
# "<NAME>_descriptor_set.h", and the file ${CMAKE_CURRENT_BINARY_DIR}/<NAME>.descriptor_set.
function(nosa_proto name)
    cmake_parse_arguments(PROTO "" "ROOT" "PROTOS;IMPORTS;USES" ${ARGN})
    set(out ${CMAKE_CURRENT_BINARY_DIR}/generated)
    set(set_file ${CMAKE_CURRENT_BINARY_DIR}/${name}.descriptor_set)
    file(MAKE_DIRECTORY ${out})
    set(import_flags -I${PROTO_ROOT})
    foreach(root ${PROTO_IMPORTS})
        list(APPEND import_flags -I${root})
    endforeach()
    set(sources "")
    set(files "")
    foreach(proto ${PROTO_PROTOS})
        list(APPEND files ${PROTO_ROOT}/${proto})
    endforeach()
    foreach(proto ${PROTO_PROTOS})
        string(REGEX REPLACE "\\.proto$" ".pb-c" stem ${proto})
        add_custom_command(OUTPUT ${out}/${stem}.c ${out}/${stem}.h
            COMMAND ${NOSA_PROTOC_C} ${import_flags} --c_out=${out} ${PROTO_ROOT}/${proto}
            DEPENDS ${files} COMMENT "protoc-c ${proto}" VERBATIM)
        list(APPEND sources ${out}/${stem}.c ${out}/${stem}.h)
    endforeach()
    add_custom_command(OUTPUT ${set_file}
        COMMAND ${NOSA_PROTOC} ${import_flags} --include_imports --descriptor_set_out=${set_file}
                ${files}
        DEPENDS ${files} COMMENT "protoc descriptor set of ${name}" VERBATIM)
    set(embedded ${out}/${name}_descriptor_set)
    add_custom_command(OUTPUT ${embedded}.c ${embedded}.h
        COMMAND ${CMAKE_COMMAND} -DINPUT=${set_file} -DNAME=${name}_descriptor_set
                -DOUTPUT=${embedded} -P ${NOSA_EMBED}
        DEPENDS ${set_file} ${NOSA_EMBED} VERBATIM)
    add_library(${name} STATIC ${sources} ${embedded}.c ${embedded}.h)
    target_include_directories(${name} SYSTEM PUBLIC ${out})
    target_link_libraries(${name} PUBLIC ${PROTO_USES} protobuf-c)
endfunction()
