/* How many cores this process may use: its affinity mask, bounded by control-group quotas. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cpu_device.h"

#define PATH_BYTES 4096
#define CPUS_MAX   65536

/* Cores in the affinity mask; 1 if it cannot be read. */
static int32_t affinity_count(void)
{
    int32_t count = 0;
    for (int cpus = 1024; cpus <= CPUS_MAX && count == 0; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        if (set == NULL)
            break;
        size_t bytes = CPU_ALLOC_SIZE((size_t)cpus);
        if (sched_getaffinity(0, bytes, set) == 0)
            count = CPU_COUNT_S(bytes, set);
        CPU_FREE(set);
    }
    return count > 0 ? count : 1;
}

/* Reads one line of a small file; false if there is none. */
static bool read_line(const char *path, char *line, size_t line_bytes)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    bool read = fgets(line, (int)line_bytes, file) != NULL;
    fclose(file);
    return read;
}

/* Cores that `quota` microseconds per `period` amount to, rounded up; 0 for no limit. */
static int32_t quota_cores(long long quota, long long period)
{
    if (quota <= 0 || period <= 0)
        return 0;
    long long cores = (quota + period - 1) / period;
    return cores > CPUS_MAX ? 0 : (int32_t)cores;
}

/* The quota of one control group folder, version 2 then 1; 0 for none. */
static int32_t folder_cores(const char *root, const char *folder)
{
    char path[PATH_BYTES + 64];
    char line[128];
    long long quota;
    long long period;
    snprintf(path, sizeof path, "%s%s/cpu.max", root, folder);
    if (read_line(path, line, sizeof line))
        return sscanf(line, "%lld %lld", &quota, &period) == 2 ? quota_cores(quota, period) : 0;
    snprintf(path, sizeof path, "%s%s/cpu.cfs_quota_us", root, folder);
    if (!read_line(path, line, sizeof line) || sscanf(line, "%lld", &quota) != 1)
        return 0;
    snprintf(path, sizeof path, "%s%s/cpu.cfs_period_us", root, folder);
    if (!read_line(path, line, sizeof line) || sscanf(line, "%lld", &period) != 1)
        return 0;
    return quota_cores(quota, period);
}

/* The smallest quota from `folder` up to the root of its hierarchy; 0 for none. */
static int32_t hierarchy_cores(const char *root, char *folder)
{
    int32_t smallest = 0;
    for (;;) {
        int32_t cores = folder_cores(root, folder);
        if (cores > 0 && (smallest == 0 || cores < smallest))
            smallest = cores;
        char *slash = strrchr(folder, '/');
        if (slash == NULL)
            return smallest;
        *slash = '\0';
    }
}

/* Whether a comma-separated list holds the word "cpu". */
static bool lists_cpu(const char *controllers)
{
    for (const char *word = controllers; *word != '\0';) {
        size_t length = strcspn(word, ",");
        if (length == 3 && memcmp(word, "cpu", 3) == 0)
            return true;
        word += length + (word[length] == ',');
    }
    return false;
}

/* The smallest quota of this process's groups, from lines "id:controllers:/folder"; 0 for none. */
static int32_t quota_count(void)
{
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (file == NULL)
        return 0;
    int32_t smallest = 0;
    char line[PATH_BYTES];
    while (fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *folder = controllers == NULL ? NULL : strchr(controllers + 1, ':');
        if (folder == NULL)
            continue;
        controllers++;
        *folder++ = '\0';
        int32_t cores = 0;
        if (*controllers == '\0')
            cores = hierarchy_cores("/sys/fs/cgroup", folder);
        else if (lists_cpu(controllers))
            cores = hierarchy_cores("/sys/fs/cgroup/cpu", folder);
        if (cores > 0 && (smallest == 0 || cores < smallest))
            smallest = cores;
    }
    fclose(file);
    return smallest;
}

int32_t nosa_cpu_count(void)
{
    int32_t cores = affinity_count();
    int32_t quota = quota_count();
    return quota > 0 && quota < cores ? quota : cores;
}
