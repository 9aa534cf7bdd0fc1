/* What the I/O methods of the operating system share: opening the one file. Stateless. */
#ifndef NOSA_KVSTORE_IO_INTERNAL_H
#define NOSA_KVSTORE_IO_INTERNAL_H

#include "io.h"

/* Opens or creates and locks the file as nosa_io_method.open says. *fd is the caller's to close,
 * which ends the lock; -1 on failure. */
enum nosa_status nosa_io_file_open(const struct nosa_io_options *options, int *fd, bool *direct,
                                   uint64_t *bytes, struct nosa_error *error);

/* As nosa_io_method.resize; *bytes is the size before and after. */
enum nosa_status nosa_io_file_resize(const struct nosa_io_options *options, int fd, uint64_t *bytes,
                                     struct nosa_error *error);

#endif
