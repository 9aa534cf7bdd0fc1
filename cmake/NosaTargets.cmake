# Targets of the rooms. Headers are included as "<folder below the room's root>/file.h": a room sees
# only the include roots of the rooms it names after USES, so crossing the dependency line of
# DESIGN.md fails to compile.

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_C_FLAGS_RELEASE "-O2 -g")

set(NOSA_SANITIZE "" CACHE STRING "address (with undefined) or thread")

add_compile_definitions(_GNU_SOURCE)
# Contraction is off: the order of every floating-point operation is part of the numerics contract.
add_compile_options(-Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes
                    -Wpointer-arith -Wvla -fno-math-errno -ffp-contract=off
                    -fno-omit-frame-pointer)
if(NOSA_SANITIZE STREQUAL "address")
    add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined)
    add_link_options(-fsanitize=address,undefined)
elseif(NOSA_SANITIZE STREQUAL "thread")
    add_compile_options(-fsanitize=thread)
    add_link_options(-fsanitize=thread)
elseif(NOSA_SANITIZE)
    message(FATAL_ERROR "NOSA_SANITIZE is address or thread, not \"${NOSA_SANITIZE}\"")
endif()

# Installed programs find the libraries of a portable archive beside them.
set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib")

# nosa_room(NAME ROOT <include root> SOURCES ... [USES rooms ...] [LINK libraries ...])
function(nosa_room name)
    cmake_parse_arguments(ROOM "" "ROOT" "SOURCES;USES;LINK" ${ARGN})
    add_library(${name} STATIC ${ROOM_SOURCES})
    target_include_directories(${name} PUBLIC ${ROOM_ROOT})
    target_link_libraries(${name} PUBLIC ${ROOM_USES} PRIVATE ${ROOM_LINK})
endfunction()

# nosa_program(NAME SOURCES ... USES ...)
function(nosa_program name)
    cmake_parse_arguments(PROGRAM "" "" "SOURCES;USES;LINK" ${ARGN})
    add_executable(${name} ${PROGRAM_SOURCES})
    target_link_libraries(${name} PRIVATE ${PROGRAM_USES} ${PROGRAM_LINK})
    install(TARGETS ${name} RUNTIME DESTINATION bin)
endfunction()

# A limit in seconds as the build needs it: instrumented code is several times slower.
function(nosa_time_limit limit)
    if(NOSA_SANITIZE)
        math(EXPR longer "4 * ${${limit}}")
        set(${limit} ${longer} PARENT_SCOPE)
    endif()
endfunction()

# nosa_test(NAME SOURCES ... USES ... [LABELS ...] [ARGS ...]): a cmocka program run by ctest;
# exit code 77 means skipped.
function(nosa_test name)
    cmake_parse_arguments(TEST "" "TIMEOUT" "SOURCES;USES;LINK;LABELS;ARGS" ${ARGN})
    add_executable(${name} ${TEST_SOURCES})
    target_link_libraries(${name} PRIVATE ${TEST_USES} ${TEST_LINK} cmocka)
    target_compile_definitions(${name} PRIVATE
        NOSA_TEST_VECTORS="${PROJECT_SOURCE_DIR}/tests/vectors")
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
    add_test(NAME ${name} COMMAND ${name} ${TEST_ARGS})
    if(NOT TEST_TIMEOUT)
        set(TEST_TIMEOUT 300)
    endif()
    nosa_time_limit(TEST_TIMEOUT)
    set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT ${TEST_TIMEOUT}
                         LABELS "${TEST_LABELS}")
endfunction()
