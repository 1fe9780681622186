# Who is at the other end of a TCP connection, and what may he say: `allow-from` and `forwarded-allow`.
#
# Shared by the master and the workers, since either may have accepted the connection. A network is 16 bytes and a number
# of bits, IPv4 as ::ffff:a.b.c.d (RFC 4291 2.5.5.2).

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.stdint cimport uint16_t
from libc.string cimport memcpy

cdef extern from * nogil:
    """
    #include <netinet/in.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/un.h>

    typedef union { struct sockaddr any; struct sockaddr_in v4; struct sockaddr_in6 v6; struct sockaddr_un un; }
        SocketName;
    typedef struct { unsigned char prefix[16]; int bits; } NetworkRule;
    typedef struct {
        NetworkRule *allow, *forwarded;   /* forwarded: whose X-Forwarded-* count; over uwsgi, loopback's always do */
        int allow_count, forwarded_count;
        int forwarded_unix;               /* and those of all who may connect to a unix HTTP socket */
    } Peers;
    typedef enum { STRANGER, TRUSTED, REFUSED } Trust;

    static int address_bytes(const SocketName *name, unsigned char *out) {  /* 0 when it is no IP address */
        if (name->any.sa_family == AF_INET) {
            memset(out, 0, 10); out[10] = out[11] = 0xff;
            memcpy(out + 12, &name->v4.sin_addr, 4);
            return 1;
        }
        if (name->any.sa_family == AF_INET6) { memcpy(out, &name->v6.sin6_addr, 16); return 1; }
        return 0;
    }
    static int in_network(const unsigned char *address, const unsigned char *prefix, int bits) {
        int whole = bits / 8, rest = bits % 8;
        if (memcmp(address, prefix, whole)) return 0;
        return !rest || !((address[whole] ^ prefix[whole]) & (0xff00 >> rest));
    }
    static int matches(const NetworkRule *rules, int count, const unsigned char *address) {
        for (int i = 0; i < count; i++) if (in_network(address, rules[i].prefix, rules[i].bits)) return 1;
        return 0;
    }
    static int is_loopback(const unsigned char *address) {
        static const unsigned char mapped[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff }, one[16] = { [15] = 1 };
        return !memcmp(address, one, 16) || (!memcmp(address, mapped, 12) && address[12] == 127);
    }
    static uint16_t port_of(const SocketName *name) {  /* it stands in the same place for IPv4 and IPv6 */
        return name->any.sa_family == AF_UNIX ? 0 : ntohs(name->v4.sin_port);
    }
    static uint16_t own_port(int fd) {
        SocketName name;
        socklen_t size = sizeof name;
        return getsockname(fd, &name.any, &size) < 0 ? 0 : port_of(&name);
    }
    static int is_forwarded(const Peers *peers, const unsigned char *address) {
        return matches(peers->forwarded, peers->forwarded_count, address);
    }
    /* Of a uwsgi client. */
    static Trust uwsgi_peer(const Peers *peers, const SocketName *name) {
        unsigned char address[16];
        if (!address_bytes(name, address)) return TRUSTED;  /* a unix socket: its permissions have let it in */
        if (peers->allow_count && !matches(peers->allow, peers->allow_count, address)) return REFUSED;
        if (is_loopback(address) || is_forwarded(peers, address)) return TRUSTED;
        return STRANGER;
    }
    /* Of an HTTP client: its headers are its own, loopback or not. */
    static Trust http_peer(const Peers *peers, const SocketName *name) {
        unsigned char address[16];
        if (!address_bytes(name, address)) return peers->forwarded_unix ? TRUSTED : STRANGER;
        return is_forwarded(peers, address) ? TRUSTED : STRANGER;
    }
    """
    struct sockaddr:
        unsigned short sa_family
    enum:
        AF_UNIX
    ctypedef unsigned int socklen_t
    ctypedef union SocketName:
        sockaddr any
    ctypedef struct NetworkRule:
        unsigned char prefix[16]
        int bits
    ctypedef struct Peers:
        NetworkRule *allow
        NetworkRule *forwarded
        int allow_count, forwarded_count, forwarded_unix
    ctypedef enum Trust:
        STRANGER
        TRUSTED
        REFUSED
    int accept4(int listener, sockaddr *name, socklen_t *size, int flags)
    int address_bytes(const SocketName *name, unsigned char *out)
    uint16_t port_of(const SocketName *name)
    uint16_t own_port(int fd)
    bint is_forwarded(const Peers *peers, const unsigned char *address)
    Trust uwsgi_peer(const Peers *peers, const SocketName *name)
    Trust http_peer(const Peers *peers, const SocketName *name)


cdef inline NetworkRule *network_rules(prefixes) except? NULL:
    """(16 bytes, number of bits) each: settings.prefix_of."""
    cdef NetworkRule *rules = <NetworkRule *>PyMem_RawCalloc(1 + len(prefixes), sizeof(NetworkRule))
    cdef int i
    if rules == NULL:
        raise MemoryError
    for i, (prefix, bits) in enumerate(prefixes):
        memcpy(rules[i].prefix, PyBytes_AS_STRING(prefix), 16)
        rules[i].bits = bits
    return rules


cdef inline int set_peers(Peers *peers, allow_from, forwarded_allow) except -1:
    peers.allow, peers.allow_count = network_rules(allow_from), len(allow_from)
    networks = [rule for rule in forwarded_allow if rule[1] >= 0]
    peers.forwarded, peers.forwarded_count = network_rules(networks), len(networks)
    peers.forwarded_unix = len(networks) < len(forwarded_allow)
    return 0


cdef inline void free_peers(Peers *peers):
    PyMem_RawFree(peers.allow)
    PyMem_RawFree(peers.forwarded)
