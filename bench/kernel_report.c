/* The table of kernels: rates, and the share of what the machine allows. */
#include <stdio.h>

#include "kernel_bench_internal.h"

/* The time that memory or multiply-adds alone would take, whichever is longer. */
struct bound {
    double seconds;
    const char *name; /* "memory", "fma", or "" when the operands come from the caches */
};

static struct bound find_bound(const struct bench_limits *limits,
                               const struct kernel_result *result)
{
    double memory_s = result->cached ? 0 : result->bytes / (limits->read_gbs * 1e9);
    double fma_s = limits->fma_gflops > 0 ? result->operations / (limits->fma_gflops * 1e9) : 0;
    if (memory_s == 0 && fma_s == 0)
        return (struct bound){0, ""};
    return memory_s >= fma_s ? (struct bound){memory_s, "memory"} : (struct bound){fma_s, "fma"};
}

void kernel_report_head(const struct kernel_bench *bench)
{
    if (bench->rows)
        return;
    char device[160];
    bench->device->table->describe(bench->device, device, sizeof device);
    printf("\nshape of the %s; %s\n", bench->shape->name, device);
    printf("%-14s %-34s %10s %9s %7s %6s %-6s %9s\n", "op", "case", "us", "GFLOP/s", "GB/s",
           "share", "of", "oneDNN");
}

static void print_line(const struct kernel_result *result, const struct bound *bound)
{
    printf("%-14s %-34s %10.1f", result->op, result->detail, result->seconds * 1e6);
    if (result->operations > 0)
        printf(" %9.1f", result->operations / result->seconds / 1e9);
    else
        printf(" %9s", "");
    printf(" %7.1f", result->bytes / result->seconds / 1e9);
    if (bound->seconds > 0)
        printf(" %5.0f%% %-6s", 100 * bound->seconds / result->seconds, bound->name);
    else
        printf(" %6s %-6s", "", "");
    if (result->onednn_gflops > 0)
        printf(" %9.1f", result->onednn_gflops);
    putchar('\n');
    fflush(stdout);
}

void kernel_report(struct kernel_bench *bench, const struct kernel_result *result)
{
    struct bound bound = find_bound(&bench->limits, result);
    if (!bench->rows) {
        print_line(result, &bound);
        return;
    }
    json_array_append_new(
        bench->rows,
        json_pack("{s:s s:s s:s s:f s:f s:f s:f s:s s:f}", "shape", bench->shape->name, "op",
                  result->op, "case", result->detail, "us", result->seconds * 1e6, "gflops",
                  result->operations / result->seconds / 1e9, "gbs",
                  result->bytes / result->seconds / 1e9, "share", bound.seconds / result->seconds,
                  "share_of", bound.name, "onednn_gflops", result->onednn_gflops));
}
