/*
 * load: a load generator for a connection cache on a UNIX socket.
 *
 *     load SOCKET [NAME=VALUE]...
 *
 *     work=pair      pair: save_endp and find_endp of a fresh label; save: save_endp alone;
 *                    bind: save_dest
 *     protocol=base  base: that of scache(8); inline: after `hello`
 *     depth=0        inline only: the number of pairs (or saves) in one sendmsg(2);
 *                    0: each request waits for the reply to the previous one
 *     clients=1      connections, each with one exchange in progress
 *     count=0        stop after this number of pairs, saves or bindings, or
 *     ms=0           after this number of milliseconds
 *     warmup=0       milliseconds of the same work before the measurement
 *     together=0     if not 0: seconds from now after which everything expires together
 *     window=0       save only in the first milliseconds of each second of the clock
 *     tag=0          part of all labels, with a running number; 0: the process id
 *
 * One thread with one epoll. The program compares every reply byte by byte and counts every
 * descriptor; a difference ends it with status 1. The results are one line of JSON; times are
 * microseconds:
 *
 *     issued         pairs, saves or bindings, including the warm-up
 *     done, elapsed  pairs, saves or bindings without the warm-up, and their time
 *     each           elapsed divided by done
 *     cpu_share      the part of the time that this program used a processor
 *     find_median, find_worst    from a find to its descriptor, in pairs that are not sent ahead
 *     left           the time until `together`, if it is given
 */
#define _GNU_SOURCE
#include <err.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CLIENTS = 1024, MAX_DEPTH = 253, LABEL = 30, PROPERTY = 20, ROOM = 65536 };
enum { MAX_SAMPLES = 1 << 20, TTL = 3600 /* seconds */ };

struct message {
    char bytes[ROOM];
    size_t length;
    int descriptors;
};

struct client {
    int fd, step, pairs;
    size_t received;
    int received_descriptors;
    char label[LABEL + 1];
    double asked; /* when the find was sent */
    struct message expected;
    char input[ROOM + 2]; /* the rest stays 0, so that input is a string */
};

static const char ANNOUNCEMENT[] = "protocol\0connection_cache_protocol\0";
static const char HELLO[] = "request\0hello\0";
static const char GRANTED[] = "status\0000\0version\0001\0";
static const char DUMMY[] = "dummy\0\0";
static const char STATUS_OK[] = "status\0000\0";

static char *work = "pair", *protocol = "base";
static long depth, clients = 1, count, ms, warmup, together, window, tag;

static struct client *all;
static int epoll, saved; /* `saved` is the descriptor of every save */
static struct message outgoing;
static long issued, stop_after;
static time_t started;
static double stop_at;
static float samples[MAX_SAMPLES];
static long sampled;
static double worst;

static double now(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int is(const char *left, const char *right)
{
    return strcmp(left, right) == 0;
}

/* Messages. If a literal ends with the NUL of a value, its own NUL ends the message. */

static void put(struct message *message, const char *bytes, size_t length)
{
    if (message->length + length > ROOM)
        errx(1, "a message of more than %d bytes", ROOM);
    memcpy(message->bytes + message->length, bytes, length);
    message->length += length;
}

#define PUT(message, literal) put(message, literal, sizeof(literal))

static void put_attribute(struct message *message, const char *name, const char *value)
{
    put(message, name, strlen(name) + 1);
    put(message, value, strlen(value) + 1);
}

/* Labels in pseudo-random order, so that the order of insertion helps no index. */
static void make_label(char *label, uint64_t number)
{
    uint64_t x = number * 0x9e3779b97f4a7c15u + (uint64_t)tag;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    snprintf(label, LABEL + 1, "%016llx.%07lx.%05lx", (unsigned long long)x,
             (unsigned long)tag & 0xfffffff, (unsigned long)number & 0xfffff);
}

static const char *property_of(const char *label)
{
    return label + LABEL - PROPERTY;
}

static void put_save(const char *request, const char *label, const char *endpoint)
{
    char digits[24];
    long seconds = together ? started + together - time(NULL) : TTL;

    if (seconds <= 0)
        errx(1, "the moment of expiry came before everything was saved");
    snprintf(digits, sizeof digits, "%ld", seconds);
    put_attribute(&outgoing, "request", request);
    put_attribute(&outgoing, "ttl", digits);
    put_attribute(&outgoing, "label", label);
    put_attribute(&outgoing, "property", property_of(label));
    if (endpoint)
        put_attribute(&outgoing, "label", endpoint);
    put(&outgoing, "", 1);
}

static void put_find(const char *label)
{
    put_attribute(&outgoing, "request", "find_endp");
    put_attribute(&outgoing, "label", label);
    put(&outgoing, "", 1);
}

static void expect_status(struct client *client)
{
    PUT(&client->expected, STATUS_OK);
}

static void expect_found(struct client *client, const char *label, int descriptors)
{
    put(&client->expected, STATUS_OK, sizeof STATUS_OK - 1);
    put_attribute(&client->expected, "property", property_of(label));
    put(&client->expected, "", 1);
    client->expected.descriptors += descriptors;
}

/* Sockets. */

static void send_outgoing(struct client *client)
{
    union {
        char bytes[CMSG_SPACE(MAX_DEPTH * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {outgoing.bytes, outgoing.length};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};

    if (outgoing.descriptors) {
        size_t size = outgoing.descriptors * sizeof(int);
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(size);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(size);
        for (int i = 0; i < outgoing.descriptors; i++)
            ((int *)CMSG_DATA(rights))[i] = saved;
    }
    if (sendmsg(client->fd, &header, MSG_NOSIGNAL) != (ssize_t)outgoing.length)
        err(1, "cannot send a request");
    outgoing.length = outgoing.descriptors = 0;
}

static void send_dummy(struct client *client)
{
    PUT(&outgoing, DUMMY);
    send_outgoing(client);
}

/* Receive data; close the descriptors that came with it, and count them. */
static void receive(struct client *client)
{
    union {
        char bytes[CMSG_SPACE(MAX_DEPTH * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {client->input + client->received, ROOM - client->received};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
                            .msg_controllen = sizeof control.bytes};
    ssize_t got = recvmsg(client->fd, &header, MSG_CMSG_CLOEXEC);

    if (got <= 0)
        err(1, "the server hung up");
    if (header.msg_flags & MSG_CTRUNC)
        errx(1, "a descriptor was lost on its way");
    client->received += got;
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    for (; rights; rights = CMSG_NXTHDR(&header, rights)) {
        int n = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (int i = 0; i < n; i++)
            close(((int *)CMSG_DATA(rights))[i]);
        client->received_descriptors += n;
    }
}

/* Return 1 if the expected reply is complete; end the program if it is wrong. */
static int satisfied(struct client *client)
{
    const struct message *expected = &client->expected;
    size_t length = client->received < expected->length ? client->received : expected->length;

    if (client->received > expected->length ||
        memcmp(client->input, expected->bytes, length) != 0)
        errx(1, "step %d of a %s in %s protocol: a wrong reply, which begins with %s %s",
            client->step, work, protocol, client->input, client->input + strlen(client->input) + 1);
    if (length < expected->length)
        return 0;
    if (client->received_descriptors != expected->descriptors)
        errx(1, "step %d of a %s in %s protocol: %d descriptors came instead of %d", client->step,
            work, protocol, client->received_descriptors, expected->descriptors);
    client->received = client->expected.length = 0;
    client->received_descriptors = client->expected.descriptors = 0;
    return 1;
}

/* Work. Each function begins an exchange in step 0, takes the next step when the previous reply is
 * complete, and returns 1 if it must wait for another reply. */

static int one_pair(struct client *client)
{
    int base = is(protocol, "base");

    switch (client->step++) {
    case 0:
        put_save("save_endp", client->label, NULL);
        outgoing.descriptors = !base;
        send_outgoing(client);
        if (base)
            PUT(&client->expected, DUMMY);
        else
            expect_status(client);
        client->step += !base;
        return 1;
    case 1:
        put(&outgoing, "", 1);
        outgoing.descriptors = 1;
        send_outgoing(client);
        expect_status(client);
        return 1;
    case 2:
        if (is(work, "save"))
            return 0;
        client->asked = now(CLOCK_MONOTONIC);
        put_find(client->label);
        send_outgoing(client);
        expect_found(client, client->label, !base);
        return 1;
    case 3:
        if (!base)
            return 0;
        send_dummy(client);
        put(&client->expected, "", 1);
        client->expected.descriptors = 1;
        return 1;
    default:
        send_dummy(client);
        return 0;
    }
}

static int ahead(struct client *client)
{
    char label[LABEL + 1];

    if (client->step++)
        return 0;
    for (int i = 0; i < client->pairs; i++) {
        make_label(label, issued - client->pairs + i);
        expect_status(client);
        if (is(work, "bind")) {
            put_save("save_dest", label, "endpoint of them all: 30 bytes");
            continue;
        }
        put_save("save_endp", label, NULL);
        outgoing.descriptors++;
        if (is(work, "pair")) {
            put_find(label);
            expect_found(client, label, 1);
        }
    }
    send_outgoing(client);
    return 1;
}

static int advance(struct client *client)
{
    return depth || is(work, "bind") ? ahead(client) : one_pair(client);
}

static void wait_for_window(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    if (t.tv_nsec / 1000000 >= window) {
        struct timespec rest = {0, 1000000000 - t.tv_nsec};
        nanosleep(&rest, NULL);
    }
}

/* Begin the next exchange; return 0 if there is none left. */
static int begin(struct client *client)
{
    if (stop_after ? issued >= stop_after : now(CLOCK_MONOTONIC) >= stop_at)
        return 0;
    if (window)
        wait_for_window();
    client->step = 0;
    client->pairs = depth ? depth : 1;
    if (stop_after && issued + client->pairs > stop_after)
        client->pairs = stop_after - issued;
    make_label(client->label, issued);
    issued += client->pairs;
    return advance(client);
}

static void take_sample(struct client *client)
{
    double took = now(CLOCK_MONOTONIC) - client->asked;

    client->asked = 0;
    if (sampled < MAX_SAMPLES)
        samples[sampled++] = took;
    if (took > worst)
        worst = took;
}

/* Work until the end is reached and no exchange is in progress. */
static void run(void)
{
    struct epoll_event events[MAX_CLIENTS];
    long busy = 0;

    for (int i = 0; i < clients; i++)
        busy += begin(&all[i]);
    while (busy) {
        int ready = epoll_wait(epoll, events, MAX_CLIENTS, 30000);
        if (ready == 0)
            errx(1, "no reply within 30 s");
        for (int i = 0; i < ready; i++) {
            struct client *client = &all[events[i].data.u32];
            receive(client);
            if (!satisfied(client) || advance(client))
                continue;
            if (client->asked)
                take_sample(client);
            busy -= !begin(client);
        }
    }
}

/* Set-up. */

static void wait_for_reply(struct client *client, const char *reply, size_t length)
{
    while (client->received < length)
        receive(client);
    if (memcmp(client->input, reply, length) != 0)
        errx(1, "an unexpected greeting: %s", client->input);
}

static void say_hello(struct client *client)
{
    PUT(&outgoing, HELLO);
    send_outgoing(client);
    client->received = 0;
    do
        receive(client);
    while (client->received < 2 || client->input[client->received - 1] ||
           client->input[client->received - 2]);
    wait_for_reply(client, GRANTED, sizeof GRANTED - 1);
}

static void open_client(struct client *client, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct epoll_event interest = {.events = EPOLLIN, .data.u32 = client - all};

    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(client->fd, (struct sockaddr *)&address, sizeof address) < 0)
        err(1, "cannot connect to %s", path);
    wait_for_reply(client, ANNOUNCEMENT, sizeof ANNOUNCEMENT);
    if (is(protocol, "inline"))
        say_hello(client);
    client->received = 0;
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &interest) < 0)
        err(1, "epoll_ctl");
}

/* Return one end of a TCP connection, the usual kind of descriptor in a cache. */
static int make_connection(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), end = socket(AF_INET, SOCK_STREAM, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) < 0 ||
        connect(end, (struct sockaddr *)&address, size) < 0 || accept(listener, NULL, NULL) < 0)
        err(1, "cannot make a TCP connection");
    close(listener);
    return end;
}

static long number(const char *value)
{
    char *end;
    long result = strtol(value, &end, 10);

    if (end == value || *end || result < 0)
        errx(1, "not a number: %s", value);
    return result;
}

static void set(char *option)
{
    static const struct {
        const char *name;
        long *value;
    } numbers[] = {{"depth", &depth},   {"clients", &clients},   {"count", &count},
                   {"ms", &ms},         {"warmup", &warmup},     {"together", &together},
                   {"window", &window}, {"tag", &tag}};
    char *value = strchr(option, '=');

    if (!value)
        errx(1, "not NAME=VALUE: %s", option);
    *value++ = '\0';
    if (is(option, "work") && (is(value, "pair") || is(value, "save") || is(value, "bind"))) {
        work = value;
        return;
    }
    if (is(option, "protocol") && (is(value, "base") || is(value, "inline"))) {
        protocol = value;
        return;
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (is(option, numbers[i].name)) {
            *numbers[i].value = number(value);
            return;
        }
    errx(1, "unknown: %s=%s", option, value);
}

static int by_size(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;

    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        errx(1, "usage: load SOCKET [NAME=VALUE]...");
    for (int i = 2; i < argc; i++)
        set(argv[i]);
    if (depth && (is(work, "bind") || is(protocol, "base")))
        errx(1, "depth is for saves and pairs in inline mode");
    if (depth > MAX_DEPTH || clients < 1 || clients > MAX_CLIENTS || !count == !ms)
        errx(1, "needs a sensible depth and number of clients, and either count or ms");
    if (!tag)
        tag = getpid();
    started = time(NULL);
    saved = make_connection();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    all = calloc(clients, sizeof *all);
    if (!all)
        err(1, "no memory");
    for (int i = 0; i < clients; i++)
        open_client(&all[i], argv[1]);

    if (warmup) {
        stop_at = now(CLOCK_MONOTONIC) + warmup * 1e3;
        run();
    }
    long before = issued;
    sampled = 0, worst = 0;
    double cpu = now(CLOCK_PROCESS_CPUTIME_ID), start = now(CLOCK_MONOTONIC);
    stop_after = count ? before + count : 0;
    stop_at = start + ms * 1e3;
    run();
    double elapsed = now(CLOCK_MONOTONIC) - start;
    double share = (now(CLOCK_PROCESS_CPUTIME_ID) - cpu) / elapsed;

    qsort(samples, sampled, sizeof *samples, by_size);
    double left = together ? (started + together) * 1e6 - now(CLOCK_REALTIME) : 0;

    printf("{\"issued\": %ld, \"done\": %ld, \"elapsed\": %.1f, \"each\": %.3f, ", issued,
           issued - before, elapsed, elapsed / (issued - before));
    printf("\"cpu_share\": %.3f, \"find_median\": %.1f, \"find_worst\": %.1f, \"left\": %.1f}\n",
           share, samples[sampled / 2], worst, left);
    return 0;
}
