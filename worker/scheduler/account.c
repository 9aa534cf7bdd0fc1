#include <stddef.h>

#include "scheduler/account_internal.h"

void nosa_account_act(struct account *account, enum nosa_scheduler_action_kind kind, int32_t slot)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    const struct request *request = get(account, slot);

    NOSA_ASSERT(scheduler->n_actions < scheduler->actions_max);
    scheduler->actions[scheduler->n_actions++] = (struct nosa_scheduler_action){
        .kind = kind,
        .id = id_of(slot, request->generation),
        .tag = request->tag,
        .reason = request->end,
        .has_session = request->has_session,
        .outsize = request->outsize,
    };
}

void nosa_account_enter_batch(struct account *account, const struct request *request)
{
    account->n_batch++;
    account->working_sets += working_set(account->scheduler, request);
    account->n_outsize += request->outsize;
    account->blocks_free -= blocks_promised(account->scheduler, request);
    if (request->outsize)
        account->lower_free -= tail_promised(account->scheduler, request);
}

void nosa_account_leave_batch(struct account *account, const struct request *request)
{
    account->n_batch--;
    account->working_sets -= working_set(account->scheduler, request);
    account->n_outsize -= request->outsize;
    account->blocks_free += blocks_promised(account->scheduler, request);
    if (request->outsize)
        account->lower_free += tail_promised(account->scheduler, request);
}

void nosa_account_open(struct account *account, const struct nosa_scheduler_store *store)
{
    struct nosa_scheduler *scheduler = account->scheduler;

    account->blocks_free += store->blocks_available;
    account->lower_free += store->lower_blocks_available;
    for (int32_t i = 0; i < scheduler->n_open; i++) {
        struct request *request = get(account, scheduler->open[i]);
        if (request->paused && request->place == PLACE_RUNNING)
            nosa_scheduler_move(scheduler, scheduler->open[i], PLACE_READY);
        if (in_batch(request))
            nosa_account_enter_batch(account, request);
        if (request->place == PLACE_SUSPENDING)
            account->blocks_expected += blocks_held(scheduler, request);
    }
}

void nosa_account_demote(struct account *account, int32_t slot)
{
    nosa_account_leave_batch(account, get(account, slot));
    nosa_scheduler_move(account->scheduler, slot, PLACE_READY);
}

/* Enters the blocks that `slot` gives up, before it is moved. */
static void give_up_blocks(struct account *account, int32_t slot)
{
    struct request *request = get(account, slot);
    if (request->place == PLACE_RUNNING)
        nosa_account_leave_batch(account, request);
    account->blocks_expected += blocks_held(account->scheduler, request);
}

void nosa_account_drop(struct account *account, int32_t slot)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    struct request *request = get(account, slot);

    if (request->outsize)
        account->lower_free += tail_blocks(scheduler, request->computed);
    if (request->place == PLACE_SUSPENDED)
        account->lower_free += resident_blocks(scheduler, request->outsize, request->computed);
    else
        give_up_blocks(account, slot);
    nosa_account_act(account, NOSA_SCHEDULER_DROP, slot);
    nosa_scheduler_move(scheduler, slot, request->paused ? PLACE_WITHHELD : PLACE_QUEUED);
    nosa_scheduler_set_progress(scheduler, slot, request->known, 0);
    request->outsize = false;
    request->immovable = false;
    request->dropped = scheduler->arrange_number;
    scheduler->drops++;
}

void nosa_account_evict(struct account *account, int32_t slot)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    struct request *request = get(account, slot);
    int32_t held = blocks_held(scheduler, request);

    if (request->immovable || held > account->lower_free || held == 0) {
        nosa_account_drop(account, slot);
        return;
    }
    give_up_blocks(account, slot);
    account->lower_free -= held;
    nosa_account_act(account, NOSA_SCHEDULER_SUSPEND, slot);
    nosa_scheduler_move(scheduler, slot, PLACE_SUSPENDING);
    scheduler->suspends++;
}

bool nosa_account_is_evictable(const struct account *account, const struct request *request,
                               const struct request *before, bool with_protected)
{
    if (request->place != PLACE_READY && request->place != PLACE_RUNNING)
        return false;
    if (request->paused)
        return true;
    if (before && !ranks_before(before, request))
        return false;
    return with_protected || !is_protected(account->scheduler, request);
}

bool nosa_account_make_lower_room(struct account *account, const struct request *request,
                                  int64_t blocks)
{
    struct nosa_scheduler *scheduler = account->scheduler;

    for (int pass = 0; pass < 2; pass++)
        for (int32_t i = scheduler->n_open - 1; i >= 0 && account->lower_free < blocks; i--) {
            int32_t slot = scheduler->open[i];
            const struct request *other = get(account, slot);
            bool lies_there =
                other->place == PLACE_SUSPENDED ||
                (other->outsize && nosa_account_is_evictable(account, other, request, false));
            bool gives = pass == 0 ? other->paused : ranks_before(request, other);
            if (other != request && lies_there && gives)
                nosa_account_drop(account, slot);
        }
    return account->lower_free >= blocks;
}

int32_t nosa_account_first_running(const struct account *account)
{
    struct nosa_scheduler *scheduler = account->scheduler;

    for (int32_t i = 0; i < scheduler->n_open; i++)
        if (get(account, scheduler->open[i])->place == PLACE_RUNNING)
            return scheduler->open[i];
    return SLOT_NONE;
}

int32_t nosa_account_last_of_batch(const struct account *account, const struct request *before)
{
    struct nosa_scheduler *scheduler = account->scheduler;

    for (int32_t i = scheduler->n_open - 1; i >= 0; i--) {
        const struct request *request = get(account, scheduler->open[i]);
        if (before && ranks_before(request, before))
            return SLOT_NONE;
        if (request->place == PLACE_RUNNING && !is_protected(scheduler, request))
            return scheduler->open[i];
    }
    return SLOT_NONE;
}

int32_t nosa_account_next_victim(const struct account *account, const struct request *before,
                                 int32_t spared, bool with_protected)
{
    struct nosa_scheduler *scheduler = account->scheduler;
    int32_t found = SLOT_NONE;

    for (int32_t i = scheduler->n_open - 1; i >= 0; i--) {
        int32_t slot = scheduler->open[i];
        const struct request *request = get(account, slot);
        if (slot == spared || !nosa_account_is_evictable(account, request, before, with_protected))
            continue;
        if (request->paused)
            return slot;
        if (found == SLOT_NONE)
            found = slot;
    }
    return found;
}
