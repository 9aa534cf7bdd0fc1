/*
 * A safetensors file of any bytes. Of what is accepted, every tensor must be found by its name,
 * and every byte of data must lie inside the input and be readable.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "model/safetensors.h"

static void check_file(const struct nosa_safetensors *file, const uint8_t *data, size_t size)
{
    uint64_t total = 0;
    uint32_t sum = 0;
    for (uint64_t i = 0; i < nosa_safetensors_count(file); i++) {
        const struct nosa_tensor *tensor = nosa_safetensors_at(file, i);
        const uint8_t *bytes = tensor->data;
        NOSA_ASSERT(nosa_safetensors_find(file, tensor->name) == tensor);
        NOSA_ASSERT(nosa_safetensors_owns(file, tensor));
        NOSA_ASSERT(bytes >= data && (uint64_t)(data + size - bytes) >= tensor->bytes);
        NOSA_ASSERT(tensor->rank <= NOSA_SAFETENSORS_RANK_MAX);
        if (tensor->dtype != NOSA_TENSOR_OTHER) {
            uint64_t elements = 1;
            for (uint32_t k = 0; k < tensor->rank; k++)
                elements *= tensor->shape[k];
            NOSA_ASSERT(elements * nosa_tensor_dtype_bytes(tensor->dtype) == tensor->bytes);
        }
        for (uint64_t k = 0; k < tensor->bytes; k++)
            sum += bytes[k];
        total += tensor->bytes;
    }
    NOSA_ASSERT(total + 8 < size && sum <= 255 * total);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nosa_safetensors *file = NULL;
    struct nosa_error error;
    nosa_error_clear(&error);
    if (nosa_safetensors_open_memory(data, size, "input", &file, &error) == NOSA_OK) {
        check_file(file, data, size);
        nosa_safetensors_close(file);
    } else {
        NOSA_ASSERT(file == NULL && error.status == NOSA_CORRUPT);
        NOSA_ASSERT(strncmp(error.text, "input: ", 7) == 0 && !strchr(error.text, '\n'));
    }
    return 0;
}
