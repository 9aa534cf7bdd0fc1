/* The part of config.json that describes rotary positions; called by config.c. */
#ifndef NOSA_MODEL_CONFIG_ROPE_INTERNAL_H
#define NOSA_MODEL_CONFIG_ROPE_INTERNAL_H

#include "model/config.h"

#include <jansson.h>

/* Fills config->rope from rope_theta and rope_scaling or rope_parameters; head_dim and
 * max_positions are set before. */
enum nosa_status nosa_rope_config_parse(const json_t *root, struct nosa_model_config *config,
                                        struct nosa_error *error);

#endif
