/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nsrun-forward passes connections and datagrams from ports of the host on into a pod, where NAT can't: from ::1, past a
 * firewall that drops what is forwarded, for a pod that was made without root, or one that has no network.
 *
 *   nsrun-forward pause=PIDFD [user=1] [alive=FD] [uid=N gid=N] [to=ADDRESS] [ready=FD] tcp=FD:PORT… udp=FD:PORT…
 *     pause, alive   it ends when one of them becomes readable (see door.c); pause's network namespace is the pod's
 *     user           the pod's user namespace is to be joined as well, since we have no power otherwise
 *     uid, gid       when root starts it, it becomes that user
 *     to             an IPv4 address of the pod; without it, the one that the pod itself would send from
 *     tcp, udp       a socket that listens on the host, or is bound there; what comes is passed on to PORT of the pod
 *     ready          a descriptor to which it writes an int32: 0 when it is at work, or -errno
 *
 * It goes into the pod's network namespace for good.  A socket keeps the namespace in which it was made (an accepted one has
 * its listener's), so the sockets that it inherits stay the host's, and those that it makes are the pod's: a connection
 * comes in on the one and goes out on the other, through lo of the pod and past every firewall.  Then it gives up all
 * privileges; a filter leaves it the few system calls that it makes from there on.  The pod's members can't see it.
 *
 * Nothing is read here that could be misunderstood: what is passed on is never looked at.  Memory is bounded:
 *
 *   - A connection that is idle has two sockets and 40 bytes.  What the kernel keeps of one that is not read is bounded by
 *     the buffers of its sockets; we do not read what we can't pass on, so the sender sees a window that closes.
 *   - What was taken and could not be passed on stays in a pipe that belongs to its direction until then: 1 MiB for the
 *     first MAX_LARGE with much data, and 64 KiB for others.  When MAX_PIPES are in use, the other connections are copied by
 *     way of one buffer, without taking more than goes out.  So those that do not read hold up nobody else.
 *   - When there are MAX_CONNS connections, or as many as RLIMIT_NOFILE allows, the one that was idle longest is reset.
 *   - UDP has MAX_CLIENTS clients (addresses); the one that was idle longest is dropped for a new one, and each after
 *     UDP_SECONDS without a datagram.
 *
 * FIN is passed on as FIN, in each direction by itself, RST as RST, and urgent data as urgent data.  We can't wait with
 * accepting a connection until the pod has, so one that the pod refuses is accepted and reset at once.  Nobody learns that a
 * datagram was refused.
 */
#include "sys.h"

#include "session.h"

#include <linux/audit.h>
#include <linux/eventpoll.h>
#include <linux/filter.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ipv6.h>
#include <linux/seccomp.h>

#define MAX_CONNS   16384
#define MAX_CLIENTS 1024
#define MAX_PIPES   256
#define SPARE_PIPES 2         /* empty ones that are kept */
#define MAX_LARGE   32        /* of pipes; all of one process have less than a user's pipe-user-pages-soft: pipe(7) */
#define LARGE       (1 << 20) /* pipe-max-size: with the usual 64 KiB, much data flows half as fast */
#ifndef UDP_SECONDS
#define UDP_SECONDS 120
#endif
#define ROUNDS   8  /* of one connection, before others have their turn; each 128 KiB are one more */
#define EVENTS   64 /* of one round */
#define ACCEPTS  32 /* of one listener, likewise */
#define BATCH    16 /* datagrams */
#define DATAGRAM 65536
#define SMALL    2048 /* what is copied, since that costs less than two splices and the one that says EAGAIN */
#define NONE     (~0U)

#define SOCK_NONBLOCK   O_NONBLOCK
#define SHUT_WR         1
#define MSG_OOB         1
#define MSG_PEEK        2
#define MSG_TRUNC       0x20
#define SOL_IP          0
#define SOL_TCP         6
#define SOL_IPV6        41
#define TCP_NODELAY     1
#define SPLICE_MOVE     1
#define SPLICE_NONBLOCK 2
#define MADV_DONTNEED   4

enum kind { CONN,
	        TCP,
	        UDP,
	        CLIENT,
	        PAUSE };

/* What epoll gives back: kind, generation (an event of what was closed in the same round must not hit what came after), index, side. */
static uint64_t tag(enum kind kind, uint32_t generation, uint32_t index, int side)
{
	return (uint64_t)kind << 60 | (uint64_t)(generation & 0xffffff) << 32 | (uint64_t)index << 1 | (uint64_t)side;
}

static long epoll;

static long watch(int fd, uint32_t events, uint64_t data)
{
	struct epoll_event event = {.events = events, .data = data};
	return SYS4(epoll_ctl, epoll, EPOLL_CTL_ADD, fd, &event);
}

/* ---- lists: what was used longest ago is first ------------------------------------------------------- */

struct link {
	uint32_t older, newer;
};
struct list {
	uint32_t oldest, newest;
};

#define LINK(base, size, at) ((struct link *)((char *)(base) + (size_t)(at) * (size)))

static void leave(struct list *list, void *base, size_t size, uint32_t at)
{
	struct link *l = LINK(base, size, at);
	*(l->older == NONE ? &list->oldest : &LINK(base, size, l->older)->newer) = l->newer;
	*(l->newer == NONE ? &list->newest : &LINK(base, size, l->newer)->older) = l->older;
}

static void enter(struct list *list, void *base, size_t size, uint32_t at)
{
	struct link *l = LINK(base, size, at);
	l->older = list->newest, l->newer = NONE;
	*(list->newest == NONE ? &list->oldest : &LINK(base, size, list->newest)->newer) = at;
	list->newest = at;
}

static void touch(struct list *list, void *base, size_t size, uint32_t at)
{
	if (list->newest == at)
		return;
	leave(list, base, size, at);
	enter(list, base, size, at);
}

/* ---- what is published ------------------------------------------------------------------------------- */

struct published {
	int fd; /* -1: withdrawn */
	uint16_t port, udp; /* the port in network order */
};

static struct published *ports;
static uint32_t n_ports, n_open; /* of them, those that were not withdrawn */
static uint32_t to; /* in network order, as what follows */

static uint16_t swap16(uint16_t v)
{
	return (uint16_t)(v << 8 | v >> 8);
}

/* A socket in the pod that is connected, or about to be. */
static long connect_to(int type, uint16_t port)
{
	const struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = port, .sin_addr = {to}};
	const int on = 1;
	long r, fd = SYS3(socket, AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	MUST(fd);
	if (type == SOCK_STREAM) {
		SYS5(setsockopt, fd, SOL_TCP, TCP_NODELAY, &on, sizeof on);
		SYS5(setsockopt, fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
	}
	r = SYS3(connect, fd, &there, sizeof there);
	if (r == 0 || r == -EINPROGRESS)
		return fd;
	SYS1(close, fd);
	return r;
}

/* ---- TCP --------------------------------------------------------------------------------------------- */

/* Flags of a connection, for side 0 (the client) and 1 (the pod). */
#define READABLE(side) (1U << (side))   /* until it has said EAGAIN */
#define WRITABLE(side) (4U << (side))   /* likewise */
#define ENDED(side)    (16U << (side))  /* it has sent FIN */
#define SHUT(side)     (64U << (side))  /* we have sent FIN to it */
#define CONNECTED      256U
#define QUEUED         512U
#define LIVE           1024U
#define ENDING(side)   (2048U << (side)) /* epoll(7) has told of its FIN, so a short read does not mean that there is no more */
#define BULK(side)     (8192U << (side)) /* it has sent more than SMALL at once */
#define URGENT(side)   (32768U << (side)) /* it has sent urgent data, at which splice(2) would stop for ever */
#define FRESH(side)    (131072U << (side)) /* its next byte was there when epoll(7) told of no urgent one */
#define TAKEN(side)    (524288U << (side)) /* something was taken from it since, by an event of the other side */

struct conn {
	struct link link;
	int fd[2];
	uint32_t held[2]; /* bytes from that side which are in its pipe */
	uint16_t pipe[2]; /* 1 + which, 0: none */
	uint32_t flags, generation;
	uint32_t next; /* 1 + index: of those that wait for their turn, or that are free */
};

static struct conn *conns;
#define ROOM (MAX_CONNS + EVENTS * ACCEPTS) /* those that wait in the queue are free only when that was served */
static uint32_t max_conns, n_conns;
static uint32_t fresh_conns; /* those from here on were never used */
static uint32_t free_conn;   /* 1 + index */
static struct list by_use = {NONE, NONE};
static uint32_t first_queued, last_queued; /* 1 + index */
static uint32_t n_pipes, n_spare, n_closed;
static uint16_t spare[SPARE_PIPES]; /* 1 + index: the empty ones, which are open */
static int (*pipes)[2];
static uint8_t *large;           /* which ones are */
static uint32_t n_large;
static uint16_t *closed;         /* likewise: those that were closed again */
static char (*data)[DATAGRAM];   /* BATCH of them */

/* Return 1 + the number of an empty pipe, or 0. */
static uint16_t take_pipe(void)
{
	uint16_t at;

	if (n_spare)
		return spare[--n_spare];
	if (n_closed)
		at = closed[--n_closed];
	else if (n_pipes < MAX_PIPES)
		at = (uint16_t)++n_pipes;
	else
		return 0;
	if (SYS2(pipe2, pipes[at - 1], O_CLOEXEC | O_NONBLOCK) >= 0)
		return at;
	closed[n_closed++] = at;
	return 0;
}

static void close_pipe(uint16_t at)
{
	SYS1(close, pipes[at - 1][0]);
	SYS1(close, pipes[at - 1][1]);
	n_large -= large[at - 1], large[at - 1] = 0;
	closed[n_closed++] = at;
}

static void give_pipe(uint16_t at, uint32_t held)
{
	if (at && !held && n_spare < SPARE_PIPES)
		spare[n_spare++] = at;
	else if (at)
		close_pipe(at);
}

/* Make it large, if there is one that may be. */
static void enlarge(uint16_t at)
{
	if (large[at - 1] || n_large >= MAX_LARGE || SYS3(fcntl, pipes[at - 1][0], F_SETPIPE_SZ, LARGE) < 0)
		return;
	large[at - 1] = 1, n_large++;
}

static void drop_pipe(struct conn *c, int side)
{
	give_pipe(c->pipe[side], c->held[side]);
	c->pipe[side] = 0, c->held[side] = 0;
}

static void queue(uint32_t at)
{
	struct conn *c = conns + at;

	if (c->flags & QUEUED)
		return;
	c->flags |= QUEUED, c->next = 0;
	*(last_queued ? &conns[last_queued - 1].next : &first_queued) = at + 1;
	last_queued = at + 1;
}

static void close_with(int fd, int reset)
{
	static const int now[2] = {1, 0}; /* struct linger: on, no time: RST */

	if (reset)
		SYS5(setsockopt, fd, SOL_SOCKET, SO_LINGER, now, sizeof now);
	SYS1(close, fd);
}

static void end_conn(uint32_t at, int reset)
{
	struct conn *c = conns + at;

	for (int side = 0; side < 2; side++) {
		drop_pipe(c, side);
		close_with(c->fd[side], reset);
	}
	leave(&by_use, conns, sizeof *conns, at);
	c->generation++, n_conns--;
	c->flags &= QUEUED;
	if (!c->flags) /* else the queue has it still, and frees it */
		c->next = free_conn, free_conn = at + 1;
}

/* After a round, when nobody waits and no event is left: give back large pipes, and the memory of many connections that have gone. */
static void tidy(void)
{
	if (n_conns || first_queued)
		return;
	while (n_large)
		close_pipe(spare[--n_spare]); /* without a connection, all that are open are spare */
	if (fresh_conns < 256)
		return;
	SYS3(madvise, conns, ROOM * sizeof *conns, MADV_DONTNEED);
	free_conn = fresh_conns = 0;
}

static long splice(int from, int into, size_t size)
{
	return SYS(splice, from, NULL, into, NULL, size, SPLICE_MOVE | SPLICE_NONBLOCK);
}

/* The next byte of this socket, which has SO_OOBINLINE, is the urgent one.  -errno, such as EAGAIN: there is none.  tcp(7) */
static long at_mark(int fd)
{
	char byte;
	int at = 0;
	const long n = SYS(recvfrom, fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT, NULL, NULL); /* it must be there, or the answer is of none */

	if (n > 0)
		SYS3(ioctl, fd, SIOCATMARK, &at);
	return n < 0 ? n : at;
}

/* Pass on as much as the other side takes, and take no more than that: for when there is no pipe, and where there is urgent
 * data, of which a pipe would not keep the mark. */
static long copy(int from, int into)
{
	const long urgent = at_mark(from);
	long sent, n;

	MUST(urgent);
	n = SYS(recvfrom, from, data[0], urgent ? 1 : DATAGRAM, MSG_PEEK | MSG_DONTWAIT, NULL, NULL);
	if (n <= 0)
		return n;
	sent = SYS(sendto, into, data[0], n, MSG_DONTWAIT | MSG_NOSIGNAL | (urgent ? MSG_OOB : 0), NULL, 0);
	if (sent == -EAGAIN)
		return -ENOSPC;
	if (sent > 0)
		SYS(recvfrom, from, data[0], sent, MSG_TRUNC | MSG_DONTWAIT, NULL, NULL); /* of TCP: discard */
	return sent ? sent : -EIO;
}

/* Pass on little, which is not looked at before it is taken: what does not go out is put into the pipe, which is empty. */
static long pass_small(struct conn *c, int side)
{
	char buffer[SMALL];
	const int from = c->fd[side], into = c->fd[!side];
	long sent, n = c->flags & FRESH(side) ? 0 : at_mark(from);

	MUST(n);
	if (n > 0) {
		c->flags |= URGENT(side);
		return copy(from, into);
	}
	n = SYS(recvfrom, from, buffer, sizeof buffer, MSG_DONTWAIT, NULL, NULL);
	if (n <= 0)
		return n;
	if (n == sizeof buffer)
		c->flags |= BULK(side);
	else if (!(c->flags & ENDING(side)))
		c->flags &= ~READABLE(side);
	sent = SYS(sendto, into, buffer, n, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0);
	if (sent == -EAGAIN)
		sent = 0;
	if (sent < 0)
		return sent;
	if (sent < n) {
		c->flags &= ~WRITABLE(!side);
		if (SYS3(write, pipes[c->pipe[side] - 1][1], buffer + sent, n - sent) != n - sent)
			return -EIO;
		c->held[side] = (uint32_t)(n - sent);
	}
	return n;
}

/* Take from `side` what can be passed on.  Returns the number of bytes that are in its pipe or have gone out, 0: none, -errno. */
static long take_from(struct conn *c, int side)
{
	long n;

	if (!(c->flags & READABLE(side)) || !(c->flags & WRITABLE(!side)))
		return 0;
	if (!c->pipe[side] && !(c->flags & URGENT(side)))
		c->pipe[side] = take_pipe();
	if (!c->pipe[side] || c->flags & URGENT(side)) {
		n = copy(c->fd[side], c->fd[!side]);
	} else if (!(c->flags & BULK(side))) {
		n = pass_small(c, side);
	} else {
		enlarge(c->pipe[side]);
		n = splice(c->fd[side], pipes[c->pipe[side] - 1][1], LARGE);
		if (n > 0)
			c->held[side] = (uint32_t)n;
		if (n < SMALL)
			c->flags &= ~BULK(side);
		if (n == 0) /* the end, or urgent data before it */
			n = pass_small(c, side);
	}
	if (n > 0)
		c->flags = (c->flags & ~FRESH(side)) | TAKEN(side);
	if (n == -EAGAIN)
		c->flags &= ~READABLE(side);
	else if (n == -ENOSPC)
		c->flags &= ~WRITABLE(!side);
	else if (n == 0)
		c->flags |= ENDED(side);
	else
		return n;
	return 0;
}

/* Pass on what `side` has sent.  0: there is nothing to do now; 1: there is, when others had their turn; below: it has failed. */
static long pass_on(struct conn *c, int side)
{
	const int into = c->fd[!side];
	long n;

	for (long round = 0; round < ROUNDS; round++) {
		if (!c->held[side]) {
			n = c->flags & ENDED(side) ? 0 : take_from(c, side);
			if (n <= 0)
				drop_pipe(c, side);
			if (n < 0)
				return n;
			if (n == 0) {
				if (c->flags & ENDED(side) && !(c->flags & SHUT(!side))) {
					MUST(SYS2(shutdown, into, SHUT_WR));
					c->flags |= SHUT(!side);
				}
				return 0;
			}
		}
		if (c->held[side]) {
			if (!(c->flags & WRITABLE(!side)))
				return 0; /* it keeps the pipe */
			n = splice(pipes[c->pipe[side] - 1][0], into, c->held[side]);
			if (n == -EAGAIN) {
				c->flags &= ~WRITABLE(!side);
				return 0;
			}
			if (n <= 0)
				return n ? n : -EIO;
			c->held[side] -= (uint32_t)n, round += n >> 17;
		}
	}
	if (!c->held[side])
		drop_pipe(c, side);
	return 1;
}

static void serve(uint32_t at)
{
	struct conn *c = conns + at;
	int more = 0;

	if (!(c->flags & CONNECTED))
		return;
	for (int side = 0; side < 2; side++) {
		long r = pass_on(c, side);
		if (r < 0) {
			end_conn(at, 1);
			return;
		}
		more |= r > 0;
	}
	if (c->flags & SHUT(0) && c->flags & SHUT(1))
		end_conn(at, 0);
	else if (more)
		queue(at);
}

static void on_conn(uint32_t at, int side, uint32_t events)
{
	struct conn *c = conns + at;

	touch(&by_use, conns, sizeof *conns, at);
	if (events & EPOLLERR) { /* reset, refused, timed out: pass on what came before, as far as it goes, then RST */
		if (c->flags & CONNECTED) {
			c->flags |= READABLE(side);
			if (!c->held[side] || c->flags & WRITABLE(!side))
				pass_on(c, side);
		}
		end_conn(at, 1);
		return;
	}
	if (events & (EPOLLRDHUP | EPOLLHUP))
		c->flags |= ENDING(side);
	if (events & EPOLLPRI)
		c->flags |= URGENT(side);
	if (events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP))
		c->flags |= READABLE(side);
	if (events & (EPOLLOUT | EPOLLHUP)) {
		c->flags |= WRITABLE(side);
		if (side == 1 && events & EPOLLOUT)
			c->flags |= CONNECTED;
	}
	if (events & EPOLLIN && !(events & EPOLLPRI) && !(c->flags & TAKEN(side)))
		c->flags |= FRESH(side);
	serve(at);
	c->flags &= ~TAKEN(side); /* no other event of this side is left */
}

/* Take a connection in; 0: there was none, or it could not be had. */
static int admit(const struct published *p)
{
	const uint32_t events = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET;
	long pod, client = SYS4(accept4, p->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct conn *c;
	uint32_t at;

	if (client == -EMFILE && n_conns)
		end_conn(by_use.oldest, 1);
	if (client == -ENFILE || client == -ENOMEM || client == -ENOBUFS || client == -EMFILE) {
		const struct timespec pace = {0, 10000000}; /* 10 ms, since it would be ready at once */
		SYS5(ppoll, NULL, 0, &pace, NULL, 0);
	}
	if (client < 0)
		return client == -ECONNABORTED || client == -EINTR;
	pod = connect_to(SOCK_STREAM, p->port);
	if (pod < 0) {
		close_with((int)client, 1);
		return 1;
	}
	if (n_conns == max_conns)
		end_conn(by_use.oldest, 1);
	at = free_conn ? free_conn - 1 : fresh_conns++;
	c = conns + at;
	if (free_conn)
		free_conn = c->next;
	n_conns++;
	c->flags = LIVE;
	c->fd[0] = (int)client, c->fd[1] = (int)pod;
	enter(&by_use, conns, sizeof *conns, at);
	for (int side = 0; side < 2; side++)
		if (watch(c->fd[side], events, tag(CONN, c->generation, at, side)) < 0) {
			end_conn(at, 1);
			return 1;
		}
	return 1;
}

static void serve_queue(void)
{
	uint32_t at = first_queued, next;

	first_queued = last_queued = 0;
	for (; at; at = next) {
		struct conn *c = conns + at - 1;
		next = c->next;
		c->flags &= ~QUEUED;
		if (c->flags & LIVE)
			serve(at - 1);
		else
			c->next = free_conn, free_conn = at;
	}
}

/* ---- UDP --------------------------------------------------------------------------------------------- */

union address {
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

struct client {
	struct link link;
	int fd;      /* -1: free, and `chain` the next free one */
	uint32_t chain, bucket;  /* the next with the same hash */
	uint32_t port;           /* index of what it sends to */
	uint32_t used, generation;
	union address from;
	struct in6_addr here;    /* the address there, of IPv4 in the first 4 bytes; zeros: it is not known */
};

/* What recvmmsg(2) and sendmmsg(2) take; the address on the host is in `control`. */
struct datagram { /* struct mmsghdr */
	struct message head;
	unsigned size;
};
struct on_address {
	struct control head;
	union {
		struct in_pktinfo v4;
		struct in6_pktinfo v6;
	};
	int padding;
};

static struct client *clients;
static uint32_t *buckets; /* MAX_CLIENTS: 1 + index */
static uint32_t fresh_clients, free_client = NONE, n_clients, now;
static struct list by_datagram = {NONE, NONE};

static void set_now(void)
{
	struct timespec ts = {0};
	SYS2(clock_gettime, CLOCK_MONOTONIC, &ts);
	now = (uint32_t)ts.tv_sec;
}

static void end_client(uint32_t at)
{
	struct client *c = clients + at;
	uint32_t *where = buckets + c->bucket;

	while (*where != at + 1)
		where = &clients[*where - 1].chain;
	*where = c->chain;
	SYS1(close, c->fd);
	leave(&by_datagram, clients, sizeof *clients, at);
	c->fd = -1, c->generation++, c->chain = free_client;
	free_client = at, n_clients--;
	if (!n_clients)
		SYS3(madvise, data, BATCH * DATAGRAM, MADV_DONTNEED);
}

/* End those that have been silent; return the milliseconds until the next is due, -1: there is none. */
static int expire(void)
{
	if (!n_clients)
		return -1;
	set_now();
	while (n_clients && now - clients[by_datagram.oldest].used >= UDP_SECONDS)
		end_client(by_datagram.oldest);
	return n_clients ? (int)(UDP_SECONDS - (now - clients[by_datagram.oldest].used)) * 1000 : -1;
}

/* Return the index of the client with this address, which is made if there is none; NONE: it could not be had. */
static uint32_t client_of(uint32_t port, const union address *from, unsigned size, const struct in6_addr *here)
{
	uint32_t hash = port * 31, at;
	union address key = {0};
	struct client *c;
	long fd;

	memcpy(&key, from, size < sizeof key ? size : sizeof key);
	if (key.v4.sin_family == AF_INET)
		memset((char *)&key + 8, 0, sizeof key - 8);
	else
		key.v6.sin6_flowinfo = 0;
	for (unsigned i = 0; i < sizeof key; i++)
		hash = (hash ^ ((const uint8_t *)&key)[i]) * 16777619U;
	for (unsigned i = 0; i < sizeof *here; i++)
		hash = (hash ^ here->s6_addr[i]) * 16777619U;
	hash = (hash ^ hash >> 15) % MAX_CLIENTS;
	for (at = buckets[hash]; at; at = clients[at - 1].chain) {
		c = clients + at - 1;
		if (c->port == port && memcmp(&c->here, here, sizeof *here) == 0 && memcmp(&c->from, &key, sizeof key) == 0) {
			touch(&by_datagram, clients, sizeof *clients, at - 1);
			c->used = now;
			return at - 1;
		}
	}
	if (n_clients == MAX_CLIENTS)
		end_client(by_datagram.oldest);
	fd = connect_to(SOCK_DGRAM, ports[port].port);
	if (fd < 0)
		return NONE;
	if (free_client == NONE) {
		at = fresh_clients++;
	} else {
		at = free_client;
		free_client = clients[at].chain;
	}
	c = clients + at;
	n_clients++;
	c->fd = (int)fd, c->bucket = hash, c->port = port, c->here = *here, c->used = now, c->from = key;
	c->chain = buckets[hash];
	buckets[hash] = at + 1;
	enter(&by_datagram, clients, sizeof *clients, at);
	if (watch(c->fd, EPOLLIN, tag(CLIENT, c->generation, at, 0)) < 0) {
		end_client(at);
		return NONE;
	}
	return at;
}

static void send_all(int fd, struct datagram *what, int n)
{
	int again = 1;

	while (n > 0) {
		long sent = SYS4(sendmmsg, fd, what, n, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent == -ECONNREFUSED && again--)
			continue; /* that was about an earlier datagram */
		if (sent <= 0)
			sent = 1; /* this one is lost */
		again = 1, what += sent, n -= (int)sent;
	}
}

static struct datagram *batch; /* BATCH of each */
static struct iov *pieces;
static union address *senders;
static struct on_address *heres;

static long receive(int fd, int names)
{
	for (int i = 0; i < BATCH; i++) {
		pieces[i] = (struct iov){data[i], DATAGRAM};
		batch[i].head = (struct message){.iov = pieces + i, .n_iov = 1};
		if (names) {
			batch[i].head.name = senders + i, batch[i].head.name_len = sizeof *senders;
			batch[i].head.control = heres + i, batch[i].head.control_len = sizeof *heres;
		}
	}
	return SYS5(recvmmsg, fd, batch, BATCH, MSG_DONTWAIT, NULL);
}

/* Return the address of the host to which a datagram was sent; zeros: nobody said so, or it is a group's.  ip(7), ipv6(7) */
static struct in6_addr told_address(const struct message *m, const struct on_address *at)
{
	struct in6_addr here = {0};

	if (m->control_len >= sizeof at->head + sizeof at->v4 && at->head.level == SOL_IP && at->head.type == IP_PKTINFO)
		memcpy(&here, &at->v4.ipi_spec_dst, sizeof at->v4.ipi_spec_dst);
	else if (m->control_len >= sizeof at->head + sizeof at->v6 && at->head.level == SOL_IPV6 && at->head.type == IPV6_PKTINFO && at->v6.ipi6_addr.s6_addr[0] != 0xff)
		here = at->v6.ipi6_addr;
	return here;
}

/* Write to `at` from which address a datagram is to be sent.  Returns the length for a message; 0: the kernel may choose. */
static unsigned tell_address(struct on_address *at, const struct client *c)
{
	static const struct in6_addr any = {0};
	const int six = c->from.v4.sin_family != AF_INET;

	if (memcmp(&c->here, &any, sizeof any) == 0)
		return 0;
	memset(at, 0, sizeof *at);
	at->head = (struct control){sizeof at->head + (six ? sizeof at->v6 : sizeof at->v4), six ? SOL_IPV6 : SOL_IP, six ? IPV6_PKTINFO : IP_PKTINFO};
	if (six)
		at->v6.ipi6_addr = c->here;
	else
		memcpy(&at->v4.ipi_spec_dst, &c->here, sizeof at->v4.ipi_spec_dst);
	return sizeof *at;
}

/* From clients on the host, to the pod. */
static void on_udp(uint32_t port)
{
	uint32_t whose[BATCH];
	long n = receive(ports[port].fd, 1);

	set_now();
	for (int i = 0; i < n; i++) {
		const struct message *m = &batch[i].head;
		const struct in6_addr here = told_address(m, heres + i);
		whose[i] = client_of(port, senders + i, m->name_len, &here);
		pieces[i].len = batch[i].size;
		batch[i].head = (struct message){.iov = pieces + i, .n_iov = 1};
	}
	for (int i = 0, end; i < n; i = end) { /* those of one client together */
		for (end = i + 1; end < n && whose[end] == whose[i]; end++)
			;
		if (whose[i] != NONE && clients[whose[i]].fd >= 0)
			send_all(clients[whose[i]].fd, batch + i, end - i);
	}
}

/* From the pod, to a client on the host: from the address to which that has sent. */
static void on_client(uint32_t at)
{
	struct client *c = clients + at;
	struct on_address here;
	const unsigned size = tell_address(&here, c);
	long n = receive(c->fd, 0);

	set_now();
	touch(&by_datagram, clients, sizeof *clients, at);
	c->used = now;
	for (int i = 0; i < n; i++) {
		pieces[i].len = batch[i].size;
		batch[i].head.name = &c->from;
		batch[i].head.name_len = c->from.v4.sin_family == AF_INET ? sizeof c->from.v4 : sizeof c->from.v6;
		if (size)
			batch[i].head.control = &here, batch[i].head.control_len = size;
	}
	if (n > 0 && ports[c->port].fd >= 0)
		send_all(ports[c->port].fd, batch, (int)n);
}

/* ---- the loop ---------------------------------------------------------------------------------------- */

/*
 * `port rm` has shut the socket down (shutdown(2), by way of pidfd_getfd(2)): we let the port go.  Connections stay; without
 * any, we end with the last port.
 */
static void withdraw(uint32_t port)
{
	struct epoll_event none = {0};

	if (!--n_open && !n_conns)
		sys_exit(0);
	for (uint32_t at = 0; at < fresh_clients; at++)
		if (clients[at].fd >= 0 && clients[at].port == port)
			end_client(at);
	SYS4(epoll_ctl, epoll, EPOLL_CTL_DEL, ports[port].fd, &none); /* who shut it down may have it open, too */
	SYS1(close, ports[port].fd);
	ports[port].fd = -1;
}

static void on_event(const struct epoll_event *event)
{
	const uint32_t at = (uint32_t)event->data >> 1, generation = event->data >> 32 & 0xffffff;

	switch ((enum kind)(event->data >> 60)) {
	case CONN:
		if (conns[at].flags & LIVE && (conns[at].generation & 0xffffff) == generation)
			on_conn(at, event->data & 1, event->events);
		break;
	case TCP:
		if (event->events & (EPOLLHUP | EPOLLERR))
			withdraw(at);
		else
			for (int i = 0; i < ACCEPTS && admit(ports + at); i++)
				;
		break;
	case UDP:
		if (event->events & EPOLLHUP)
			withdraw(at);
		else
			on_udp(at);
		break;
	case CLIENT:
		if (clients[at].fd >= 0 && (clients[at].generation & 0xffffff) == generation)
			on_client(at);
		break;
	case PAUSE:
		sys_exit(0);
	}
}

static __attribute__((noreturn)) void loop(void)
{
	struct epoll_event events[EVENTS];

	for (;;) {
		const int patience = first_queued ? 0 : expire();
		long n = SYS(epoll_pwait, epoll, events, EVENTS, patience, NULL, sizeof(sigbits));
		for (int i = 0; i < n; i++)
			on_event(events + i);
		serve_queue();
		tidy();
		if (!n_open && !n_conns)
			sys_exit(0);
	}
}

/* ---- the beginning ----------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#else
#define ARCH AUDIT_ARCH_AARCH64
#endif

/* From here on only the calls of the loop can be made, and some of them only with one value of an argument.  seccomp(2) */
static long confine(void)
{
	static const uint16_t calls[] = {
		__NR_accept4, __NR_clock_gettime, __NR_close, __NR_connect, __NR_epoll_ctl, __NR_epoll_pwait, __NR_exit_group,
		__NR_madvise, __NR_pipe2, __NR_ppoll, __NR_recvfrom, __NR_recvmmsg, __NR_restart_syscall, __NR_sendmmsg, __NR_sendto,
		__NR_setsockopt, __NR_shutdown, __NR_splice, __NR_write};
	static const struct {
		uint16_t call, argument;
		uint32_t value;
	} one[] = {{__NR_socket, 0, AF_INET}, {__NR_ioctl, 1, SIOCATMARK}, {__NR_fcntl, 1, F_SETPIPE_SZ}};
	enum { N = sizeof calls / sizeof *calls,
		   M = sizeof one / sizeof *one,
		   KILL = 3 + N + 3 * M,
		   ALLOW,
		   LENGTH };
#define TEST(at, value, yes, no) \
	(struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, (uint8_t)((yes) - (at) - 1), (uint8_t)((no) - (at) - 1))
	struct sock_filter code[LENGTH] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		TEST(1, ARCH, 2, KILL),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		[KILL] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {LENGTH, code};
	int at = 3;

	for (int i = 0; i < N; i++, at++)
		code[at] = TEST(at, calls[i], ALLOW, at + 1);
	for (int i = 0; i < M; i++, at += 3) {
		const uint32_t argument = offsetof(struct seccomp_data, args) + one[i].argument * 8U;
		code[at] = TEST(at, one[i].call, at + 1, i < M - 1 ? at + 3 : KILL);
		code[at + 1] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument);
		code[at + 2] = TEST(at + 2, one[i].value, ALLOW, KILL);
	}
	MUST(SYS5(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	return SYS3(seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

/* Room for the descriptors of all connections, or as many as are allowed. */
static void make_room(void)
{
	const uint64_t others = n_ports + MAX_CLIENTS + 2 * MAX_PIPES + 64, wanted = others + 2 * MAX_CONNS;
	struct limit l = {0};

	SYS4(prlimit64, 0, RLIMIT_NOFILE, NULL, &l);
	if (l.hard < wanted) {
		const struct limit more = {wanted, wanted};
		if (SYS4(prlimit64, 0, RLIMIT_NOFILE, &more, NULL) >= 0) /* root may */
			l = more;
	}
	if (l.hard > wanted)
		l.hard = wanted;
	l.soft = l.hard;
	SYS4(prlimit64, 0, RLIMIT_NOFILE, &l, NULL);
	max_conns = l.hard > others + 128 ? (uint32_t)(l.hard - others) / 2 : 64;
}

/*
 * All connections have the same two addresses, so a client that opens and closes many would use up the 28,000 ports between
 * them: they stay in TIME_WAIT for a minute.  With tcp_tw_reuse they are used again after a second (tcp(7)); the kernel has
 * that for 127.0.0.1 as it is (2).  What somebody else has chosen stays.
 */
static void use_ports_again(void)
{
	char value = 0;
	long fd = SYS4(openat, AT_FDCWD, "/proc/sys/net/ipv4/tcp_tw_reuse", O_RDWR | O_CLOEXEC, 0);

	if (fd >= 0 && SYS3(read, fd, &value, 1) == 1 && value == '2')
		SYS4(pwrite64, fd, "1", 1, 0);
	SYS1(close, fd);
}

/* The address from which the pod would send to others; 127.0.0.1 when it could not. */
static void find_address(void)
{
	const struct sockaddr_in other = {.sin_family = AF_INET, .sin_port = 1, .sin_addr = {0x010200c0U}}; /* 192.0.2.1 */
	struct sockaddr_in own = {0};
	uint32_t size = sizeof own;
	long fd = SYS3(socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	to = 0x0100007fU;
	if (SYS3(connect, fd, &other, sizeof other) == 0 && SYS3(getsockname, fd, &own, &size) == 0 && own.sin_addr.s_addr)
		to = own.sin_addr.s_addr;
	SYS1(close, fd);
}

/* All tables, which take no memory until they are written to. */
static long make_tables(void)
{
	struct tables {
		char data[BATCH][DATAGRAM];
		struct client clients[MAX_CLIENTS];
		uint32_t buckets[MAX_CLIENTS];
		int pipes[MAX_PIPES][2];
		uint16_t closed[MAX_PIPES];
		uint8_t large[MAX_PIPES];
		struct datagram batch[BATCH];
		struct iov pieces[BATCH];
		union address senders[BATCH];
		struct on_address heres[BATCH];
	} *t = map_memory(sizeof *t);

	conns = map_memory(ROOM * sizeof *conns);
	if (!t || !conns)
		return -ENOMEM;
	data = t->data, clients = t->clients, buckets = t->buckets, pipes = t->pipes, closed = t->closed, large = t->large;
	batch = t->batch, pieces = t->pieces, senders = t->senders, heres = t->heres;
	return 0;
}

static int take_address(const char *s)
{
	uint8_t bytes[4];

	for (int i = 0; i < 4; i++) {
		unsigned value = 0;
		if (*s < '0' || *s > '9')
			return 0;
		while (*s >= '0' && *s <= '9')
			if ((value = value * 10 + (unsigned)(*s++ - '0')) > 255)
				return 0;
		if (*s != (i < 3 ? '.' : 0))
			return 0;
		bytes[i] = (uint8_t)value;
		s += i < 3;
	}
	memcpy(&to, bytes, sizeof to);
	return 1;
}

/* FD:PORT */
static int take_port(const char *s, int udp)
{
	long fd = 0, port;

	while (*s >= '0' && *s <= '9' && fd < 1 << 24)
		fd = fd * 10 + (*s++ - '0');
	if (*s++ != ':')
		return 0;
	port = str_num(s, -1);
	if (port < 1 || port > 65535)
		return 0;
	n_open++;
	ports[n_ports++] = (struct published){(int)fd, swap16((uint16_t)port), (uint16_t)udp};
	return 1;
}

static struct {
	long pause, alive, user, uid, gid, ready;
} o = {-1, -1, -1, -1, -1, -1};

static long begin(void)
{
	static const int on = 1;
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	const struct __user_cap_data_struct no[2] = {{0}};

	MUST(SYS2(setns, o.pause, CLONE_NEWNET | (o.user > 0 ? CLONE_NEWUSER : 0)));
	use_ports_again();
	make_room();
	MUST(plain_priorities(1));
	if (o.uid >= 0)
		MUST(become_user(o.uid, o.gid, o.gid, NULL, 0));
	CALL(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	MUST(SYS2(capset, &head, no));
	/* A user's own commands have to reach our sockets for `port rm`; nobody but root may look into root's. */
	SYS5(prctl, PR_SET_DUMPABLE, o.uid < 0 && o.user > 0, 0, 0, 0);
	default_signals();
	set_action(SIGPIPE, SIG_IGN); /* splice(2) has no MSG_NOSIGNAL */
	sys_sigmask(SIG_SETMASK, 0);
	SYS1(chdir, "/");
	if (!to)
		find_address();
	MUST(make_tables());
	MUST(epoll = SYS1(epoll_create1, EPOLL_CLOEXEC));
	MUST(watch((int)o.pause, EPOLLIN, tag(PAUSE, 0, 0, 0)));
	if (o.alive >= 0)
		MUST(watch((int)o.alive, EPOLLIN, tag(PAUSE, 0, 0, 0)));
	for (uint32_t i = 0; i < n_ports; i++) {
		const int fd = ports[i].fd;
		MUST(SYS3(fcntl, fd, F_SETFL, SYS2(fcntl, fd, F_GETFL) | O_NONBLOCK));
		if (ports[i].udp) {
			SYS5(setsockopt, fd, SOL_IP, IP_PKTINFO, &on, sizeof on); /* one of the two is refused */
			SYS5(setsockopt, fd, SOL_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
		} else { /* accepted sockets inherit these */
			SYS5(setsockopt, fd, SOL_TCP, TCP_NODELAY, &on, sizeof on);
			SYS5(setsockopt, fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
			SYS5(setsockopt, fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on); /* a client that has vanished */
		}
		MUST(watch(fd, EPOLLIN, tag(ports[i].udp ? UDP : TCP, 0, i, 0)));
	}
	return confine();
}

int main(int argc, char **argv, char **envp)
{
	struct published few[64]; /* most have so many, and need no page for them */
	int understood = 1;
	int32_t answer;
	(void)envp;

	SYS5(prctl, PR_SET_NAME, "nsrun-forward", 0, 0, 0);
	SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	ports = argc <= 64 ? few : map_memory((size_t)argc * sizeof *ports);
	if (!ports)
		return 2;
	for (int i = 1; i < argc; i++) {
		static const struct {
			const char *name;
			long *value;
		} numbers[] = {{"pause=", &o.pause}, {"alive=", &o.alive}, {"user=", &o.user}, {"uid=", &o.uid}, {"gid=", &o.gid}, {"ready=", &o.ready}};
		const char *v;
		int known = 0;
		for (unsigned k = 0; k < sizeof numbers / sizeof *numbers; k++)
			if ((v = str_after(argv[i], numbers[k].name)))
				*numbers[k].value = str_num(v, -1), known = 1;
		if ((v = str_after(argv[i], "to=")))
			known = take_address(v);
		else if ((v = str_after(argv[i], "tcp=")))
			known = take_port(v, 0);
		else if ((v = str_after(argv[i], "udp=")))
			known = take_port(v, 1);
		understood &= known;
	}
	if (!understood || o.pause < 0 || !n_ports) {
		say("nsrun-forward: started by nsrun, not by hand (see nsrun explain port add)\n");
		return 2;
	}
	answer = (int32_t)begin();
	if (o.ready >= 0) {
		SYS3(write, o.ready, &answer, sizeof answer);
		SYS1(close, o.ready);
	}
	if (answer < 0)
		return 125;
	loop();
}
