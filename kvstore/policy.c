#include "policy.h"

const char *const nosa_kv_policy_names[NOSA_KV_POLICIES + 1] = {
    [NOSA_KV_POLICY_EDDMA] = "eddma",
    [NOSA_KV_POLICY_LRU] = "lru",
    [NOSA_KV_POLICY_LOWEST_E] = "lowest-e",
};

const char *nosa_kv_policy_name(enum nosa_kv_policy policy)
{
    bool known = (int)policy >= 0 && (int)policy < NOSA_KV_POLICIES;
    return known ? nosa_kv_policy_names[policy] : "unknown";
}

bool nosa_kv_policy_parse(const char *name, enum nosa_kv_policy *out)
{
    for (int i = 0; i < NOSA_KV_POLICIES; i++) {
        if (strcmp(name, nosa_kv_policy_names[i]) != 0)
            continue;
        *out = (enum nosa_kv_policy)i;
        return true;
    }
    return false;
}
