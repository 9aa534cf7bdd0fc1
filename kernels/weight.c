#include "weight.h"

size_t nosa_weight_packed_bytes(enum nosa_weight_format format, int32_t n, int32_t k)
{
    size_t panels = ((size_t)n + NOSA_PANEL_COLUMNS - 1) / NOSA_PANEL_COLUMNS;
    size_t inputs = (size_t)k;
    if (format == NOSA_WEIGHT_BF16)
        inputs = (inputs + 1) / 2 * 2;
    size_t value_bytes = format == NOSA_WEIGHT_F32 ? sizeof(float) : sizeof(uint16_t);
    return panels * NOSA_PANEL_COLUMNS * inputs * value_bytes;
}

const char *nosa_weight_format_name(enum nosa_weight_format format)
{
    switch (format) {
    case NOSA_WEIGHT_F32: return "f32";
    case NOSA_WEIGHT_BF16: return "bf16";
    case NOSA_WEIGHT_F16: return "f16";
    }
    return "unknown";
}
