#include "output.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum nosa_status write_out(const char *bytes, size_t size, struct nosa_error *error)
{
    if (fwrite(bytes, 1, size, stdout) == size && fflush(stdout) == 0)
        return NOSA_OK;
    return nosa_error_set(error, NOSA_IO_ERROR, "standard output: %s", strerror(errno));
}

enum nosa_status nosa_output_text(const struct nosa_buffer *text, struct nosa_error *error)
{
    if (nosa_buffer_failed(text))
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the output");
    return text->size ? write_out(text->data, text->size, error) : NOSA_OK;
}

enum nosa_status nosa_output_json(json_t *value, struct nosa_error *error)
{
    char *text = value ? json_dumps(value, JSON_COMPACT) : NULL;
    json_decref(value);
    if (!text)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for the output");
    enum nosa_status status = write_out(text, strlen(text), error);
    if (status == NOSA_OK)
        status = write_out("\n", 1, error);
    free(text);
    return status;
}
