/* Everything that a coordinator says of itself at one moment, for `nosactl top`. */
#ifndef NOSA_CLI_SNAPSHOT_H
#define NOSA_CLI_SNAPSHOT_H

#include <jansson.h>
#include <stdint.h>

#include "base/buffer.h"
#include "connection.h"
#include "nosa/v1/admin.pb-c.h"

/* All zero is an empty one: nothing was heard yet. */
struct nosa_snapshot {
    enum nosa_rpc_code code;          /* how the calls ended */
    struct nosa_error error;          /* unless the code is OK */
    Nosa__V1__StatusResponse *status; /* owned, as the next two; NULL unless the code is OK */
    Nosa__V1__WorkersResponse *workers;
    Nosa__V1__RequestsResponse *requests;
    const char *server; /* that answered; borrowed from the connection */
    uint64_t wall_ns;   /* when */
};

/* Asks; blocks up to three times `timeout_ms`. The snapshot is the caller's to free. */
void nosa_snapshot_take(struct nosa_snapshot *snapshot, struct nosa_connection *connection,
                        uint32_t timeout_ms);
void nosa_snapshot_free(struct nosa_snapshot *snapshot);

/*
 * Appends the screen: a head of a few lines, workers, requests; at most `lines_max` lines of at
 * most `width_max` columns (UINT32_MAX: no bound). What finds no room is counted in a last line.
 * The code must be OK.
 */
void nosa_snapshot_text(const struct nosa_snapshot *snapshot, uint32_t width_max,
                        uint32_t lines_max, struct nosa_buffer *out);

/* {"time", "status", "workers", "requests"}; NULL: no memory. The code must be OK. */
json_t *nosa_snapshot_json(const struct nosa_snapshot *snapshot);

#endif
