/*
 * Plain references of the ops, over the same parameter structs: the formulas of ops.h in the most
 * direct loops, with sums in double. Tests compare every backend with them; nothing else calls
 * them.
 *
 * Differences in summation order aside, a backend must agree within the tolerance that the op test
 * states. Reads and writes the CPU layouts of kv_layout.h and weight.h. Single-threaded, slow.
 */
#ifndef NOSA_KERNELS_REFERENCE_H
#define NOSA_KERNELS_REFERENCE_H

#include "ops.h"

/* The reference op table; `stream` is ignored and may be NULL. */
extern const struct nosa_op_table nosa_reference_ops;

#endif
