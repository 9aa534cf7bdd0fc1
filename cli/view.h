/*
 * What a coordinator tells operators, as JSON and as text. Pure functions of the messages; any
 * thread. A text goes to the end of `out` and ends with a newline; NOSA_OUT_OF_MEMORY shows as
 * nosa_buffer_failed, and as NULL where JSON is returned (a new reference).
 */
#ifndef NOSA_CLI_VIEW_H
#define NOSA_CLI_VIEW_H

#include <jansson.h>
#include <stdint.h>

#include "base/buffer.h"
#include "nosa/v1/admin.pb-c.h"

/* "READY"; "UNSPECIFIED" for numbers that this version does not know. Static. */
const char *nosa_view_worker_state(Nosa__V1__WorkerState state);
const char *nosa_view_request_state(Nosa__V1__RequestState state);

/* ---- JSON ---- */

/* An array of {id, address, state, model, ...}. */
json_t *nosa_view_workers_json(const Nosa__V1__WorkersResponse *workers);

/* An array of {request_id, worker_id, state, tokens, ...}. */
json_t *nosa_view_requests_json(const Nosa__V1__RequestsResponse *requests);

/* An object; `server` is the address that answered. */
json_t *nosa_view_status_json(const Nosa__V1__StatusResponse *status, const char *server);

/* ---- text ---- */

/* Tables: lines at most `width_max` wide and at most `rows_max` rows (UINT32_MAX: no bound). */
void nosa_view_workers_text(const Nosa__V1__WorkersResponse *workers, uint32_t width_max,
                            uint32_t rows_max, struct nosa_buffer *out);
void nosa_view_requests_text(const Nosa__V1__RequestsResponse *requests, uint32_t width_max,
                             uint32_t rows_max, struct nosa_buffer *out);

/* One fact per line. */
void nosa_view_status_text(const Nosa__V1__StatusResponse *status, const char *server,
                           struct nosa_buffer *out);

#endif
