/*
 * Flags that say how to generate, the same in every program that takes a prompt.
 */
#ifndef NOSA_BASE_GENERATION_FLAGS_H
#define NOSA_BASE_GENERATION_FLAGS_H

#include <stdint.h>

#include "base/flags.h"

/* Entries of an array of struct nosa_flag. Only max-tokens has a default; where no sampling flag is
 * given, the model's generation_config decides. */
#define NOSA_GENERATION_FLAGS                                                                      \
    {.name = "max-tokens",                                                                         \
     .kind = NOSA_FLAG_INT32,                                                                      \
     .value_name = "N",                                                                            \
     .default_text = "128",                                                                        \
     .range.integer = {1, INT32_MAX},                                                              \
     .group = "Generation",                                                                        \
     .help = "tokens to generate at most"},                                                        \
        {.name = "temperature",                                                                    \
         .kind = NOSA_FLAG_DOUBLE,                                                                 \
         .value_name = "T",                                                                        \
         .range.number = {0, 100},                                                                 \
         .group = "Generation",                                                                    \
         .help = "0 is greedy; without any sampling flag the model's generation_config decides"},  \
        {.name = "top-p",                                                                          \
         .kind = NOSA_FLAG_DOUBLE,                                                                 \
         .value_name = "P",                                                                        \
         .range.number = {0, 1},                                                                   \
         .group = "Generation",                                                                    \
         .help = "keep the most likely tokens that reach probability P; 0 is off"},                \
        {.name = "top-k",                                                                          \
         .kind = NOSA_FLAG_INT32,                                                                  \
         .value_name = "K",                                                                        \
         .range.integer = {0, INT32_MAX},                                                          \
         .group = "Generation",                                                                    \
         .help = "keep the K most likely tokens; 0 is off"},                                       \
        {.name = "min-p",                                                                          \
         .kind = NOSA_FLAG_DOUBLE,                                                                 \
         .value_name = "P",                                                                        \
         .range.number = {0, 1},                                                                   \
         .group = "Generation",                                                                    \
         .help = "drop tokens less likely than P times the most likely one; 0 is off"},            \
        {.name = "repetition-penalty",                                                             \
         .kind = NOSA_FLAG_DOUBLE,                                                                 \
         .value_name = "P",                                                                        \
         .range.number = {0, 100},                                                                 \
         .group = "Generation",                                                                    \
         .help = "divide the logits of tokens seen before; 0 or 1 is off"},                        \
        {.name = "presence-penalty",                                                               \
         .kind = NOSA_FLAG_DOUBLE,                                                                 \
         .value_name = "P",                                                                        \
         .range.number = {-100, 100},                                                              \
         .group = "Generation",                                                                    \
         .help = "subtract from the logits of tokens generated before"},                           \
        {.name = "frequency-penalty",                                                              \
         .kind = NOSA_FLAG_DOUBLE,                                                                 \
         .value_name = "P",                                                                        \
         .range.number = {-100, 100},                                                              \
         .group = "Generation",                                                                    \
         .help = "the same, for each time that they were generated"},                              \
    {                                                                                              \
        .name = "seed", .kind = NOSA_FLAG_UINT64, .value_name = "S", .group = "Generation",        \
        .help = "seed of the draws; 0 or none: one is drawn"                                       \
    }

#endif
