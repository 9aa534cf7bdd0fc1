#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "nosa_proto_descriptor_set.h"
#include "rpc/reflection_internal.h"
#include "rpc_echo_proto_descriptor_set.h"

static struct nosa_rpc_file_index *own_index(void)
{
    struct nosa_rpc_file_index *index = calloc(1, sizeof *index);
    const struct nosa_rpc_descriptor_set own = {nosa_proto_descriptor_set,
                                                nosa_proto_descriptor_set_size};
    const struct nosa_rpc_descriptor_set echo = {rpc_echo_proto_descriptor_set,
                                                 rpc_echo_proto_descriptor_set_size};
    assert_non_null(index);
    assert_int_equal(nosa_rpc_file_index_add(index, &own, NULL), NOSA_OK);
    assert_int_equal(nosa_rpc_file_index_add(index, &own, NULL), NOSA_OK); /* adds nothing */
    assert_int_equal(nosa_rpc_file_index_add(index, &echo, NULL), NOSA_OK);
    assert_int_equal(index->count, 7);
    return index;
}

static void test_find_symbol(void **state)
{
    (void)state;
    static const struct {
        const char *symbol;
        const char *file; /* NULL: none */
    } cases[] = {
        {"nosa.v1.Inference", "nosa/v1/inference.proto"},
        {"nosa.v1.Inference.Generate", "nosa/v1/inference.proto"},
        {".nosa.v1.GenerateRequest", "nosa/v1/inference.proto"},
        {"nosa.v1.GenerateRequest.input", "nosa/v1/inference.proto"},
        {"nosa.v1.GenerateRequest.max_tokens", "nosa/v1/inference.proto"},
        {"nosa.v1.Finished.Reason", "nosa/v1/inference.proto"},
        {"nosa.v1.Finished.REASON_STOP", "nosa/v1/inference.proto"},
        {"nosa.v1.WorkerState", "nosa/v1/admin.proto"},
        {"nosa.v1.WORKER_STATE_LOST", "nosa/v1/admin.proto"},
        {"nosa.cluster.v1.RunRequest", "nosa/cluster/v1/cluster.proto"},
        {"grpc.health.v1.Health", "grpc/health/v1/health.proto"},
        {"nosa.test.v1.Echo.Absent", "support/rpc/echo.proto"},
        {"nosa.v1.Inference.Generat", NULL},
        {"nosa.v1.Inference.Generate.x", NULL},
        {"nosa.v1.Nothing", NULL},
        {"nosa.v1", NULL},
        {"nosa.v1.", NULL},
        {"nosa", NULL},
        {".", NULL},
        {"", NULL},
    };
    struct nosa_rpc_file_index *index = own_index();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int expected = cases[i].file ? nosa_rpc_file_index_find_name(index, cases[i].file) : -1;
        assert_true(!cases[i].file || expected >= 0);
        assert_int_equal(nosa_rpc_file_index_find_symbol(index, cases[i].symbol), expected);
    }
    assert_int_equal(nosa_rpc_file_index_find_name(index, "nosa/v1/inference.prot"), -1);
    free(index);
}

static void test_closure(void **state)
{
    (void)state;
    int closure[NOSA_RPC_FILES_MAX];
    struct nosa_rpc_file_index *index = own_index();
    int cluster = nosa_rpc_file_index_find_name(index, "nosa/cluster/v1/cluster.proto");
    assert_int_equal(nosa_rpc_file_index_closure(index, cluster, closure), 3);
    assert_int_equal(closure[0], cluster);
    int health = nosa_rpc_file_index_find_name(index, "grpc/health/v1/health.proto");
    assert_int_equal(nosa_rpc_file_index_closure(index, health, closure), 1);
    free(index);
}

/* A set that is cut is refused, or holds fewer files; nothing is read past its end. */
static void test_add_every_cut(void **state)
{
    (void)state;
    struct nosa_rpc_file_index *index = calloc(1, sizeof *index);
    assert_non_null(index);
    for (size_t cut = 0; cut < nosa_proto_descriptor_set_size; cut += 7) {
        uint8_t *exact = malloc(cut ? cut : 1);
        struct nosa_error error = {0};
        assert_non_null(exact);
        memcpy(exact, nosa_proto_descriptor_set, cut);
        const struct nosa_rpc_descriptor_set set = {exact, cut};
        index->count = 0;
        enum nosa_status status = nosa_rpc_file_index_add(index, &set, &error);
        assert_true(status == NOSA_CORRUPT || index->count < 6);
        free(exact);
    }
    free(index);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find_symbol),
        cmocka_unit_test(test_closure),
        cmocka_unit_test(test_add_every_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
