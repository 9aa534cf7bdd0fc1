#include "generate.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "generation_json.h"
#include "interrupt.h"
#include "output.h"
#include "resumed_call.h"

/* ---- text ---- */

struct printer {
    bool terminal; /* control characters would steer it */
};

static enum nosa_status no_output(struct nosa_error *error)
{
    return nosa_error_set(error, NOSA_IO_ERROR, "standard output: %s", strerror(errno));
}

static enum nosa_status text_accepted(void *context, const Nosa__V1__Accepted *accepted,
                                      struct nosa_error *error)
{
    (void)context;
    (void)accepted;
    (void)error;
    return NOSA_OK;
}

static enum nosa_status text_delta(void *context, const Nosa__V1__Delta *delta,
                                   struct nosa_error *error)
{
    const struct printer *printer = context;
    for (const char *at = delta->text; *at; at++) {
        unsigned char byte = (unsigned char)*at;
        bool control = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f;
        if (putchar(printer->terminal && control ? '?' : byte) == EOF)
            return no_output(error);
    }
    return fflush(stdout) == 0 ? NOSA_OK : no_output(error);
}

static void say_broken(void *context, const struct nosa_error *reason)
{
    (void)context;
    fprintf(stderr, "nosactl: the stream broke, trying to go on: %s\n", reason->text);
}

static const struct nosa_resumed_events text_events = {text_accepted, text_delta, say_broken};

static const char *plural(uint64_t count)
{
    return count == 1 ? "" : "s";
}

/* The line of figures on standard error. */
static void print_figures(const struct nosa_resumed_result *result)
{
    const Nosa__V1__Finished *finished = result->finished;
    const Nosa__V1__Usage *usage = finished ? finished->usage : NULL;
    double first_s = nosa_seconds_between(result->start_ns, result->first_ns);
    double decode_s = nosa_seconds_between(result->first_ns, result->end_ns);
    fprintf(stderr, "%" PRIu32 " prompt token%s", result->prompt_tokens,
            plural(result->prompt_tokens));
    if (usage && usage->cached_prompt_tokens > 0)
        fprintf(stderr, " (%" PRIu32 " of them cached)", usage->cached_prompt_tokens);
    if (result->token_count > 0)
        fprintf(stderr, ", the first token after %.2f s", first_s);
    if (result->token_count > 1 && decode_s >= 0.01)
        fprintf(stderr, ", %zu more in %.2f s (%.1f tokens/s)", result->token_count - 1, decode_s,
                (double)(result->token_count - 1) / decode_s);
    fprintf(stderr, "; finished: %s", nosa_generation_reason(result));
    if (result->breaks > 0)
        fprintf(stderr, ", went on after %" PRIu32 " broken stream%s", result->breaks,
                plural(result->breaks));
    fprintf(stderr, "; request %s, seed %" PRIu64 "\n", result->request_id, result->seed);
}

static int generate_text(struct nosa_connection *connection, Nosa__V1__GenerateRequest *request,
                         const struct nosa_resumed_options *options, bool quiet,
                         struct nosa_error *error)
{
    struct printer printer = {.terminal = isatty(STDOUT_FILENO) == 1};
    struct nosa_resumed_result result;
    enum nosa_rpc_code code =
        nosa_resumed_call(connection, request, options, &text_events, &printer, &result, error);
    int exit_code = (int)nosa_exit_from_code(code);
    if (result.local_failure)
        exit_code = (int)nosa_exit_from_status(error->status);
    if (result.request_id && !result.local_failure) {
        if ((putchar('\n') == EOF || fflush(stdout) != 0) && code == NOSA_RPC_OK)
            exit_code = (int)nosa_exit_from_status(no_output(error));
        if (!quiet)
            print_figures(&result);
    }
    if (result.interrupted) {
        nosa_error_clear(error);
        exit_code = nosa_interrupt_exit_code();
    }
    nosa_resumed_result_free(&result);
    return exit_code;
}

/* ---- JSON ---- */

static int generate_json(struct nosa_connection *connection, Nosa__V1__GenerateRequest *request,
                         const struct nosa_resumed_options *options, struct nosa_error *error)
{
    static const struct nosa_resumed_events events = {nosa_generation_json_accepted,
                                                      nosa_generation_json_delta, say_broken};
    struct nosa_generation_json json = {.logprobs_asked = request->logprobs > 0};
    struct nosa_resumed_result result;
    struct nosa_error output_error = {0};
    enum nosa_rpc_code code =
        nosa_resumed_call(connection, request, options, &events, &json, &result, error);
    int exit_code = (int)nosa_exit_from_code(code);
    if (result.interrupted) {
        nosa_error_clear(error);
        exit_code = nosa_interrupt_exit_code();
    }
    if (result.request_id && !result.local_failure) {
        json_t *object = nosa_generation_json_take(&json, &result, error->text);
        if (nosa_output_json(object, &output_error) != NOSA_OK) {
            nosa_error_clear(error);
            exit_code = (int)nosa_exit_from_status(
                nosa_error_set(error, output_error.status, "%s", output_error.text));
        }
    }
    nosa_generation_json_free(&json);
    nosa_resumed_result_free(&result);
    return exit_code;
}

int nosa_generate(struct nosa_connection *connection, const struct nosa_flags *flags,
                  struct nosa_error *error)
{
    Nosa__V1__GenerateRequest *request;
    enum nosa_status status = nosa_generate_request_make(flags, &request, error);
    if (status != NOSA_OK)
        return (int)nosa_exit_from_status(status == NOSA_IO_ERROR ? NOSA_INVALID_ARGUMENT : status);
    const struct nosa_resumed_options options = {
        .timeout_ms = nosa_connection_timeout_ms(flags, 0),
        .resume_ms = (uint32_t)(nosa_flags_double(flags, "resume-timeout") * 1000),
        .interrupted = nosa_interrupt_flag(),
    };
    int code = NOSA_EXIT_FAILED;
    /* Not before: a wait for the prompt just ends with the program. */
    if (nosa_interrupt_catch(false, error) == NOSA_OK)
        code = nosa_flags_bool(flags, "json")
                   ? generate_json(connection, request, &options, error)
                   : generate_text(connection, request, &options, nosa_flags_bool(flags, "quiet"),
                                   error);
    nosa__v1__generate_request__free_unpacked(request, NULL);
    return code;
}
