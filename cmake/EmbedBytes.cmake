# Writes a file's bytes as a C array.
#
#     cmake -DINPUT=<file> -DNAME=<identifier> -DOUTPUT=<path without .c and .h> -P EmbedBytes.cmake
cmake_minimum_required(VERSION 3.22)
if(NOT INPUT OR NOT NAME OR NOT OUTPUT)
    message(FATAL_ERROR "usage: cmake -DINPUT=... -DNAME=... -DOUTPUT=... -P EmbedBytes.cmake")
endif()
get_filename_component(stem ${OUTPUT} NAME)
file(READ ${INPUT} hex HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
string(REPEAT "." 80 line) # 16 bytes
string(REGEX REPLACE "(${line})" "\\1\n" bytes "${bytes}")
file(WRITE ${OUTPUT}.h "/* Made from ${NAME} at build time. */
#ifndef ${NAME}_INCLUDED
#define ${NAME}_INCLUDED

#include <stddef.h>
#include <stdint.h>

extern const uint8_t ${NAME}[];
extern const size_t ${NAME}_size;

#endif
")
file(WRITE ${OUTPUT}.c "#include \"${stem}.h\"

const uint8_t ${NAME}[] = {
${bytes}
};
const size_t ${NAME}_size = sizeof(${NAME});
")
