#include "rpc/address.h"

#include <ctype.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Of what is quoted in errors. */
#define QUOTED_MAX 100

static enum nosa_status refuse(struct nosa_error *error, const char *address, const char *reason)
{
    return nosa_error_set(error, NOSA_INVALID_ARGUMENT, "\"%.*s\" is no HOST:PORT: %s", QUOTED_MAX,
                          address, reason);
}

static bool parse_port(const char *text, uint16_t *port)
{
    size_t digits = strspn(text, "0123456789");
    if (digits == 0 || digits > 5 || text[digits])
        return false;
    unsigned long value = strtoul(text, NULL, 10);
    *port = (uint16_t)value;
    return value <= UINT16_MAX;
}

/* Letters, digits, and what names and numeric addresses have beside them. */
static bool is_host(const char *host, size_t size, bool bracketed)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)host[i];
        if (!isalnum(byte) && byte != '.' && byte != '-' && byte != '_' &&
            !(bracketed && (byte == ':' || byte == '%')))
            return false;
    }
    return size > 0 || !bracketed;
}

enum nosa_status nosa_rpc_address_split(const char *address, char host[NOSA_RPC_HOST_MAX],
                                        uint16_t *port, struct nosa_error *error)
{
    bool bracketed = address[0] == '[';
    const char *begin = address + bracketed;
    const char *end = bracketed ? strchr(begin, ']') : strrchr(address, ':');
    if (!end)
        return refuse(error, address,
                      bracketed ? "the bracket is not closed" : "the port is missing");
    const char *colon = bracketed ? end + 1 : end;
    if (*colon != ':')
        return refuse(error, address, "the port is missing");
    size_t size = (size_t)(end - begin);
    if (size >= NOSA_RPC_HOST_MAX)
        return refuse(error, address, "the host is too long");
    if (!bracketed && memchr(begin, ':', size))
        return refuse(error, address, "an IPv6 address stands in brackets");
    if (!is_host(begin, size, bracketed))
        return refuse(error, address, "the host has characters that no host has");
    if (!parse_port(colon + 1, port))
        return refuse(error, address, "the port is no number of 0-65535");
    memcpy(host, begin, size);
    host[size] = '\0';
    return NOSA_OK;
}

/* "10.0.0.7:50051" or "[fd00::1]:50051"; false when it does not resolve back. */
static bool write_numeric(const struct addrinfo *info, char numeric[NOSA_RPC_ADDRESS_MAX])
{
    char host[NOSA_RPC_HOST_MAX];
    char service[8];
    if (getnameinfo(info->ai_addr, info->ai_addrlen, host, sizeof host, service, sizeof service,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return false;
    bool v6 = info->ai_family == AF_INET6;
    snprintf(numeric, NOSA_RPC_ADDRESS_MAX, "%s%s%s:%s", v6 ? "[" : "", host, v6 ? "]" : "",
             service);
    return true;
}

static bool is_listed(char (*numeric)[NOSA_RPC_ADDRESS_MAX], size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(numeric[i], numeric[count]) == 0)
            return true;
    return false;
}

enum nosa_status nosa_rpc_address_resolve(const char *address,
                                          char (*numeric)[NOSA_RPC_ADDRESS_MAX], size_t capacity,
                                          size_t *count, struct nosa_error *error)
{
    char host[NOSA_RPC_HOST_MAX];
    char service[8];
    uint16_t port;
    *count = 0;
    NOSA_TRY(nosa_rpc_address_split(address, host, &port, error));
    snprintf(service, sizeof service, "%u", port);
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = host[0] ? 0 : AI_PASSIVE};
    struct addrinfo *list = NULL;
    int code = getaddrinfo(host[0] ? host : NULL, service, &hints, &list);
    if (code == EAI_MEMORY)
        return nosa_error_set(error, NOSA_OUT_OF_MEMORY, "no memory to resolve \"%s\"", host);
    if (code != 0) {
        bool unknown = code == EAI_NONAME || code == EAI_NODATA || code == EAI_ADDRFAMILY;
        return nosa_error_set(error, unknown ? NOSA_NOT_FOUND : NOSA_UNAVAILABLE,
                              "cannot resolve \"%s\": %s", host, gai_strerror(code));
    }
    for (const struct addrinfo *info = list; info && *count < capacity; info = info->ai_next)
        if (write_numeric(info, numeric[*count]) && !is_listed(numeric, *count))
            ++*count;
    freeaddrinfo(list);
    return NOSA_OK;
}
