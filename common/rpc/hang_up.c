/* Closing a server's connections from below. */
#include <dirent.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "rpc/server_internal.h"

/* The local port of a connection; 0: it is none. */
static uint16_t local_port(int descriptor)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    int listens = 0;
    socklen_t listens_size = sizeof listens;
    if (getsockname(descriptor, (struct sockaddr *)&address, &size) != 0 ||
        getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &listens, &listens_size) != 0 || listens)
        return 0;
    if (address.ss_family == AF_INET)
        return ntohs(((const struct sockaddr_in *)&address)->sin_port);
    if (address.ss_family == AF_INET6)
        return ntohs(((const struct sockaddr_in6 *)&address)->sin6_port);
    return 0;
}

static bool is_own_port(const struct nosa_rpc_server *server, uint16_t port)
{
    for (size_t i = 0; i < server->port_count; i++)
        if (server->ports[i] == port)
            return true;
    return false;
}

void nosa_rpc_server_hang_up(struct nosa_rpc_server *server)
{
    DIR *folder = opendir("/proc/self/fd");
    if (!folder)
        return;
    for (const struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        int descriptor = atoi(entry->d_name);
        if (is_own_port(server, entry->d_name[0] == '.' ? 0 : local_port(descriptor)))
            (void)shutdown(descriptor, SHUT_RDWR);
    }
    closedir(folder);
}
