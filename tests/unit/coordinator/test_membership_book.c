#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "membership_book.h"
#include "support/alloc_fail.h"

#define WRITES 64

/* A store: what etcd would hold, as a map of keys. */
struct store {
    struct nosa_name_map keys;
};

static void put(struct store *store, const char *key, const char *value)
{
    assert_int_equal(nosa_name_map_put(&store->keys, key, value, NULL), NOSA_OK);
}

static bool has(const struct store *store, const char *key)
{
    return nosa_name_map_find(&store->keys, key) != NULL;
}

static void wipe(struct store *store)
{
    nosa_name_map_free(&store->keys);
}

/* Brings everything that is pending into the store; how many writes that were. */
static size_t write_all(struct nosa_membership_book *book, struct store *store)
{
    struct nosa_membership_write writes[WRITES];
    size_t total = 0, count;
    while ((count = nosa_membership_book_take(book, writes, WRITES)) > 0) {
        for (size_t i = 0; i < count; i++) {
            struct nosa_name *entry = nosa_name_map_find(&store->keys, writes[i].key);
            assert_int_equal(writes[i].leased, writes[i].kind != NOSA_MEMBERSHIP_DRAIN);
            if (writes[i].put)
                put(store, writes[i].key, writes[i].value);
            else if (entry)
                nosa_name_map_remove(&store->keys, entry);
        }
        nosa_membership_book_wrote(book, writes, count);
        total += count;
    }
    assert_false(nosa_membership_book_is_pending(book));
    return total;
}

static struct nosa_membership_news read_all(struct nosa_membership_book *book,
                                            const struct store *store)
{
    struct nosa_membership_list list = {.id = book->id};
    struct nosa_membership_news news;
    for (size_t i = 0; i < store->keys.count; i++) {
        const struct nosa_name *entry = &store->keys.names[i];
        assert_int_equal(nosa_membership_list_add(&list, entry->name, strlen(entry->name),
                                                  entry->text, strlen(entry->text)),
                         NOSA_OK);
    }
    assert_int_equal(nosa_membership_book_apply(book, &list, &news), NOSA_OK);
    nosa_membership_list_free(&list);
    return news;
}

struct pair {
    struct nosa_membership_book a, b;
    struct store store;
};

static void open_pair(struct pair *pair)
{
    memset(pair, 0, sizeof *pair);
    nosa_membership_book_init(&pair->a, "a", "host-a:1");
    nosa_membership_book_init(&pair->b, "b", "host-b:1");
    put(&pair->store, "marker", "first");
    read_all(&pair->a, &pair->store);
    read_all(&pair->b, &pair->store);
    write_all(&pair->a, &pair->store);
    write_all(&pair->b, &pair->store);
    read_all(&pair->a, &pair->store);
    read_all(&pair->b, &pair->store);
}

static void close_pair(struct pair *pair)
{
    nosa_membership_book_free(&pair->a);
    nosa_membership_book_free(&pair->b);
    wipe(&pair->store);
}

static void drain(struct nosa_membership_book *book, const char *id, bool drained)
{
    assert_int_equal(nosa_membership_book_drain(book, id, drained, "note"), NOSA_OK);
    assert_int_equal(nosa_membership_book_is_drained(book, id), drained);
}

static void have(struct nosa_membership_book *book, size_t count, const char *const *ids)
{
    const char *addresses[8] = {"x:1", "x:2", "x:3", "x:4", "x:5", "x:6", "x:7", "x:8"};
    assert_int_equal(nosa_membership_book_have(book, ids, addresses, count), NOSA_OK);
}

static void test_drain_reaches_the_other(void **state)
{
    (void)state;
    struct pair p;
    open_pair(&p);
    drain(&p.a, "w", true);
    assert_int_equal(write_all(&p.a, &p.store), 1);
    assert_true(has(&p.store, "drains/w"));
    assert_true(read_all(&p.b, &p.store).drains);
    assert_true(nosa_membership_book_is_drained(&p.b, "w"));
    assert_false(read_all(&p.b, &p.store).drains);
    drain(&p.b, "w", false);
    assert_int_equal(write_all(&p.b, &p.store), 1);
    assert_false(has(&p.store, "drains/w"));
    assert_true(read_all(&p.a, &p.store).drains);
    assert_false(nosa_membership_book_is_drained(&p.a, "w"));
    close_pair(&p);
}

static void test_drain_same_again_writes_nothing(void **state)
{
    (void)state;
    struct pair p;
    open_pair(&p);
    drain(&p.a, "w", false);
    assert_false(nosa_membership_book_is_pending(&p.a));
    drain(&p.a, "w", true);
    drain(&p.a, "w", true);
    assert_int_equal(nosa_membership_book_pending(&p.a), 1);
    assert_int_equal(write_all(&p.a, &p.store), 1);
    drain(&p.a, "w", true);
    assert_false(nosa_membership_book_is_pending(&p.a));
    close_pair(&p);
}

static void test_drain_unwritten_outlasts_a_list(void **state)
{
    (void)state;
    struct pair p;
    open_pair(&p);
    drain(&p.a, "w", true);
    assert_false(read_all(&p.a, &p.store).drains); /* the store does not know of it yet */
    assert_true(nosa_membership_book_is_drained(&p.a, "w"));
    write_all(&p.a, &p.store);
    drain(&p.a, "w", false);
    assert_false(read_all(&p.a, &p.store).drains); /* and still says that it is drained */
    assert_false(nosa_membership_book_is_drained(&p.a, "w"));
    write_all(&p.a, &p.store);
    assert_false(has(&p.store, "drains/w"));
    close_pair(&p);
}

static void test_wrote_changed_meanwhile_stays_pending(void **state)
{
    (void)state;
    struct pair p;
    struct nosa_membership_write writes[WRITES];
    open_pair(&p);
    drain(&p.a, "w", true);
    assert_int_equal(nosa_membership_book_take(&p.a, writes, WRITES), 1);
    drain(&p.a, "w", false);
    nosa_membership_book_wrote(&p.a, writes, 1);
    assert_true(nosa_membership_book_is_pending(&p.a));
    assert_int_equal(nosa_membership_book_take(&p.a, writes, WRITES), 1);
    assert_false(writes[0].put);
    nosa_membership_book_wrote(&p.a, writes, 1);
    assert_false(nosa_membership_book_is_pending(&p.a));
    close_pair(&p);
}

static void test_apply_store_without_its_data(void **state)
{
    (void)state;
    struct pair p;
    open_pair(&p);
    drain(&p.a, "w", true);
    write_all(&p.a, &p.store);
    read_all(&p.b, &p.store);
    wipe(&p.store);
    put(&p.store, "marker", "second");
    struct nosa_membership_news news = read_all(&p.a, &p.store);
    assert_true(news.other_store);
    assert_false(news.drains);
    assert_int_equal(news.restored, 1);
    assert_true(nosa_membership_book_is_drained(&p.a, "w"));
    write_all(&p.a, &p.store);
    assert_true(has(&p.store, "drains/w"));
    assert_true(has(&p.store, "coordinators/a"));
    /* b finds it there already, and its own key is missing. */
    news = read_all(&p.b, &p.store);
    assert_true(news.other_store);
    assert_int_equal(news.restored, 0);
    assert_true(nosa_membership_book_is_drained(&p.b, "w"));
    assert_int_equal(write_all(&p.b, &p.store), 1);
    close_pair(&p);
}

static void test_apply_first_store_is_no_other(void **state)
{
    (void)state;
    struct nosa_membership_book book;
    struct store store = {0};
    nosa_membership_book_init(&book, "c", "host-c:1");
    drain(&book, "mine", true);
    put(&store, "marker", "m");
    put(&store, "drains/theirs", "note");
    struct nosa_membership_news news = read_all(&book, &store);
    assert_false(news.other_store);
    assert_true(news.drains);
    assert_true(nosa_membership_book_is_drained(&book, "mine"));
    assert_true(nosa_membership_book_is_drained(&book, "theirs"));
    write_all(&book, &store);
    assert_true(has(&store, "drains/mine"));
    nosa_membership_book_free(&book);
    wipe(&store);
}

static void test_have_workers_come_and_go(void **state)
{
    (void)state;
    struct pair p;
    const char *both[] = {"v", "w"}, *one[] = {"w"};
    open_pair(&p);
    have(&p.a, 2, both);
    assert_int_equal(write_all(&p.a, &p.store), 2);
    assert_true(has(&p.store, "workers/a/v"));
    have(&p.a, 2, both);
    assert_false(nosa_membership_book_is_pending(&p.a));
    read_all(&p.b, &p.store);
    assert_non_null(nosa_name_map_find(&p.b.others, "v"));
    read_all(&p.a, &p.store);
    assert_null(nosa_name_map_find(&p.a.others, "v"));
    have(&p.a, 1, one);
    /* w has another address now, v is gone. */
    assert_int_equal(write_all(&p.a, &p.store), 2);
    assert_false(has(&p.store, "workers/a/v"));
    read_all(&p.b, &p.store);
    assert_null(nosa_name_map_find(&p.b.others, "v"));
    assert_non_null(nosa_name_map_find(&p.b.others, "w"));
    close_pair(&p);
}

static void test_unlease_writes_all_but_drains(void **state)
{
    (void)state;
    struct pair p;
    const char *both[] = {"v", "w"}, *one[] = {"v"};
    open_pair(&p);
    drain(&p.a, "w", true);
    have(&p.a, 2, both);
    write_all(&p.a, &p.store);
    have(&p.a, 1, one);
    nosa_membership_book_unlease(&p.a); /* w's key went with the lease */
    assert_int_equal(nosa_membership_book_pending(&p.a), 2);
    write_all(&p.a, &p.store);
    assert_true(nosa_membership_book_is_drained(&p.a, "w"));
    close_pair(&p);
}

static void test_apply_own_keys_deleted(void **state)
{
    (void)state;
    struct pair p;
    const char *one[] = {"w"};
    open_pair(&p);
    have(&p.a, 1, one);
    write_all(&p.a, &p.store);
    wipe(&p.store);
    put(&p.store, "marker", "first");
    read_all(&p.a, &p.store);
    assert_int_equal(write_all(&p.a, &p.store), 2);
    assert_true(has(&p.store, "coordinators/a") && has(&p.store, "workers/a/w"));
    close_pair(&p);
}

static void test_apply_peers(void **state)
{
    (void)state;
    struct pair p;
    open_pair(&p);
    assert_int_equal(p.a.peers.count, 1);
    assert_string_equal(p.a.peers.names[0].name, "b");
    assert_string_equal(p.a.peers.names[0].text, "host-b:1");
    nosa_name_map_remove(&p.store.keys, nosa_name_map_find(&p.store.keys, "coordinators/b"));
    assert_true(read_all(&p.a, &p.store).peers);
    assert_int_equal(p.a.peers.count, 0);
    assert_false(read_all(&p.a, &p.store).peers);
    close_pair(&p);
}

static void test_list_add_nonsense(void **state)
{
    (void)state;
    struct nosa_membership_list list = {.id = "a"};
    char long_key[400];
    memset(long_key, 'k', sizeof long_key);
    memcpy(long_key, "drains/", 7);
    const struct {
        const char *key;
        size_t size;
    } keys[] = {
        {"", 0},
        {"drains/", 7},
        {"drains/a\0b", 10},
        {"drains/a\n", 9},
        {"workers/", 8},
        {"workers/a", 9},
        {"workers/a/", 10},
        {"workers//w", 10},
        {"elsewhere/x", 11},
        {"coordinators/", 13},
        {long_key, sizeof long_key},
        {long_key, 300},
    };
    size_t count = sizeof keys / sizeof *keys;
    for (size_t i = 0; i < count; i++)
        assert_int_equal(nosa_membership_list_add(&list, keys[i].key, keys[i].size, NULL, 0),
                         NOSA_OK);
    assert_int_equal(list.ignored, count);
    assert_int_equal(list.drains.count + list.own.count + list.others.count + list.peers.count, 0);
    assert_int_equal(nosa_membership_list_add(&list, "drains/w", 8, "a\0b", 3), NOSA_OK);
    assert_int_equal(nosa_membership_list_add(&list, "drains/x", 8, long_key, sizeof long_key),
                     NOSA_OK);
    assert_int_equal(nosa_membership_list_add(&list, "workers/b/w/with/slashes", 24, "h:1", 3),
                     NOSA_OK);
    assert_int_equal(list.drains.count, 2);
    assert_non_null(nosa_name_map_find(&list.others, "w/with/slashes"));
    nosa_membership_list_free(&list);
}

static void test_drain_bound(void **state)
{
    (void)state;
    struct nosa_membership_book book;
    char id[32];
    nosa_membership_book_init(&book, "a", "");
    for (int i = 0; i < NOSA_MEMBERSHIP_DRAINS_MAX; i++) {
        snprintf(id, sizeof id, "w%d", i);
        drain(&book, id, true);
    }
    assert_int_equal(nosa_membership_book_drain(&book, "more", true, ""), NOSA_RESOURCE_EXHAUSTED);
    nosa_membership_book_settle(&book);
    drain(&book, "w7", false);
    nosa_membership_book_settle(&book);
    drain(&book, "more", true);
    nosa_membership_book_free(&book);
}

/* Two coordinators, random drains, lost connections and lost stores: once both are in step they
 * agree, and nothing that the last wish drained is forgotten. */
static void test_books_agree_random(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 300; seed++) {
        struct pair p;
        unsigned draw = seed;
        bool wish[4] = {false};
        open_pair(&p);
        for (int i = 0; i < 60; i++) {
            struct nosa_membership_book *book = rand_r(&draw) % 2 ? &p.a : &p.b;
            int worker = rand_r(&draw) % 4;
            char id[2] = {(char)('w' - worker), '\0'};
            char marker[16];
            /* An operator sees the state of the coordinator that is asked. */
            read_all(book, &p.store);
            if (rand_r(&draw) % 3) {
                wish[worker] = rand_r(&draw) % 2;
                drain(book, id, wish[worker]);
                write_all(book, &p.store);
            }
            if (rand_r(&draw) % 10 == 0) { /* both see each other's state, then it is lost */
                read_all(&p.a, &p.store);
                read_all(&p.b, &p.store);
                wipe(&p.store);
                snprintf(marker, sizeof marker, "m%d", i);
                put(&p.store, "marker", marker);
                read_all(&p.a, &p.store);
                write_all(&p.a, &p.store);
                read_all(&p.b, &p.store);
                write_all(&p.b, &p.store);
            }
        }
        read_all(&p.a, &p.store);
        read_all(&p.b, &p.store);
        for (int worker = 0; worker < 4; worker++) {
            char id[2] = {(char)('w' - worker), '\0'};
            assert_int_equal(nosa_membership_book_is_drained(&p.a, id), wish[worker]);
            assert_int_equal(nosa_membership_book_is_drained(&p.b, id), wish[worker]);
        }
        close_pair(&p);
    }
}

/* Drains, workers and a list from another coordinator. */
static enum nosa_status use_book(void *context, struct nosa_error *error)
{
    static const char *const ids[] = {"v", "w"}, *const addresses[] = {"x:1", "x:2"};
    static const char *const keys[] = {"drains/u", "workers/b/w", "workers/a/v", "coordinators/b"};
    struct nosa_membership_book book;
    struct nosa_membership_list list = {.id = "a"};
    struct nosa_membership_news news;
    (void)context;
    nosa_membership_book_init(&book, "a", "host-a:1");
    enum nosa_status status = nosa_membership_book_drain(&book, "w", true, "note");
    if (status == NOSA_OK)
        status = nosa_membership_book_have(&book, ids, addresses, 2);
    status = status ? status : nosa_membership_list_add(&list, "marker", 6, "m", 1);
    for (size_t i = 0; i < sizeof keys / sizeof *keys && status == NOSA_OK; i++)
        status = nosa_membership_list_add(&list, keys[i], strlen(keys[i]), "x:1", 3);
    if (status == NOSA_OK)
        status = nosa_membership_book_apply(&book, &list, &news);
    if (status == NOSA_OK)
        assert_true(nosa_membership_book_is_drained(&book, "u") && book.others.count == 1);
    nosa_membership_list_free(&list);
    nosa_membership_book_free(&book);
    if (status != NOSA_OK)
        nosa_error_set(error, status, "no memory for the book");
    return status;
}

static void test_book_with_each_allocation_failing(void **state)
{
    (void)state;
    assert_true(nosa_alloc_fail_sweep(use_book, NULL) > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drain_reaches_the_other),
        cmocka_unit_test(test_drain_same_again_writes_nothing),
        cmocka_unit_test(test_drain_unwritten_outlasts_a_list),
        cmocka_unit_test(test_wrote_changed_meanwhile_stays_pending),
        cmocka_unit_test(test_apply_store_without_its_data),
        cmocka_unit_test(test_apply_first_store_is_no_other),
        cmocka_unit_test(test_have_workers_come_and_go),
        cmocka_unit_test(test_unlease_writes_all_but_drains),
        cmocka_unit_test(test_apply_own_keys_deleted),
        cmocka_unit_test(test_apply_peers),
        cmocka_unit_test(test_list_add_nonsense),
        cmocka_unit_test(test_drain_bound),
        cmocka_unit_test(test_books_agree_random),
        cmocka_unit_test(test_book_with_each_allocation_failing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
