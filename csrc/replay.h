/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay.h: what all steps of a compiled plan have to do with (front.c): our words, the descriptors by the numbers of the plan,
 * and what is to be taken back if we do not come to the end.  The steps themselves are in witnesses.h, steps.h and leave.h.
 */
#ifndef NSRUN_REPLAY_H
#define NSRUN_REPLAY_H

#include "sys.h"

#include "decode.h"
#include "join.h"
#include "protocol.h"
#include "python.h"
#include "sealed.h"

static int n_words;     /* of our words, those that the plan is for */
static char *plan_begin, *plan_end;
static int channel = -1; /* of nsrun-init */
static int child = -1;   /* pidfd of nsrun-init */
static int monitor = -1; /* pid of nsrun-monitor, if it is not what we become */
static int go[2] = {-1, -1}; /* the ends of the channel by which it hears from us: its own, and ours */
static int lost;             /* whether we could not come back from the namespaces of the pod */
static sigbits mask;     /* the caller's */
static sigbits ends;     /* SIGINT, SIGTERM and SIGHUP, as far as they would end us: blocked while something is made */
static int heard = -1;   /* signalfd of those */
static int released;
static const char go_on = GO;
static const char *unwritten; /* the name, when all is done, and only that could not be printed */

static struct strings noted[2]; /* what stands for HOLE_ARGS and HOLE_ENV in a note */

/* What the note of a new member, or of a new pod, says, and only the kernel knows. */
static struct {
	long pid;         /* of its process */
	long held, since; /* its `held`: inode, and when that was made, in nanoseconds since 1970 */
	long cgroup;      /* inode of its own: of a pod, that of all of it */
} member;

/* What has to be taken back if we do not come to the end, so that the next sweep finds only rubbish (nsrun/state/sweep.py). */
static struct {
	const char *claim, *name; /* a directory below RUN/tmp that was renamed to a member's */
	const char *data;         /* of what it writes */
	const char *cgroup;       /* below the descriptor `above` */
	const char *inner;        /* of a pod: the one of pause, below the descriptor `directory` */
	int above, directory;
	const char *left;         /* the path of a directory that is rubbish then; it is named by the id of what we made */
	int locks[2], n_locks;    /* by which we hold the two directories */
} made;

/* ---- descriptors ----------------------------------------------------------------------------------- */

/* Whether a number may be the handle of a compiled plan. */
static int is_handle(long number)
{
	return number >= REPLAY_FIRST && number < REPLAY_FIRST + REPLAY_HANDLES;
}

/* Give a descriptor the number that the plan has for it.  It may have it already, and something else may, too. */
static long copy_to(long fd, long number)
{
	if (!is_handle(number))
		return -EBADMSG;
	if (fd == number)
		return fd;
	return SYS2(fcntl, number, F_GETFD) < 0 ? SYS3(dup3, fd, number, O_CLOEXEC) : -EBUSY;
}

static long move_to(long fd, long number)
{
	long r;

	MUST(fd);
	r = copy_to(fd, number);
	if (fd != number)
		SYS1(close, fd);
	return r;
}

/* Read a small file of the kernel's, whole and with a NUL; returns its length. */
static long read_text(const char *path, char *text, size_t size)
{
	long n, r, fd = SYS3(openat, AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* something else may lie over it */

	MUST(fd);
	for (n = 0, r = 1; r > 0 && (size_t)n < size - 1; n += r > 0 ? r : 0)
		r = SYS3(read, fd, text + n, size - 1 - (size_t)n);
	SYS1(close, fd);
	text[n] = 0;
	return r < 0 ? r : n;
}

static long same(int is)
{
	return is ? 0 : -ESTALE;
}

static long nanoseconds(struct statx_timestamp t)
{
	return (long)((uint64_t)t.tv_sec * 1000000000 + t.tv_nsec); /* a filesystem may say what it likes */
}

/* Open a file below a root directory, out of which nothing leads. */
static long open_inside(const char *root, const char *path, unsigned long flags)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	long r, fd = SYS3(openat, AT_FDCWD, root, O_PATH | O_DIRECTORY | O_CLOEXEC);

	MUST(fd);
	r = open_how((int)fd, path, &how);
	SYS1(close, fd);
	return r;
}

/* When a process began, as in proc_pid_stat(5): field 22, after the name in parentheses. */
static long start_of(long pid)
{
	char path[64], text[1024], *p;
	unsigned long found = 0;

	*put_str(put_num(put_str(path, "/proc/"), (unsigned long)pid, 1), "/stat") = 0;
	MUST(read_text(path, text, sizeof text));
	for (p = text + str_len(text); p > text && *p != ')'; p--)
		;
	for (int field = 2; field < 22; p++) {
		if (!*p)
			return -EBADMSG;
		field += *p == ' ';
	}
	for (; *p >= '0' && *p <= '9'; p++)
		found = found * 10 + (unsigned long)(*p - '0');
	return (long)found;
}

static char *put_bytes(char *p, const void *bytes, size_t n)
{
	return (char *)memcpy(p, bytes, n) + n;
}

#define MOST REPLAY_HANDLES /* numbers, or words */

/* Numbers of a plan, at most `most` of them; returns how many, or -EBADMSG. */
static long numbers(const struct arg *a, int *out, size_t most)
{
	if (a->len % sizeof *out || a->len > most * sizeof *out)
		return -EBADMSG;
	memcpy(out, a->s, a->len);
	return (long)(a->len / sizeof *out);
}

#endif
