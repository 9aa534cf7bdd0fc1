#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "service/gate.h"

static void count_change(void *context)
{
    ++*(int *)context;
}

static struct nosa_gate *make(uint32_t requests_max, int *changes)
{
    struct nosa_gate *gate;
    assert_int_equal(nosa_gate_create(&gate, requests_max, count_change, changes, NULL), NOSA_OK);
    return gate;
}

static enum nosa_gate_state state_of(struct nosa_gate *gate)
{
    struct nosa_gate_view view;
    nosa_gate_view(gate, &view);
    return view.state;
}

static void test_enter_before_ready(void **state)
{
    (void)state;
    int changes = 0;
    struct nosa_gate *gate = make(1, &changes);
    assert_int_equal(nosa_gate_enter(gate), NOSA_GATE_NOT_STARTED);
    assert_int_equal(state_of(gate), NOSA_GATE_STARTING);
    nosa_gate_ready(gate);
    assert_int_equal(changes, 1);
    assert_int_equal(nosa_gate_enter(gate), NOSA_GATE_ENTERED);
    assert_int_equal(nosa_gate_enter(gate), NOSA_GATE_FULL);
    assert_false(nosa_gate_is_open(gate));
    nosa_gate_leave(gate);
    assert_true(nosa_gate_is_open(gate));
    nosa_gate_free(gate);
}

static void test_drain_until_the_last_leaves(void **state)
{
    (void)state;
    int changes = 0;
    struct nosa_gate_view view;
    struct nosa_gate *gate = make(2, &changes);
    nosa_gate_ready(gate);
    nosa_gate_enter(gate);
    nosa_gate_drain(gate, 77);
    nosa_gate_view(gate, &view);
    assert_int_equal(view.state, NOSA_GATE_DRAINING);
    assert_int_equal(view.let_go_ns, 77);
    assert_true(view.reason[0] != '\0');
    assert_int_equal(nosa_gate_enter(gate), NOSA_GATE_CLOSED);
    changes = 0;
    nosa_gate_leave(gate);
    assert_int_equal(changes, 1);
    assert_int_equal(state_of(gate), NOSA_GATE_DRAINED);
    assert_int_equal(nosa_gate_resume(gate, NULL), NOSA_OK);
    nosa_gate_view(gate, &view);
    assert_int_equal(view.state, NOSA_GATE_READY);
    assert_true(view.let_go_ns == NOSA_GATE_NEVER);
    assert_string_equal(view.reason, "");
    nosa_gate_free(gate);
}

static void test_end_cannot_be_resumed(void **state)
{
    (void)state;
    int changes = 0;
    struct nosa_error error = {0};
    struct nosa_gate_view view;
    struct nosa_gate *gate = make(2, &changes);
    nosa_gate_ready(gate);
    nosa_gate_end(gate, 100);
    nosa_gate_end(gate, 200);
    nosa_gate_drain(gate, 300);
    nosa_gate_view(gate, &view);
    assert_int_equal(view.let_go_ns, 100);
    assert_true(view.ending);
    assert_int_equal(nosa_gate_resume(gate, &error), NOSA_UNAVAILABLE);
    assert_int_equal(nosa_gate_wait_end(gate, NULL), NOSA_OK);
    nosa_gate_free(gate);
}

static void test_fail_keeps_the_first_error(void **state)
{
    (void)state;
    int changes = 0;
    struct nosa_error first = {NOSA_INTERNAL, "first"}, second = {NOSA_IO_ERROR, "second"};
    struct nosa_error error = {0};
    struct nosa_gate *gate = make(2, &changes);
    nosa_gate_ready(gate);
    nosa_gate_fail(gate, &first);
    nosa_gate_fail(gate, &second);
    assert_int_equal(nosa_gate_wait_end(gate, &error), NOSA_INTERNAL);
    assert_string_equal(error.text, "first");
    nosa_gate_free(gate);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_enter_before_ready),
        cmocka_unit_test(test_drain_until_the_last_leaves),
        cmocka_unit_test(test_end_cannot_be_resumed),
        cmocka_unit_test(test_fail_keeps_the_first_error),
    };
    return cmocka_run_group_tests_name("gate", tests, NULL, NULL);
}
