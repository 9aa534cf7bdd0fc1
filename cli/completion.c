#include "completion.h"

#include <stdio.h>
#include <string.h>

#include "output.h"

/* What follows a flag or a command. */
enum kind { KIND_NOTHING, KIND_ANY, KIND_FILE, KIND_CHOICE };

static enum kind kind_of(const struct nosa_flag *flag)
{
    if (flag->kind == NOSA_FLAG_BOOL)
        return KIND_NOTHING;
    if (flag->kind == NOSA_FLAG_CHOICE)
        return KIND_CHOICE;
    return flag->value_name && strcmp(flag->value_name, "FILE") == 0 ? KIND_FILE : KIND_ANY;
}

/* The command that lists the ids which `command` takes; NULL: it takes none. */
static const char *lists_ids(const struct nosa_command *command)
{
    if (strcmp(command->words, "ID") != 0)
        return NULL;
    return strcmp(command->name, "cancel") == 0 ? "requests" : "workers";
}

/* The words that a command takes, when they are fixed: those of "bash|zsh|fish". */
static void append_words(struct nosa_buffer *out, const struct nosa_command *command)
{
    for (const char *at = strchr(command->words, '|') ? command->words : ""; *at; at++)
        nosa_buffer_append(out, *at == '|' ? " " : at, 1);
}

/* Text inside single quotes: in bash and zsh a quote is '\'', in fish \'. */
static void append_quoted(struct nosa_buffer *out, const char *text, bool fish)
{
    for (; *text; text++) {
        if (*text == '\'')
            nosa_buffer_append_text(out, fish ? "\\'" : "'\\''");
        else if (*text == '\\' && fish)
            nosa_buffer_append_text(out, "\\\\");
        else
            nosa_buffer_append(out, text, 1);
    }
}

/* ---- flags of all commands, each name once ---- */

/* Whether a command before this one, or the connection, has a flag of this name and kind. */
static bool seen_before(const struct nosa_command *commands, const struct nosa_command *until,
                        const struct nosa_flag *flag)
{
    for (size_t i = 0; i < nosa_connection_flag_count; i++)
        if (strcmp(nosa_connection_flags[i].name, flag->name) == 0)
            return true;
    for (const struct nosa_command *command = commands; command != until; command++)
        for (size_t i = 0; i < command->flag_count; i++)
            if (strcmp(command->flags[i].name, flag->name) == 0 &&
                kind_of(&command->flags[i]) == kind_of(flag))
                return true;
    return false;
}

/* "--a|--b" of all flags of a kind; nothing when there are none. */
static void append_patterns(struct nosa_buffer *out, const struct nosa_command *commands,
                            enum kind kind)
{
    const char *joint = "";
    for (size_t i = 0; i < nosa_connection_flag_count; i++)
        if (kind_of(&nosa_connection_flags[i]) == kind) {
            nosa_buffer_printf(out, "%s--%s", joint, nosa_connection_flags[i].name);
            joint = "|";
        }
    for (const struct nosa_command *command = commands; command->name; command++)
        for (size_t i = 0; i < command->flag_count; i++)
            if (kind_of(&command->flags[i]) == kind &&
                !seen_before(commands, command, &command->flags[i])) {
                nosa_buffer_printf(out, "%s--%s", joint, command->flags[i].name);
                joint = "|";
            }
}

/* Arms of a `case` for flags with choices, each of which sets `choices`. */
static void append_choice_arms(struct nosa_buffer *out, const struct nosa_command *commands)
{
    for (const struct nosa_command *command = commands; command->name; command++)
        for (size_t i = 0; i < command->flag_count; i++) {
            const struct nosa_flag *flag = &command->flags[i];
            if (kind_of(flag) != KIND_CHOICE || seen_before(commands, command, flag))
                continue;
            nosa_buffer_printf(out, "    --%s) choices='", flag->name);
            for (size_t c = 0; flag->choices[c]; c++)
                nosa_buffer_printf(out, "%s%s", c ? " " : "", flag->choices[c]);
            nosa_buffer_append_text(out, "' ;;\n");
        }
}

static void append_names(struct nosa_buffer *out, const struct nosa_command *commands,
                         const char *joint)
{
    for (const struct nosa_command *command = commands; command->name; command++)
        nosa_buffer_printf(out, "%s%s", command->name, joint);
    nosa_buffer_append_text(out, "help");
}

/* ---- bash ---- */

static void append_bash_flags(struct nosa_buffer *out, const struct nosa_command *command)
{
    for (size_t i = 0; command && i < command->flag_count; i++)
        nosa_buffer_printf(out, "--%s ", command->flags[i].name);
    for (size_t i = 0; i < nosa_connection_flag_count && !(command && command->local); i++)
        nosa_buffer_printf(out, "--%s ", nosa_connection_flags[i].name);
    nosa_buffer_append_text(out, command ? "--help" : "--help --version");
}

static void bash_script(const struct nosa_command *commands, struct nosa_buffer *out)
{
    nosa_buffer_append_text(
        out, "# bash completion for nosactl: source <(nosactl completion bash)\n"
             "_nosactl() {\n"
             "    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}\n"
             "    local command= words= choices= list= server=() i id\n"
             "    COMPREPLY=()\n"
             "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
             "        case ${COMP_WORDS[i]} in\n        ");
    append_names(out, commands, "|");
    nosa_buffer_append_text(out, ") command=${COMP_WORDS[i]}; break ;;\n"
                                 "        esac\n"
                                 "    done\n"
                                 "    case $before in\n    ");
    append_patterns(out, commands, KIND_FILE);
    nosa_buffer_append_text(
        out, ") mapfile -t COMPREPLY < <(compgen -f -- \"$current\"); return ;;\n    ");
    append_patterns(out, commands, KIND_ANY);
    nosa_buffer_append_text(out, ") return ;;\n");
    append_choice_arms(out, commands);
    nosa_buffer_append_text(out, "    esac\n"
                                 "    case $command in\n"
                                 "    '') words='");
    append_names(out, commands, " ");
    nosa_buffer_append_text(out, " ");
    append_bash_flags(out, NULL);
    nosa_buffer_append_text(out, "' ;;\n    help) words='");
    append_names(out, commands, " ");
    nosa_buffer_append_text(out, "' ;;\n");
    for (const struct nosa_command *command = commands; command->name; command++) {
        nosa_buffer_printf(out, "    %s) words='", command->name);
        append_words(out, command);
        nosa_buffer_append_text(out, strchr(command->words, '|') ? " " : "");
        append_bash_flags(out, command);
        nosa_buffer_append_text(out, "'");
        if (lists_ids(command))
            nosa_buffer_printf(out, "; list=%s", lists_ids(command));
        nosa_buffer_append_text(out, " ;;\n");
    }
    nosa_buffer_append_text(
        out, "    esac\n"
             "    mapfile -t COMPREPLY < <(compgen -W \"${choices:-$words}\" -- \"$current\")\n"
             "    [[ -n $list && -z $choices && $current != -* ]] || return 0\n"
             "    [[ $COMP_LINE =~ --server[=\\ ]+([^\\ ]+) ]] && "
             "server=(--server \"${BASH_REMATCH[1]}\")\n"
             "    while IFS= read -r id; do\n"
             "        [[ $id == \"$current\"* ]] && COMPREPLY+=(\"$(printf %q \"$id\")\")\n"
             "    done < <(nosactl \"$list\" --quiet --timeout 2 \"${server[@]}\" 2> /dev/null)\n"
             "    return 0\n"
             "}\n"
             "complete -F _nosactl nosactl\n");
}

/* ---- zsh ---- */

/* Entries '--name:help' of an array. */
static void append_zsh_flags(struct nosa_buffer *out, const struct nosa_flag *flags, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        nosa_buffer_printf(out, "            '--%s:", flags[i].name);
        append_quoted(out, flags[i].help ? flags[i].help : "", false);
        nosa_buffer_append_text(out, "'\n");
    }
}

static void append_zsh_command(struct nosa_buffer *out, const struct nosa_command *command)
{
    nosa_buffer_printf(out, "    %s)\n", command->name);
    if (lists_ids(command))
        nosa_buffer_printf(out,
                           "        [[ $words[CURRENT] != -* ]] && compadd -- ${(f)\"$(nosactl %s "
                           "--quiet --timeout 2 2> /dev/null)\"}\n",
                           lists_ids(command));
    if (strchr(command->words, '|')) {
        nosa_buffer_append_text(out, "        compadd -- ");
        append_words(out, command);
        nosa_buffer_append_text(out, "\n");
    }
    nosa_buffer_append_text(out, "        flags=(\n");
    append_zsh_flags(out, command->flags, command->flag_count);
    if (!command->local)
        append_zsh_flags(out, nosa_connection_flags, nosa_connection_flag_count);
    nosa_buffer_append_text(out, "        )\n        ;;\n");
}

static void zsh_script(const struct nosa_command *commands, struct nosa_buffer *out)
{
    nosa_buffer_append_text(out, "#compdef nosactl\n"
                                 "# zsh completion for nosactl: source <(nosactl completion zsh)\n"
                                 "_nosactl() {\n"
                                 "    local -a commands flags\n"
                                 "    local command= choices= i\n"
                                 "    commands=(\n");
    for (const struct nosa_command *command = commands; command->name; command++) {
        nosa_buffer_printf(out, "        '%s:", command->name);
        append_quoted(out, command->summary, false);
        nosa_buffer_append_text(out, "'\n");
    }
    nosa_buffer_append_text(out, "        'help:print the commands, or the flags of one'\n    )\n"
                                 "    for ((i = 2; i < CURRENT; i++)); do\n"
                                 "        case $words[i] in\n        ");
    append_names(out, commands, "|");
    nosa_buffer_append_text(out, ") command=$words[i]; break ;;\n"
                                 "        esac\n"
                                 "    done\n"
                                 "    case $words[CURRENT-1] in\n    ");
    append_patterns(out, commands, KIND_FILE);
    nosa_buffer_append_text(out, ") _files; return ;;\n    ");
    append_patterns(out, commands, KIND_ANY);
    nosa_buffer_append_text(out, ") return ;;\n");
    append_choice_arms(out, commands);
    nosa_buffer_append_text(out,
                            "    esac\n"
                            "    if [[ -n $choices ]]; then\n"
                            "        compadd -- ${=choices}\n"
                            "        return\n"
                            "    fi\n"
                            "    case $command in\n"
                            "    ''|help) _describe command commands; [[ -z $command ]] || return; "
                            "flags=(\n");
    append_zsh_flags(out, nosa_connection_flags, nosa_connection_flag_count);
    nosa_buffer_append_text(out, "        ) ;;\n");
    for (const struct nosa_command *command = commands; command->name; command++)
        append_zsh_command(out, command);
    nosa_buffer_append_text(out, "    esac\n"
                                 "    [[ $words[CURRENT] == -* ]] && _describe flag flags\n"
                                 "}\n"
                                 "if [[ $funcstack[1] == _nosactl ]]; then\n"
                                 "    _nosactl \"$@\"\n"
                                 "else\n"
                                 "    compdef _nosactl nosactl\n"
                                 "fi\n");
}

/* ---- fish ---- */

static void append_fish_flag(struct nosa_buffer *out, const char *condition,
                             const struct nosa_flag *flag)
{
    enum kind kind = kind_of(flag);
    nosa_buffer_printf(out, "complete -c nosactl %s-l %s%s", condition, flag->name,
                       kind == KIND_FILE      ? " -r -F"
                       : kind == KIND_NOTHING ? ""
                                              : " -x");
    if (kind == KIND_CHOICE) {
        nosa_buffer_append_text(out, " -a '");
        for (size_t c = 0; flag->choices[c]; c++)
            nosa_buffer_printf(out, "%s%s", c ? " " : "", flag->choices[c]);
        nosa_buffer_append_text(out, "'");
    }
    nosa_buffer_append_text(out, " -d '");
    append_quoted(out, flag->help ? flag->help : "", true);
    nosa_buffer_append_text(out, "'\n");
}

static void fish_script(const struct nosa_command *commands, struct nosa_buffer *out)
{
    nosa_buffer_append_text(out, "# fish completion for nosactl: nosactl completion fish | source\n"
                                 "complete -c nosactl -f\n");
    for (size_t i = 0; i < nosa_connection_flag_count; i++)
        append_fish_flag(out, "", &nosa_connection_flags[i]);
    nosa_buffer_append_text(out, "complete -c nosactl -n __fish_use_subcommand -a help "
                                 "-d 'print the commands, or the flags of one'\n"
                                 "complete -c nosactl -n '__fish_seen_subcommand_from help' -a '");
    append_names(out, commands, " ");
    nosa_buffer_append_text(out, "'\n");
    for (const struct nosa_command *command = commands; command->name; command++) {
        char condition[96];
        snprintf(condition, sizeof condition, "-n '__fish_seen_subcommand_from %s' ",
                 command->name);
        nosa_buffer_printf(out, "complete -c nosactl -n __fish_use_subcommand -a %s -d '",
                           command->name);
        append_quoted(out, command->summary, true);
        nosa_buffer_append_text(out, "'\n");
        if (lists_ids(command))
            nosa_buffer_printf(
                out, "complete -c nosactl %s-a '(nosactl %s --quiet --timeout 2 2> /dev/null)'\n",
                condition, lists_ids(command));
        if (strchr(command->words, '|')) {
            nosa_buffer_printf(out, "complete -c nosactl %s-a '", condition);
            append_words(out, command);
            nosa_buffer_append_text(out, "'\n");
        }
        for (size_t i = 0; i < command->flag_count; i++)
            append_fish_flag(out, condition, &command->flags[i]);
    }
}

/* ---- the command ---- */

enum nosa_status nosa_completion_script(const char *shell, const struct nosa_command *commands,
                                        struct nosa_buffer *out, struct nosa_error *error)
{
    if (strcmp(shell, "bash") == 0)
        bash_script(commands, out);
    else if (strcmp(shell, "zsh") == 0)
        zsh_script(commands, out);
    else if (strcmp(shell, "fish") == 0)
        fish_script(commands, out);
    else
        return nosa_error_set(error, NOSA_INVALID_ARGUMENT,
                              "completion: no shell \"%.80s\"; there are bash, zsh and fish",
                              shell);
    return NOSA_OK;
}

int nosa_completion(struct nosa_connection *connection, const struct nosa_flags *flags,
                    struct nosa_error *error)
{
    struct nosa_buffer script = {0};
    (void)connection;
    enum nosa_status status =
        nosa_completion_script(nosa_flags_positional(flags, 1), nosa_commands, &script, error);
    if (status == NOSA_OK)
        status = nosa_output_text(&script, error);
    nosa_buffer_free(&script);
    return (int)nosa_exit_from_status(status);
}
