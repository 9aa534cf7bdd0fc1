/* The commands that ask or steer a coordinator once: workers, status, requests, cancel, drain,
 * resume. */
#ifndef NOSA_CLI_ADMIN_H
#define NOSA_CLI_ADMIN_H

#include "command.h"
#include "nosa/v1/admin.pb-c.h"

#define NOSA_ADMIN_TIMEOUT_MS 10000 /* of a call, when --timeout is not given */

/* Flags of workers and requests, of status and cancel and resume, and of drain. */
extern const struct nosa_flag nosa_admin_list_flags[2];
extern const struct nosa_flag nosa_admin_json_flags[1];
extern const struct nosa_flag nosa_admin_drain_flags[2];

int nosa_admin_workers(struct nosa_connection *connection, const struct nosa_flags *flags,
                       struct nosa_error *error);
int nosa_admin_status(struct nosa_connection *connection, const struct nosa_flags *flags,
                      struct nosa_error *error);
int nosa_admin_requests(struct nosa_connection *connection, const struct nosa_flags *flags,
                        struct nosa_error *error);
int nosa_admin_cancel(struct nosa_connection *connection, const struct nosa_flags *flags,
                      struct nosa_error *error);
int nosa_admin_drain(struct nosa_connection *connection, const struct nosa_flags *flags,
                     struct nosa_error *error);
int nosa_admin_resume(struct nosa_connection *connection, const struct nosa_flags *flags,
                      struct nosa_error *error);

/* ---- the calls alone; the caller frees *response by nosa_message_free ---- */

enum nosa_rpc_code nosa_admin_call_workers(struct nosa_connection *connection, uint32_t timeout_ms,
                                           Nosa__V1__WorkersResponse **response,
                                           struct nosa_error *error);
enum nosa_rpc_code nosa_admin_call_status(struct nosa_connection *connection, uint32_t timeout_ms,
                                          Nosa__V1__StatusResponse **response,
                                          struct nosa_error *error);
enum nosa_rpc_code nosa_admin_call_requests(struct nosa_connection *connection, uint32_t timeout_ms,
                                            Nosa__V1__RequestsResponse **response,
                                            struct nosa_error *error);

#endif
