#include "model/config_rope_internal.h"
#include "model/json_internal.h"

#include <string.h>

#define THETA_MIN  2.0
#define THETA_MAX  1e15
#define FACTOR_MAX 1e6

/* The type is written as "rope_type" or, before, as "type"; "default" means no scaling. */
static enum nosa_status parse_type(const json_t *object, bool may_lack, enum nosa_rope_type *type,
                                   struct nosa_error *error)
{
    static const char *const names[] = {"default", "linear", "llama3", "yarn", "longrope"};
    static const enum nosa_rope_type types[] = {NOSA_ROPE_NONE, NOSA_ROPE_LINEAR, NOSA_ROPE_LLAMA3,
                                                NOSA_ROPE_YARN, NOSA_ROPE_LONGROPE};
    const json_t *new_name = nosa_json_get(object, "rope_type");
    const json_t *old_name = nosa_json_get(object, "type");
    if (new_name && old_name && !json_equal(new_name, old_name))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "type and rope_type differ");
    const json_t *name = new_name ? new_name : old_name;
    if (!name && may_lack) {
        *type = NOSA_ROPE_NONE;
        return NOSA_OK;
    }
    if (!json_is_string(name))
        return nosa_json_refuse("rope_type", "a string", name, error);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(json_string_value(name), names[i]) == 0) {
            *type = types[i];
            return NOSA_OK;
        }
    }
    return nosa_error_set(error, NOSA_UNSUPPORTED,
                          "rope type %.80s is not supported; default, linear, llama3, yarn and "
                          "longrope are",
                          json_string_value(name));
}

/* Context before the extension: in the object, or at the top of the config; 0 when in neither. */
static enum nosa_status parse_original(const json_t *root, const json_t *object, uint32_t *original,
                                       struct nosa_error *error)
{
    const char *key = "original_max_position_embeddings";
    uint32_t inner = 0;
    uint32_t outer = 0;
    NOSA_TRY(nosa_json_u32(object, key, 2, NOSA_MODEL_POSITIONS_MAX, false, &inner, error));
    NOSA_TRY(nosa_json_u32(root, key, 2, NOSA_MODEL_POSITIONS_MAX, false, &outer, error));
    if (inner && outer && inner != outer)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s is %u here and %u at the top of the config", key, inner, outer);
    *original = inner ? inner : outer;
    return NOSA_OK;
}

static enum nosa_status parse_llama3(const json_t *object, struct nosa_rope_config *rope,
                                     struct nosa_error *error)
{
    NOSA_TRY(nosa_json_double(object, "factor", 1, FACTOR_MAX, true, &rope->factor, error));
    NOSA_TRY(nosa_json_double(object, "low_freq_factor", 1e-3, FACTOR_MAX, true,
                              &rope->low_freq_factor, error));
    NOSA_TRY(nosa_json_double(object, "high_freq_factor", 1e-3, FACTOR_MAX, true,
                              &rope->high_freq_factor, error));
    if (rope->high_freq_factor <= rope->low_freq_factor)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "high_freq_factor %g is not above low_freq_factor %g",
                              rope->high_freq_factor, rope->low_freq_factor);
    if (!rope->original_max_positions)
        return nosa_json_refuse("original_max_position_embeddings", "an integer", NULL, error);
    return NOSA_OK;
}

static enum nosa_status parse_yarn(const json_t *object, struct nosa_model_config *config,
                                   struct nosa_error *error)
{
    struct nosa_rope_config *rope = &config->rope;
    bool has_original = rope->original_max_positions != 0;
    if (!has_original)
        rope->original_max_positions = config->max_positions;
    if (nosa_json_get(object, "factor") || !has_original) {
        NOSA_TRY(nosa_json_double(object, "factor", 1, FACTOR_MAX, true, &rope->factor, error));
    } else {
        rope->factor = (double)config->max_positions / rope->original_max_positions;
        if (rope->factor < 1)
            return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                  "original_max_position_embeddings %u is above "
                                  "max_position_embeddings %u",
                                  rope->original_max_positions, config->max_positions);
    }
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    rope->truncate = true;
    NOSA_TRY(
        nosa_json_double(object, "beta_fast", 1e-3, FACTOR_MAX, false, &rope->beta_fast, error));
    NOSA_TRY(
        nosa_json_double(object, "beta_slow", 1e-3, FACTOR_MAX, false, &rope->beta_slow, error));
    if (rope->beta_fast <= rope->beta_slow)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "beta_fast %g is not above beta_slow %g", rope->beta_fast,
                              rope->beta_slow);
    NOSA_TRY(nosa_json_double(object, "mscale", 0, 1e3, false, &rope->mscale, error));
    NOSA_TRY(
        nosa_json_double(object, "mscale_all_dim", 0, 1e3, false, &rope->mscale_all_dim, error));
    return nosa_json_bool(object, "truncate", &rope->truncate, error);
}

static enum nosa_status parse_factor_list(const json_t *object, const char *key, uint32_t count,
                                          double *factors, struct nosa_error *error)
{
    const json_t *list = nosa_json_get(object, key);
    if (!json_is_array(list))
        return nosa_json_refuse(key, "a list of numbers", list, error);
    if (json_array_size(list) != count)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "%s has %zu numbers, head_dim / 2 is %u", key, json_array_size(list),
                              count);
    for (uint32_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(list, i);
        factors[i] = json_is_number(item) ? json_number_value(item) : 0;
        if (!(factors[i] >= 1e-6 && factors[i] <= FACTOR_MAX))
            return nosa_json_refuse(key, "a list of positive numbers", item, error);
    }
    return NOSA_OK;
}

static enum nosa_status parse_longrope(const json_t *object, struct nosa_model_config *config,
                                       struct nosa_error *error)
{
    struct nosa_rope_config *rope = &config->rope;
    uint32_t count = config->head_dim / 2;
    NOSA_TRY(parse_factor_list(object, "short_factor", count, rope->short_factor, error));
    if (nosa_json_get(object, "long_factor")) {
        double long_factor[NOSA_MODEL_HEAD_DIM_MAX / 2] = {0};
        NOSA_TRY(parse_factor_list(object, "long_factor", count, long_factor, error));
        for (uint32_t i = 0; i < count; i++)
            if (long_factor[i] != rope->short_factor[i])
                return nosa_error_set(error, NOSA_UNSUPPORTED,
                                      "a long_factor that differs from short_factor is not "
                                      "supported (number %u: %g and %g)",
                                      i, long_factor[i], rope->short_factor[i]);
    }
    rope->factor = 1;
    NOSA_TRY(nosa_json_double(object, "factor", 1, FACTOR_MAX, false, &rope->factor, error));
    if (rope->original_max_positions)
        rope->factor = (double)config->max_positions / rope->original_max_positions;
    else
        rope->original_max_positions = config->max_positions;
    if (rope->original_max_positions < 2)
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "max_position_embeddings 1 leaves longrope without a scale");
    return NOSA_OK;
}

static enum nosa_status parse_scaling(const json_t *root, const json_t *object, bool may_lack_type,
                                      struct nosa_model_config *config, struct nosa_error *error)
{
    struct nosa_rope_config *rope = &config->rope;
    double partial = 1;
    NOSA_TRY(parse_type(object, may_lack_type, &rope->type, error));
    NOSA_TRY(nosa_json_double(object, "partial_rotary_factor", 0, 1, false, &partial, error));
    if (partial != 1)
        return nosa_error_set(error, NOSA_UNSUPPORTED,
                              "partial_rotary_factor %g is not supported; 1 is", partial);
    if (rope->type == NOSA_ROPE_NONE)
        return NOSA_OK;
    if (rope->type == NOSA_ROPE_LINEAR)
        return nosa_json_double(object, "factor", 1, FACTOR_MAX, true, &rope->factor, error);
    NOSA_TRY(parse_original(root, object, &rope->original_max_positions, error));
    if (rope->type == NOSA_ROPE_LLAMA3)
        return parse_llama3(object, rope, error);
    NOSA_TRY(nosa_json_double(object, "attention_factor", 1e-3, 1e3, false, &rope->attention_factor,
                              error));
    return rope->type == NOSA_ROPE_YARN ? parse_yarn(object, config, error)
                                        : parse_longrope(object, config, error);
}

enum nosa_status nosa_rope_config_parse(const json_t *root, struct nosa_model_config *config,
                                        struct nosa_error *error)
{
    const char *name = "rope_scaling";
    const json_t *object = nosa_json_get(root, name);
    const json_t *parameters = nosa_json_get(root, "rope_parameters");
    config->rope.theta = 10000;
    NOSA_TRY(nosa_json_double(root, "rope_theta", THETA_MIN, THETA_MAX, false, &config->rope.theta,
                              error));
    if (object && parameters && !json_equal(object, parameters))
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "rope_scaling and rope_parameters differ");
    if (parameters) {
        name = "rope_parameters";
        object = parameters;
    }
    if (!object)
        return NOSA_OK;
    if (!json_is_object(object))
        return nosa_json_refuse(name, "an object", object, error);
    double theta = config->rope.theta;
    enum nosa_status status =
        nosa_json_double(object, "rope_theta", THETA_MIN, THETA_MAX, false, &theta, error);
    if (status == NOSA_OK && nosa_json_get(root, "rope_theta") && theta != config->rope.theta)
        status = nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                                "rope_theta is %g here and %g at the top of the config", theta,
                                config->rope.theta);
    config->rope.theta = theta;
    if (status == NOSA_OK)
        status = parse_scaling(root, object, parameters != NULL, config, error);
    if (status != NOSA_OK)
        nosa_error_prefix(error, "%s", name);
    return status;
}
