#include "engine/rank_group.h"

#include <pthread.h>
#include <stdlib.h>

enum job { JOB_NONE, JOB_CREATE, JOB_STEP, JOB_DESTROY };

struct member {
    struct nosa_rank_group *group; /* borrowed */
    struct nosa_rank_options options;
    struct nosa_comm *comm; /* owned until its rank is destroyed */
    pthread_t thread;
    bool has_thread;
    /* of this member's thread */
    struct nosa_device *device; /* owned */
    struct nosa_rank rank;
    enum nosa_status status; /* of the last job */
    struct nosa_error error;
};

struct nosa_rank_group {
    int32_t n_ranks;
    struct nosa_device_spec spec;
    struct member *members;      /* [n_ranks], owned */
    struct nosa_step_plan *plan; /* of the running step, borrowed */
    pthread_mutex_t mutex;
    pthread_cond_t work_ready;
    pthread_cond_t work_done;
    /* under mutex */
    enum job job;
    uint64_t job_number;
    int32_t members_busy;
};

static enum nosa_status create_rank(struct member *member)
{
    struct nosa_error *error = &member->error;
    const struct nosa_rank_group *group = member->group;
    NOSA_TRY(nosa_backend_device_create(&group->spec, member->options.shard.rank, group->n_ranks,
                                        &member->device, error));
    member->options.device = member->device;
    member->options.comm = member->comm;
    return nosa_rank_create(&member->options, &member->rank, error);
}

static void destroy_rank(struct member *member)
{
    nosa_rank_destroy(&member->rank);
    if (member->device)
        member->device->table->destroy(member->device);
    member->device = NULL;
    if (member->comm)
        member->comm->table->destroy(member->comm);
    member->comm = NULL;
}

/* Others must not wait for a rank that failed. */
static void end_job(struct member *member, enum nosa_status status)
{
    member->status = status;
    if (status != NOSA_OK && member->comm)
        member->comm->table->abort(member->comm);
}

static void enqueue_step(struct member *member)
{
    nosa_error_clear(&member->error);
    end_job(member, nosa_rank_enqueue(&member->rank, member->group->plan, &member->error));
}

/* Keeps the error of the enqueueing, if there was one. */
static void wait_for_step(struct member *member)
{
    struct nosa_error error = {0};
    enum nosa_status status = nosa_rank_wait(&member->rank, &error);
    if (status == NOSA_OK || member->status != NOSA_OK)
        return;
    nosa_error_set(&member->error, status, "rank %d: %s", member->options.shard.rank, error.text);
    end_job(member, status);
}

static void do_job(struct member *member, enum job job)
{
    if (job == JOB_STEP) {
        enqueue_step(member);
        wait_for_step(member);
    } else if (job == JOB_CREATE) {
        nosa_error_clear(&member->error);
        end_job(member, create_rank(member));
    } else {
        destroy_rank(member);
    }
}

static void *member_main(void *argument)
{
    struct member *member = argument;
    struct nosa_rank_group *group = member->group;
    uint64_t seen = 0;
    enum job job = JOB_NONE;
    while (job != JOB_DESTROY) {
        pthread_mutex_lock(&group->mutex);
        while (group->job_number == seen)
            pthread_cond_wait(&group->work_ready, &group->mutex);
        seen = group->job_number;
        job = group->job;
        pthread_mutex_unlock(&group->mutex);
        do_job(member, job);
        pthread_mutex_lock(&group->mutex);
        if (--group->members_busy == 0)
            pthread_cond_signal(&group->work_done);
        pthread_mutex_unlock(&group->mutex);
    }
    return NULL;
}

/* Hands `job` to the threads of n members. */
static void hand_out(struct nosa_rank_group *group, enum job job, int32_t n)
{
    pthread_mutex_lock(&group->mutex);
    NOSA_ASSERT(group->members_busy == 0);
    group->job = job;
    group->job_number++;
    group->members_busy = n;
    pthread_cond_broadcast(&group->work_ready);
    pthread_mutex_unlock(&group->mutex);
}

static void wait_for_members(struct nosa_rank_group *group)
{
    pthread_mutex_lock(&group->mutex);
    while (group->members_busy > 0)
        pthread_cond_wait(&group->work_done, &group->mutex);
    pthread_mutex_unlock(&group->mutex);
}

/* The first failure of the last job in rank order that is not merely the abort of the others. */
static enum nosa_status job_status(const struct nosa_rank_group *group, struct nosa_error *error)
{
    const struct member *failed = NULL;
    for (int32_t i = 0; i < group->n_ranks; i++) {
        const struct member *member = &group->members[i];
        if (member->status != NOSA_OK && (!failed || failed->status == NOSA_CANCELLED))
            failed = member;
    }
    return failed ? nosa_error_set(error, failed->status, "%s", failed->error.text) : NOSA_OK;
}

static enum nosa_status start_threads(struct nosa_rank_group *group, struct nosa_error *error)
{
    for (int32_t i = 0; i < group->n_ranks; i++) {
        struct member *member = &group->members[i];
        if (pthread_create(&member->thread, NULL, member_main, member) != 0)
            return nosa_error_set(error, NOSA_RESOURCE_EXHAUSTED,
                                  "no thread for tensor-parallel rank %d", i);
        member->has_thread = true;
    }
    return NOSA_OK;
}

/* Ends the members that run; with threads missing, jobs reach only those that exist. */
static void stop_threads(struct nosa_rank_group *group)
{
    int32_t running = 0;
    for (int32_t i = 0; i < group->n_ranks; i++)
        running += group->members[i].has_thread;
    hand_out(group, JOB_DESTROY, running);
    wait_for_members(group);
    for (int32_t i = 0; i < group->n_ranks; i++) {
        if (group->members[i].has_thread)
            pthread_join(group->members[i].thread, NULL);
        else
            destroy_rank(&group->members[i]);
    }
}

/* The largest collective: the residual rows of a step, or a rank's part of the logits. */
static size_t comm_bytes_max(const struct nosa_rank_options *options,
                             const struct nosa_model_config *config, int32_t n_ranks)
{
    size_t rows = (size_t)options->limits.rows_max;
    size_t logit_rows = (size_t)nosa_rank_logit_rows(&options->limits);
    size_t stride = (config->vocab + (size_t)n_ranks - 1) / (size_t)n_ranks;
    size_t residual_bytes = sizeof(float) * rows * config->hidden;
    size_t logits_bytes = sizeof(float) * logit_rows * stride;
    return residual_bytes > logits_bytes ? residual_bytes : logits_bytes;
}

static enum nosa_status create_ranks(struct nosa_rank_group *group, struct nosa_error *error)
{
    if (group->n_ranks == 1) {
        do_job(&group->members[0], JOB_CREATE);
    } else {
        hand_out(group, JOB_CREATE, group->n_ranks);
        wait_for_members(group);
    }
    return job_status(group, error);
}

static enum nosa_status prepare_members(struct nosa_rank_group *group,
                                        const struct nosa_rank_options *options,
                                        struct nosa_error *error)
{
    int32_t n_ranks = group->n_ranks;
    const struct nosa_model_config *config = nosa_checkpoint_config(options->checkpoint);
    for (int32_t i = 0; i < n_ranks; i++) {
        struct member *member = &group->members[i];
        member->group = group;
        member->options = *options;
        if (i != 0)
            member->options.progress = NULL;
        NOSA_TRY(nosa_shard_make(config, n_ranks, i, &member->options.shard, error));
    }
    if (n_ranks == 1)
        return NOSA_OK;
    struct nosa_comm **comms = calloc((size_t)n_ranks, sizeof(struct nosa_comm *));
    if (!comms)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %d ranks", n_ranks);
    enum nosa_status status = nosa_backend_comms_create(
        &group->spec, n_ranks, comm_bytes_max(options, config, n_ranks), comms, error);
    for (int32_t i = 0; i < n_ranks && status == NOSA_OK; i++)
        group->members[i].comm = comms[i];
    free(comms);
    return status;
}

enum nosa_status nosa_rank_group_create(const struct nosa_rank_options *options, int32_t n_ranks,
                                        const struct nosa_device_spec *spec,
                                        struct nosa_rank_group **out, struct nosa_error *error)
{
    *out = NULL;
    struct nosa_rank_group *group = calloc(1, sizeof *group);
    struct member *members = calloc((size_t)n_ranks, sizeof *members);
    if (!group || !members) {
        free(group);
        free(members);
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory for %d ranks", n_ranks);
    }
    group->n_ranks = n_ranks;
    group->spec = *spec;
    group->members = members;
    pthread_mutex_init(&group->mutex, NULL);
    pthread_cond_init(&group->work_ready, NULL);
    pthread_cond_init(&group->work_done, NULL);
    enum nosa_status status = prepare_members(group, options, error);
    if (status == NOSA_OK && n_ranks > 1)
        status = start_threads(group, error);
    if (status == NOSA_OK)
        status = create_ranks(group, error);
    if (status != NOSA_OK) {
        nosa_rank_group_destroy(group);
        return status;
    }
    *out = group;
    return NOSA_OK;
}

void nosa_rank_group_destroy(struct nosa_rank_group *group)
{
    if (!group)
        return;
    if (group->n_ranks == 1)
        destroy_rank(&group->members[0]);
    else
        stop_threads(group);
    pthread_cond_destroy(&group->work_done);
    pthread_cond_destroy(&group->work_ready);
    pthread_mutex_destroy(&group->mutex);
    free(group->members);
    free(group);
}

void nosa_rank_group_begin(struct nosa_rank_group *group, struct nosa_step_plan *plan)
{
    group->plan = plan;
    if (group->n_ranks == 1)
        enqueue_step(&group->members[0]);
    else
        hand_out(group, JOB_STEP, group->n_ranks);
}

enum nosa_status nosa_rank_group_finish(struct nosa_rank_group *group, struct nosa_error *error)
{
    if (group->n_ranks == 1)
        wait_for_step(&group->members[0]);
    else
        wait_for_members(group);
    return job_status(group, error);
}

int32_t nosa_rank_group_count(const struct nosa_rank_group *group)
{
    return group->n_ranks;
}

struct nosa_rank *nosa_rank_group_member(struct nosa_rank_group *group, int32_t rank)
{
    NOSA_ASSERT(rank >= 0 && rank < group->n_ranks);
    return &group->members[rank].rank;
}

const struct nosa_rank *nosa_rank_group_rank(const struct nosa_rank_group *group, int32_t rank)
{
    NOSA_ASSERT(rank >= 0 && rank < group->n_ranks);
    return &group->members[rank].rank;
}
