/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sys.h: the part of a C library that small static programs need.
 *
 * They are linked without libc: only one page of text and one of stack stay resident, nothing can be
 * loaded after a namespace was entered (no NSS, no locale, no LD_*), and every function below is one
 * system call that returns what the kernel returned: a value, or -errno.  x86-64 and aarch64.
 *
 * Constants and structures come from the kernel's own headers, which are included here for all programs.  Those that only a
 * C library has are defined here, each once.
 */
#ifndef NSRUN_SYS_H
#define NSRUN_SYS_H

#include <asm/signal.h>
#include <asm/socket.h>
#include <asm/unistd.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/limits.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/sched.h>
#include <linux/stat.h>
#include <linux/time.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <stddef.h>
#include <stdint.h>

#define MNT_DETACH       2
#define AF_UNIX          1
#define AF_INET          2
#define AF_NETLINK       16
#define SOCK_STREAM      1
#define SOCK_DGRAM       2
#define SOCK_RAW         3
#define SOCK_SEQPACKET   5
#define SOCK_CLOEXEC     O_CLOEXEC
#define SCM_RIGHTS       1
#define MSG_DONTWAIT     0x40
#define MSG_NOSIGNAL     0x4000
#define MSG_CMSG_CLOEXEC 0x40000000
#define IFF_UP           1
#define SFD_CLOEXEC      O_CLOEXEC
#define SFD_NONBLOCK     O_NONBLOCK
#define R_OK             4
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif
#ifndef SEEK_END
#define SEEK_END 2
#endif

struct iov { /* struct iovec */
	const void *base;
	size_t len;
};
struct message { /* struct msghdr */
	void *name;
	unsigned name_len;
	struct iov *iov;
	size_t n_iov;
	void *control;
	size_t control_len;
	unsigned flags;
};
struct control { /* struct cmsghdr; its data follows */
	size_t len;
	int level, type;
};

#ifndef NSRUN_VERSION
#define NSRUN_VERSION "dev"
#endif

#include "entry.h"

#define SYS(name, a, b, c, d, e, f) \
	sys6(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define SYS0(name)                SYS(name, 0, 0, 0, 0, 0, 0)
#define SYS1(name, a)             SYS(name, a, 0, 0, 0, 0, 0)
#define SYS2(name, a, b)          SYS(name, a, b, 0, 0, 0, 0)
#define SYS3(name, a, b, c)       SYS(name, a, b, c, 0, 0, 0)
#define SYS4(name, a, b, c, d)    SYS(name, a, b, c, d, 0, 0)
#define SYS5(name, a, b, c, d, e) SYS(name, a, b, c, d, e, 0)

int main(int argc, char **argv, char **envp);
void start_c(long *sp);
void *memcpy(void *d, const void *s, size_t n);
void *memset(void *d, int c, size_t n);
void *memmove(void *d, const void *s, size_t n);
int memcmp(const void *a, const void *b, size_t n);

static inline __attribute__((noreturn)) void sys_exit(int code)
{
	for (;;)
		SYS1(exit_group, code);
}

__attribute__((noreturn, used)) void start_c(long *sp)
{
	int argc = (int)*sp;
	char **argv = (char **)(sp + 1);
	sys_exit(main(argc, argv, argv + argc + 1));
}

/* The compiler may emit calls to these four for copies and initialisers. */
__attribute__((used)) void *memcpy(void *d, const void *s, size_t n)
{
	char *p = d;
	const char *q = s;
	while (n--)
		*p++ = *q++;
	return d;
}
__attribute__((used)) void *memset(void *d, int c, size_t n)
{
	volatile char *p = d;
	while (n--)
		*p++ = (char)c;
	return d;
}
__attribute__((used)) void *memmove(void *d, const void *s, size_t n)
{
	char *p = d;
	const char *q = s;
	if (p < q)
		return memcpy(d, s, n);
	while (n--)
		p[n] = q[n];
	return d;
}
__attribute__((used)) int memcmp(const void *a, const void *b, size_t n)
{
	const unsigned char *p = a, *q = b;
	for (; n; n--, p++, q++)
		if (*p != *q)
			return *p - *q;
	return 0;
}

static inline size_t str_len(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

static inline int str_eq(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* The rest of s after PREFIX, or NULL when it does not begin with that. */
static inline const char *str_after(const char *s, const char *prefix)
{
	while (*prefix)
		if (*s++ != *prefix++)
			return NULL;
	return s;
}

/* Parse a decimal number with an optional minus; returns `fallback` for anything else. */
static inline long str_num(const char *s, long fallback)
{
	long v = 0, sign = 1;
	if (*s == '-')
		sign = -1, s++;
	if (!*s)
		return fallback;
	for (; *s; s++) {
		if (*s < '0' || *s > '9' || v > (1L << 50))
			return fallback;
		v = v * 10 + (*s - '0');
	}
	return sign * v;
}

/* Write v as decimal digits, at least `width` of them; returns the end. */
static inline char *put_num(char *p, unsigned long v, int width)
{
	char tmp[24];
	int n = 0;
	do
		tmp[n++] = (char)('0' + v % 10), v /= 10;
	while (v || n < width);
	while (n)
		*p++ = tmp[--n];
	return p;
}

static inline char *put_str(char *p, const char *s)
{
	while (*s)
		*p++ = *s++;
	return p;
}

/* Write the time as RFC 3339 has it, in UTC, with nine digits after the point: 30 characters; returns the end. */
static inline char *put_time(char *p)
{
	struct timespec ts;
	SYS2(clock_gettime, CLOCK_REALTIME, &ts);
	/* days since 1970 to a civil date, Gregorian, years from March */
	long day = ts.tv_sec / 86400, sec = ts.tv_sec % 86400;
	long era = (day + 719468) / 146097, doe = (day + 719468) % 146097;
	long yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	long doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
	long month = mp < 10 ? mp + 3 : mp - 9;
	p = put_num(p, (unsigned long)(yoe + era * 400 + (month <= 2)), 4);
	*p++ = '-';
	p = put_num(p, (unsigned long)month, 2);
	*p++ = '-';
	p = put_num(p, (unsigned long)(doy - (153 * mp + 2) / 5 + 1), 2);
	*p++ = 'T';
	p = put_num(p, (unsigned long)(sec / 3600), 2);
	*p++ = ':';
	p = put_num(p, (unsigned long)(sec / 60 % 60), 2);
	*p++ = ':';
	p = put_num(p, (unsigned long)(sec % 60), 2);
	*p++ = '.';
	p = put_num(p, (unsigned long)ts.tv_nsec, 9);
	*p++ = 'Z';
	return p;
}

/* Fresh memory, or NULL when there is none. */
static inline void *map_memory(size_t size)
{
	long p = SYS(mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return p < 0 && p > -4096 ? NULL : (void *)p;
}

/* Memory for n pointers and the NULL after them, never freed; NULL when there is none. */
static inline const char **pointers(size_t n)
{
	return map_memory((n + 1) * sizeof(char *));
}

static inline void say(const char *text)
{
	SYS3(write, 2, text, str_len(text));
}

/*
 * openat2(2).  On EAGAIN something was renamed or mounted somewhere on the machine while a `..` was resolved, so the kernel
 * can't tell whether it stayed inside, and we try again.  That is bounded, because somebody may rename on purpose.  ELOOP, where
 * links are followed, may come of 21 links as well: when the kernel begins once more with locks, it goes on counting.
 */
static inline long open_how(int dir, const char *path, const struct open_how *how)
{
	long r = -EAGAIN;
	for (int tries = 0, loops = 0; tries < 1000; tries++) {
		r = SYS4(openat2, dir, path, how, sizeof *how);
		if (r != -EAGAIN && (r != -ELOOP || how->resolve & RESOLVE_NO_SYMLINKS || ++loops > 2))
			break;
	}
	return r;
}

/* Signal sets: the kernel's are 64 bits wide, and signal n is bit n-1. */
typedef uint64_t sigbits;
#define SIGBIT(n) (1UL << ((n) - 1))

struct action { /* struct sigaction, as rt_sigaction(2) has it; the handler is SIG_DFL or SIG_IGN here */
	__sighandler_t handler;
	unsigned long flags;
	void *restorer;
	sigbits mask;
};

static inline void set_action(int sig, __sighandler_t handler)
{
	struct action a = {.handler = handler};
	SYS4(rt_sigaction, sig, &a, NULL, sizeof(sigbits));
}

static inline long sys_sigmask(int how, sigbits set)
{
	return SYS4(rt_sigprocmask, how, &set, NULL, sizeof set);
}

/* Reset all signals: the member must not inherit signals that the caller ignores. */
static inline void default_signals(void)
{
	for (int sig = 1; sig <= 64; sig++)
		set_action(sig, SIG_DFL);
}

#endif
