/*
 * Names of the policies that choose what a tier gives up. The keys themselves are in
 * kernels/kv_policy.h, since on a device they are evaluated inside the step; the store takes them
 * from there too, when it chooses what goes from host memory to NVMe.
 */
#ifndef NOSA_KVSTORE_POLICY_H
#define NOSA_KVSTORE_POLICY_H

#include <stdbool.h>

#include "kv_policy.h"

#define NOSA_KV_POLICIES 3

/* For flags: the names by value of enum nosa_kv_policy, then NULL. */
extern const char *const nosa_kv_policy_names[NOSA_KV_POLICIES + 1];

/* "eddma", "lru" or "lowest-e"; never NULL. */
const char *nosa_kv_policy_name(enum nosa_kv_policy policy);

/* False when `name` is none of them; *out is then unchanged. */
bool nosa_kv_policy_parse(const char *name, enum nosa_kv_policy *out);

#endif
