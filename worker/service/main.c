/*
 * nosa-worker: one model on one tensor-parallel group of devices, for the coordinators it joins.
 *
 * Exit codes: 0 drained after SIGTERM or SIGINT; 1 failed while running; 2 something the caller
 * gave is wrong.
 */
#include <signal.h>
#include <stdio.h>

#include "service/options.h"
#include "service/worker.h"

/* Every thread is born with these blocked; one of them waits for them. */
static void block_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a KV file past RLIMIT_FSIZE is a write that fails */
}

int main(int argc, char **argv)
{
    struct nosa_error error = {0};
    struct nosa_worker_options options;
    enum nosa_worker_action action;
    enum nosa_status status = nosa_worker_options_parse(argc, argv, &options, &action, &error);
    if (status == NOSA_OK && action == NOSA_WORKER_PRINTED)
        return 0;
    if (status == NOSA_OK) {
        block_signals();
        status = nosa_worker_run(&options, &error);
        nosa_worker_options_free(&options);
    }
    if (status != NOSA_OK && error.text[0])
        fprintf(stderr, "nosa-worker: %s\n", error.text);
    return nosa_status_exit_code(status);
}
