#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "nosa/v1/inference.pb-c.h"
#include "rpc/message.h"
#include "support/alloc_fail.h"
#include "support/rpc/echo.pb-c.h"

#define PLENTY (64u << 20)

/* A message's bytes, built by hand where protobuf-c would not make them. */
struct bytes {
    uint8_t data[4096];
    size_t size;
};

static void put(struct bytes *bytes, const void *data, size_t size)
{
    assert_true(bytes->size + size <= sizeof bytes->data);
    memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
}

static void put_byte(struct bytes *bytes, uint8_t byte)
{
    put(bytes, &byte, 1);
}

/* A length-prefixed field of less than 128 bytes. */
static void put_field(struct bytes *bytes, uint8_t number, const void *data, size_t size)
{
    assert_true(size < 128 && number < 16);
    put_byte(bytes, (uint8_t)(number << 3 | 2));
    put_byte(bytes, (uint8_t)size);
    put(bytes, data, size);
}

static void assert_refused(const ProtobufCMessageDescriptor *descriptor, const struct bytes *bytes,
                           const char *text)
{
    struct nosa_error error = {0};
    ProtobufCMessage *message = (ProtobufCMessage *)(uintptr_t)1;
    assert_int_equal(
        nosa_message_unpack(descriptor, bytes->data, bytes->size, PLENTY, &message, &error),
        NOSA_INVALID_ARGUMENT);
    assert_null(message);
    assert_string_equal(error.text, text);
}

/* The request that most tests spoil: two chat messages and some of everything else. */
static size_t pack_request(uint8_t *out, size_t size)
{
    Nosa__V1__Message first = NOSA__V1__MESSAGE__INIT;
    Nosa__V1__Message second = NOSA__V1__MESSAGE__INIT;
    Nosa__V1__Message *messages[] = {&first, &second};
    Nosa__V1__Chat chat = NOSA__V1__CHAT__INIT;
    Nosa__V1__Sampling sampling = NOSA__V1__SAMPLING__INIT;
    Nosa__V1__GenerateRequest request = NOSA__V1__GENERATE_REQUEST__INIT;
    char *stop[] = {"end", "\xc3\xa9"};
    uint32_t ids[] = {1, 300, 4000000000u};
    first.role = "system";
    first.content = "Be brief.";
    second.role = "user";
    second.content = "Gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x98\x80";
    chat.n_messages = 2;
    chat.messages = messages;
    sampling.temperature = 0.5f;
    sampling.seed = UINT64_MAX;
    request.request_id = "r-1";
    request.input_case = NOSA__V1__GENERATE_REQUEST__INPUT_CHAT;
    request.chat = &chat;
    request.sampling = &sampling;
    request.max_tokens = 7;
    request.n_stop = 2;
    request.stop = stop;
    request.n_stop_token_ids = 3;
    request.stop_token_ids = ids;
    request.priority = -3;
    request.ignore_eos = 1;
    assert_true(protobuf_c_message_get_packed_size(&request.base) <= size);
    return protobuf_c_message_pack(&request.base, out);
}

static void test_unpack_round_trip(void **state)
{
    (void)state;
    uint8_t data[1024];
    size_t size = pack_request(data, sizeof data);
    struct nosa_error error = {0};
    ProtobufCMessage *message;
    assert_int_equal(nosa_message_unpack(&nosa__v1__generate_request__descriptor, data, size,
                                         PLENTY, &message, &error),
                     NOSA_OK);
    const Nosa__V1__GenerateRequest *request = (const Nosa__V1__GenerateRequest *)message;
    assert_string_equal(request->request_id, "r-1");
    assert_int_equal(request->input_case, NOSA__V1__GENERATE_REQUEST__INPUT_CHAT);
    assert_int_equal(request->chat->n_messages, 2);
    assert_string_equal(request->chat->messages[1]->content,
                        "Gr\xc3\xbc\xc3\x9f dich \xf0\x9f\x98\x80");
    assert_true(request->sampling->seed == UINT64_MAX);
    assert_int_equal(request->priority, -3);
    assert_int_equal(request->n_stop_token_ids, 3);
    assert_true(request->stop_token_ids[2] == 4000000000u);
    nosa_message_free(message);
    nosa_message_free(NULL);
}

static void test_unpack_empty(void **state)
{
    (void)state;
    struct nosa_error error = {0};
    ProtobufCMessage *message;
    assert_int_equal(nosa_message_unpack(&nosa__v1__generate_request__descriptor, NULL, 0, PLENTY,
                                         &message, &error),
                     NOSA_OK);
    assert_string_equal(((Nosa__V1__GenerateRequest *)message)->model, "");
    assert_null(((Nosa__V1__GenerateRequest *)message)->sampling);
    nosa_message_free(message);
}

/* Every beginning of a message either parses or is refused, and nothing is read past its end. */
static void test_unpack_every_cut(void **state)
{
    (void)state;
    uint8_t data[1024];
    size_t size = pack_request(data, sizeof data);
    size_t refused = 0;
    for (size_t cut = 0; cut < size; cut++) {
        struct nosa_error error = {0};
        ProtobufCMessage *message;
        uint8_t *exact = malloc(cut ? cut : 1); /* so that a sanitizer sees the end */
        assert_non_null(exact);
        memcpy(exact, data, cut);
        enum nosa_status status = nosa_message_unpack(&nosa__v1__generate_request__descriptor,
                                                      exact, cut, PLENTY, &message, &error);
        if (status != NOSA_OK) {
            assert_int_equal(status, NOSA_INVALID_ARGUMENT);
            assert_true(error.text[0] != '\0');
            refused++;
        }
        nosa_message_free(message);
        free(exact);
    }
    assert_true(refused > size / 2 && refused < size);
}

/* Every byte set to every value, in turn: a status, and no harm. */
static void test_unpack_every_byte_spoilt(void **state)
{
    (void)state;
    uint8_t data[1024];
    size_t size = pack_request(data, sizeof data);
    size_t refused = 0;
    for (size_t i = 0; i < size; i++) {
        uint8_t kept = data[i];
        for (int value = 0; value < 256; value++) {
            struct nosa_error error = {0};
            ProtobufCMessage *message;
            data[i] = (uint8_t)value;
            enum nosa_status status = nosa_message_unpack(&nosa__v1__generate_request__descriptor,
                                                          data, size, PLENTY, &message, &error);
            assert_true(status == NOSA_OK || status == NOSA_INVALID_ARGUMENT);
            refused += status != NOSA_OK;
            nosa_message_free(message);
        }
        data[i] = kept;
    }
    assert_true(refused > 1000);
}

static void test_check_invalid_utf8_names_the_field(void **state)
{
    (void)state;
    struct bytes chat = {0};
    struct bytes request = {0};
    put_field(&chat, 1, "\x0a\x04user", 6);
    put_field(&chat, 1,
              "\x12\x03"
              "abc",
              5);
    put_field(&chat, 1,
              "\x12\x05"
              "ab\xff"
              "de",
              7);
    put_field(&request, 5, chat.data, chat.size);
    assert_refused(&nosa__v1__generate_request__descriptor, &request,
                   "chat.messages[2].content: not valid UTF-8 (at byte 2)");
}

static void test_check_strings(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
        const char *text;
    } cases[] = {
        {"a\0b", 3, "request_id: holds a NUL (at byte 1)"},
        {"\0", 1, "request_id: holds a NUL (at byte 0)"},
        {"\xc3", 1, "request_id: not valid UTF-8 (at byte 0)"},
        {"ok\xed\xa0\x80", 5, "request_id: not valid UTF-8 (at byte 2)"},
        {"\xf4\x90\x80\x80", 4, "request_id: not valid UTF-8 (at byte 0)"},
        {"\xc0\xaf", 2, "request_id: not valid UTF-8 (at byte 0)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bytes request = {0};
        put_field(&request, 1, cases[i].bytes, cases[i].size);
        assert_refused(&nosa__v1__generate_request__descriptor, &request, cases[i].text);
    }
}

static void test_check_repeated_string_index(void **state)
{
    (void)state;
    struct bytes request = {0};
    put_field(&request, 8, "a", 1);
    put_field(&request, 1, "id", 2);
    put_field(&request, 8, "b", 1);
    put_field(&request, 8, "\xfe", 1);
    assert_refused(&nosa__v1__generate_request__descriptor, &request,
                   "stop[2]: not valid UTF-8 (at byte 0)");
}

/* Bytes fields hold anything. */
static void test_check_bytes_are_free(void **state)
{
    (void)state;
    struct bytes request = {0};
    struct nosa_error error = {0};
    put_field(&request, 5, "\xff\0\xfe", 3);
    assert_int_equal(nosa_message_check(&nosa__test__v1__say_request__descriptor, request.data,
                                        request.size, &error),
                     NOSA_OK);
}

static void test_check_wire_types(void **state)
{
    (void)state;
    struct bytes request = {0};
    put(&request, "\x08\x05", 2); /* request_id as a number */
    assert_refused(&nosa__v1__generate_request__descriptor, &request,
                   "request_id: has another type on the wire");
    request.size = 0;
    put_field(&request, 7, "x", 1); /* max_tokens as a string */
    assert_refused(&nosa__v1__generate_request__descriptor, &request,
                   "max_tokens: has another type on the wire");
    request.size = 0;
    put(&request, "\x32\x05\x0d\x00\x00\x80\x3f", 7); /* sampling.temperature 1.0 */
    struct nosa_error error = {0};
    assert_int_equal(nosa_message_check(&nosa__v1__generate_request__descriptor, request.data,
                                        request.size, &error),
                     NOSA_OK);
    request.data[2] = 0x09; /* as a double, which then lacks bytes */
    assert_refused(&nosa__v1__generate_request__descriptor, &request,
                   "sampling: not a well-formed message");
}

static void test_check_malformed(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
    } cases[] = {
        {"\x0a", 1}, /* no length */
        {"\x0a\x05"
         "abc",
         5},                                                      /* less than the length says */
        {"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 10},         /* a length near 2^63 */
        {"\x38\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 12}, /* a varint of 11 bytes */
        {"\x38\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11},     /* above 2^64 */
        {"\x00\x00", 2},                                          /* field 0 */
        {"\x0b\x0c", 2},                                          /* a group */
        {"\x0f\x00", 2},                                          /* wire type 7 */
        {"\xff\xff\xff\xff\x7f\x00", 6},                          /* a number above 2^29 */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bytes request = {0};
        put(&request, cases[i].bytes, cases[i].size);
        assert_refused(&nosa__v1__generate_request__descriptor, &request,
                       "not a well-formed GenerateRequest message");
    }
}

static void test_check_unknown_fields_are_skipped(void **state)
{
    (void)state;
    struct bytes request = {0};
    ProtobufCMessage *message;
    struct nosa_error error = {0};
    put(&request, "\xa2\x06\x03\xff\xfe\x00", 6); /* field 100: not ours to check */
    put_field(&request, 2, "m", 1);
    assert_int_equal(nosa_message_unpack(&nosa__v1__generate_request__descriptor, request.data,
                                         request.size, PLENTY, &message, &error),
                     NOSA_OK);
    assert_string_equal(((Nosa__V1__GenerateRequest *)message)->model, "m");
    nosa_message_free(message);
}

/* Tiny sub-messages take many times their size in memory: refused at the bound, and so is anything
 * else that does. */
static void test_unpack_bounded(void **state)
{
    (void)state;
    enum { ITEMS = 100000 };
    uint8_t *data = malloc(2 * ITEMS);
    struct nosa_error error = {0};
    ProtobufCMessage *message;
    assert_non_null(data);
    for (int i = 0; i < ITEMS; i++) {
        data[2 * i] = 4 << 3 | 2; /* items: an empty one */
        data[2 * i + 1] = 0;
    }
    assert_int_equal(nosa_message_unpack(&nosa__test__v1__say_request__descriptor, data, 2 * ITEMS,
                                         1u << 20, &message, &error),
                     NOSA_RESOURCE_EXHAUSTED);
    assert_null(message);
    assert_string_equal(error.text, "a SayRequest message of 200000 bytes takes more than 1048576 "
                                    "bytes in memory");
    nosa_error_clear(&error);
    /* No single allocation is as large as this: their sum counts. */
    assert_int_equal(nosa_message_unpack(&nosa__test__v1__say_request__descriptor, data, 2 * ITEMS,
                                         8u << 20, &message, &error),
                     NOSA_RESOURCE_EXHAUSTED);
    nosa_error_clear(&error);
    assert_int_equal(nosa_message_unpack(&nosa__test__v1__say_request__descriptor, data, 2 * ITEMS,
                                         PLENTY, &message, &error),
                     NOSA_OK);
    assert_int_equal(((Nosa__Test__V1__SayRequest *)message)->n_items, ITEMS);
    nosa_message_free(message);
    free(data);
}

static enum nosa_status unpack_once(void *context, struct nosa_error *error)
{
    ProtobufCMessage *message;
    uint8_t data[1024];
    (void)context;
    size_t size = pack_request(data, sizeof data);
    enum nosa_status status = nosa_message_unpack(&nosa__v1__generate_request__descriptor, data,
                                                  size, PLENTY, &message, error);
    nosa_message_free(message);
    return status;
}

static void test_unpack_without_memory(void **state)
{
    (void)state;
    assert_true(nosa_alloc_fail_sweep(unpack_once, NULL) > 10);
}

static void test_refusal_without_memory_still_names_the_field(void **state)
{
    (void)state;
    struct bytes request = {0};
    struct nosa_error error = {0};
    put_field(&request, 1, "\xff", 1);
    nosa_alloc_fail_arm_from(1);
    enum nosa_status status = nosa_message_check(&nosa__v1__generate_request__descriptor,
                                                 request.data, request.size, &error);
    nosa_alloc_fail_disarm();
    assert_int_equal(status, NOSA_INVALID_ARGUMENT);
    assert_string_equal(error.text, "request_id: not valid UTF-8 (at byte 0)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unpack_round_trip),
        cmocka_unit_test(test_unpack_empty),
        cmocka_unit_test(test_unpack_every_cut),
        cmocka_unit_test(test_unpack_every_byte_spoilt),
        cmocka_unit_test(test_check_invalid_utf8_names_the_field),
        cmocka_unit_test(test_check_strings),
        cmocka_unit_test(test_check_repeated_string_index),
        cmocka_unit_test(test_check_bytes_are_free),
        cmocka_unit_test(test_check_wire_types),
        cmocka_unit_test(test_check_malformed),
        cmocka_unit_test(test_check_unknown_fields_are_skipped),
        cmocka_unit_test(test_unpack_bounded),
        cmocka_unit_test(test_unpack_without_memory),
        cmocka_unit_test(test_refusal_without_memory_still_names_the_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
