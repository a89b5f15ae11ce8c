/* SPDX-License-Identifier: Apache-2.0 */
/*
 * steps.h: the steps of a compiled plan that make processes: what they are started from, their streams, cgroup, launch and end.
 * Each does what the step of the same purpose does in nsrun/plan, with the same calls.
 */
#ifndef NSRUN_STEPS_H
#define NSRUN_STEPS_H

#include "replay.h"

#include <asm/ioctls.h>
#include <asm/statfs.h>
#include <linux/magic.h>
#include <linux/netlink.h>

static long op_process(struct arg *a)
{
	long fd = SYS2(pidfd_open, a[0].i, 0), start;

	MUST(fd);
	start = start_of(a[0].i); /* asked with the pidfd in hand */
	if (start != a[1].i) {
		SYS1(close, fd);
		return start < 0 ? start : -ESTALE;
	}
	return move_to(fd, a[2].i);
}

static long op_program(struct arg *a)
{
	struct statx st;
	long map, r, fd = SYS3(openat, AT_FDCWD, a[0].s, O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	MUST(fd);
	r = SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_SIZE, &st);
	map = r < 0 ? r : SYS(mmap, 0, st.stx_size, PROT_READ, MAP_PRIVATE, fd, 0);
	SYS1(close, fd);
	if (map < 0 && map > -4096)
		return map;
	r = move_to(sealed_memfd(a[1].s, (const char *)map, st.stx_size, 1), a[2].i);
	SYS2(munmap, map, st.stx_size);
	return r;
}

static long op_memory(struct arg *a)
{
	return move_to(sealed_memfd(a[0].s, a[1].s, a[1].len, 0), a[2].i);
}

static long op_document(struct arg *a)
{
	uint32_t len = a[1].len;
	char *whole, *p;
	size_t size;
	long r;

	for (char **word = argv_ + 1 + n_words; *word; word++)
		len += (uint32_t)str_len(*word) + 1;
	size = (size_t)a[0].len + sizeof len + len + a[2].len;
	p = whole = map_memory(size);
	if (!whole)
		return -ENOMEM;
	p = put_bytes(p, a[0].s, a[0].len);
	p = put_bytes(p, &len, sizeof len);
	p = put_bytes(p, a[1].s, a[1].len);
	for (char **word = argv_ + 1 + n_words; *word; word++)
		p = put_bytes(p, *word, str_len(*word) + 1);
	put_bytes(p, a[2].s, a[2].len);
	r = move_to(sealed_memfd("plan", whole, size, 0), a[3].i);
	SYS2(munmap, whole, size);
	return r;
}

static long op_pipe(struct arg *a)
{
	int both[2];

	MUST(SYS2(pipe2, both, O_CLOEXEC));
	MUST(move_to(both[0], a[0].i));
	MUST(move_to(both[1], a[1].i));
	return a[3].i ? SYS3(fchown, a[2].i, a[3].i, -1) : 0;
}

static long op_null(struct arg *a)
{
	return move_to(SYS3(openat, AT_FDCWD, "/dev/null", a[1].i | O_CLOEXEC), a[0].i);
}

/* The master of a new terminal of a devpts, and nothing that a member has mounted over its ptmx: plan/process.py, open_ptmx(). */
static long open_ptmx(long devpts)
{
	struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS};
	char path[48];
	struct statx st;
	long r, fd = open_how((int)devpts, "ptmx", &how);

	MUST(fd);
	r = SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_TYPE, &st);
	if (r >= 0 && ((st.stx_mode & S_IFMT) != S_IFCHR || st.stx_rdev_major != 5 || st.stx_rdev_minor != 2))
		r = -ENODEV;
	if (r >= 0) {
		*put_num(put_str(path, "/proc/self/fd/"), (unsigned long)fd, 1) = 0;
		r = SYS3(openat, AT_FDCWD, path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	}
	SYS1(close, fd);
	return r;
}

static long op_terminal(struct arg *a)
{
	struct winsize { /* ioctl_tty(2) */
		unsigned short row, col, x, y;
	} size;
	const int unlocked = 0;
	struct statfs fs;
	long master, r, devpts = open_inside(a[0].s, "/dev/pts", O_PATH | O_DIRECTORY);

	MUST(devpts);
	if (SYS2(fstatfs, devpts, &fs) < 0 || fs.f_type != DEVPTS_SUPER_MAGIC) {
		SYS1(close, devpts);
		return -ESTALE;
	}
	master = open_ptmx(devpts);
	SYS1(close, devpts);
	MUST(move_to(master, a[2].i));
	MUST(SYS3(ioctl, a[2].i, TIOCSPTLCK, &unlocked));
	for (int fd = 0; fd < 3; fd++) /* its first size is ours, whichever of them is a terminal */
		if (SYS3(ioctl, fd, TIOCGWINSZ, &size) >= 0) {
			SYS3(ioctl, a[2].i, TIOCSWINSZ, &size);
			break;
		}
	r = SYS3(ioctl, a[2].i, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	MUST(move_to(r, a[3].i));
	return SYS3(fchown, a[3].i, a[1].i, -1);
}

/* A cgroup that is there; the root of a cgroup2 has the inode number that the root of most file systems has. */
static long op_cgroup(struct arg *a)
{
	struct statx st;
	struct statfs fs;
	long fd = SYS3(openat, AT_FDCWD, a[0].s, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	MUST(fd);
	if (SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_INO, &st) < 0 || (long)st.stx_ino != a[1].i || SYS2(fstatfs, fd, &fs) < 0 ||
	    fs.f_type != CGROUP2_SUPER_MAGIC) {
		SYS1(close, fd);
		return -ESTALE;
	}
	return move_to(fd, a[2].i);
}

static long op_new_cgroup(struct arg *a)
{
	const int above = (int)a[0].i, shared = a[3].i != 0;
	struct statx st;
	long r = SYS3(mkdirat, above, a[1].s, 0755);

	if (r == -EEXIST && !shared) { /* what is left of an earlier member */
		SYS3(unlinkat, above, a[1].s, AT_REMOVEDIR);
		r = SYS3(mkdirat, above, a[1].s, 0755);
	}
	if (r >= 0 && !shared && made.cgroup)
		made.inner = a[1].s, made.directory = above;
	else if (r >= 0 && !shared)
		made.cgroup = a[1].s, made.above = above;
	if (r != -EEXIST || !shared) {
		MUST(r);
		MUST(SYS3(fchmodat, above, a[1].s, 0755)); /* whatever the umask is */
	}
	MUST(move_to(SYS3(openat, above, a[1].s, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), a[2].i));
	MUST(SYS5(statx, a[2].i, "", AT_EMPTY_PATH, STATX_INO | STATX_UID, &st));
	if (!made.inner)
		member.cgroup = (long)st.stx_ino;
	return same(st.stx_uid == 0); /* otherwise the pod's owner made it meanwhile */
}

/* Whether a word is among those of a text, with blanks between. */
static int has_word(const char *text, const char *word)
{
	while (*text) {
		const char *rest = str_after(text, word);
		if (rest && (!*rest || *rest == ' ' || *rest == '\n'))
			return 1;
		while (*text && *text++ != ' ')
			;
	}
	return 0;
}

/* To write what is offered already would wait for the cgroups that are dying below. */
static long op_offer(struct arg *a)
{
	char there[1024];
	const char *word = a[1].s, *end = a[1].s + a[1].len;
	long n, fd = SYS3(openat, a[0].i, "cgroup.subtree_control", O_RDWR | O_CLOEXEC);

	MUST(fd);
	n = SYS3(read, fd, there, sizeof there - 1);
	there[n > 0 ? n : 0] = 0;
	for (; word < end; word += str_len(word) + 1)
		if (!has_word(there, word + (*word == '+')))
			SYS3(write, fd, word, str_len(word)); /* if it can't be had, a limit that needs it says so */
	SYS1(close, fd);
	return 0;
}

static long op_new_netns(struct arg *a)
{
	return move_to(new_netns(-1), a[0].i);
}

static long op_netlink(struct arg *a)
{
	const struct sockaddr_nl any = {.nl_family = AF_NETLINK};
	struct {
		struct nlmsghdr head;
		int error;
		char rest[512];
	} answer = {.error = -EBADMSG};
	long r, fd, there, back = enter_netns((int)a[0].i);

	MUST(back);
	r = fd = SYS3(socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, a[1].i);
	if (r >= 0)
		r = SYS3(bind, fd, &any, sizeof any);
	if (r >= 0)
		r = SYS3(write, fd, a[2].s, a[2].len);
	if (r >= 0)
		r = SYS3(read, fd, &answer, sizeof answer);
	SYS1(close, fd);
	there = SYS2(setns, back, CLONE_NEWNET);
	lost = there < 0;
	SYS1(close, back);
	MUST(there);
	MUST(r);
	return answer.head.nlmsg_type == NLMSG_ERROR ? answer.error : -EBADMSG;
}

/* Whether a signal has come that would have ended us. */
static int is_interrupted(void)
{
	struct pollfd p = {.fd = heard, .events = POLLIN};
	struct timespec none = {0};
	return heard >= 0 && SYS5(ppoll, &p, 1, &none, NULL, 0) > 0;
}

/* The next record of nsrun-init's: of enum init_says, 0 at the end, or -errno; -EINTR when a signal would have ended us. */
static long hear(void)
{
	struct pollfd both[] = {{.fd = channel, .events = POLLIN}, {.fd = released ? -1 : heard, .events = POLLIN}};
	struct init_record record;
	char text[1024];
	long n;

	MUST(SYS5(ppoll, both, 2, NULL, NULL, 0));
	if (both[1].revents)
		return -EINTR;
	n = SYS3(read, channel, text, sizeof text);
	if (n <= 0)
		return n;
	if (n == 1)
		return text[0]; /* pause's */
	if ((size_t)n < sizeof record)
		return -EBADMSG;
	memcpy(&record, text, sizeof record);
	return record.kind;
}

static long op_channel(struct arg *a)
{
	int two[2];

	MUST(SYS4(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, two));
	MUST(move_to(two[0], a[0].i));
	MUST(move_to(two[1], a[1].i));
	go[0] = (int)a[0].i, go[1] = (int)a[1].i;
	return 0;
}

static long op_listen(struct arg *a)
{
	struct {
		unsigned short family;
		char path[108];
	} at = {.family = AF_UNIX}; /* unix(7) */
	char path[PATH_MAX];
	long directory;

	if (a[0].len > sizeof path - 8)
		return -ENAMETOOLONG;
	*put_str(put_str(path, a[0].s), "/attach") = 0;
	SYS3(unlinkat, AT_FDCWD, path, 0);
	MUST(directory = SYS3(openat, AT_FDCWD, a[0].s, O_PATH | O_DIRECTORY | O_CLOEXEC));
	*put_str(put_num(put_str(at.path, "/proc/self/fd/"), (unsigned long)directory, 1), "/attach") = 0;
	MUST(move_to(SYS3(socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), a[1].i));
	MUST(SYS3(bind, a[1].i, &at, sizeof at.family + str_len(at.path) + 1));
	SYS1(close, directory);
	return SYS2(listen, a[1].i, 4);
}

#ifndef PLAIN
#define PLAIN 0
#endif

static int joins[MOST], n_joins; /* namespaces that the next process is born in (op_joins) */

static long op_launch(struct arg *a)
{
	char text[2][24];
	const char *words[] = {"nsrun-init", text[0], text[1], NULL}, *monitor_words[MOST + 1];
	int keep[MOST], monitor_keep[MOST], locks[MOST], two[2];
	struct launch l = {.user_fd = -1, .join_fd = (int)a[0].i, .join_flags = (int)a[1].i, .clone_flags = (int)a[13].i, .cgroup = (int)a[2].i, .program = (int)a[3].i, .argv = words, .keep = keep, .monitor = (int)a[9].i, .monitor_argv = monitor_words, .monitor_envp = (const char **)(uintptr_t)envp_, .monitor_keep = monitor_keep, .pidfd_slot = (int)a[6].i, .locks = locks, .lock_byte = KEEPER, .joins = joins, .n_joins = n_joins, .one_way = n_joins > 0, .plain = PLAIN};
	long r;

	*put_num(text[0], (unsigned long)a[4].i, 1) = 0;
	*put_num(text[1], (unsigned long)a[5].i, 1) = 0;
	if (numbers(&a[8], l.stdio, 3) != 3 || split_strings(a[10].s, a[10].len, monitor_words, MOST) < 0)
		return -EBADMSG;
	MUST(l.n_keep = (int)numbers(&a[7], keep, MOST));
	MUST(l.n_monitor_keep = (int)numbers(&a[11], monitor_keep, MOST));
	MUST(l.n_locks = (int)numbers(&a[12], locks, MOST));
	MUST(SYS4(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, two));
	channel = two[0];
	MUST(move_to(two[1], a[5].i));
	sys_sigmask(SIG_SETMASK, ~(SIGBIT(32) | SIGBIT(33))); /* as kernel.c does: those two are a C library's own */
	r = launch(&l);
	sys_sigmask(SIG_SETMASK, mask | ends);
	monitor = l.monitor_pid;
	lost = l.failed == STAGE_RETURN; /* we would execute Python half inside the pod */
	child = l.pidfd;
	MUST(r);
	member.pid = l.pid;
	/* We must not keep the child's descriptors: the end of the channel has to mean that it is gone. */
	SYS1(close, a[4].i);
	SYS1(close, a[5].i);
	for (int i = 0; i < 3; i++)
		SYS1(close, l.stdio[i]);
	if (monitor > 0)
		SYS1(close, go[0]);
	r = hear();
	if (r != INIT_WAITS)
		return r < 0 ? r : -ESRCH;
	return child < 0 ? 0 : copy_to(child, a[6].i);
}

static long op_release(struct arg *a)
{
	long r;

	if (is_interrupted())
		return -EINTR;
	sys_sigmask(SIG_SETMASK, ~0UL);
	SYS1(close, heard); /* from here on a signal is the program's */
	heard = -1;
	MUST(SYS3(write, channel, &go_on, 1));
	r = hear();
	if (a[0].i) /* pause may be begun once more */
		r = r == PAUSE_READY ? hear() : -ENOENT;
	else if (r == 0)
		released = 1;
	return r > 0 ? -ENOEXEC : r; /* the exec failed: Python says why */
}

static long op_become(struct arg *a)
{
	int keep[MOST];
	const char *words[MOST + 1];
	long n = numbers(&a[2], keep, MOST);

	if (n < 0 || split_strings(a[1].s, a[1].len, words, MOST) < 1)
		return -EBADMSG;
	inherit(keep, (int)n);
	return SYS5(execveat, a[0].i, "", words, envp_, AT_EMPTY_PATH);
}

static long op_go(struct arg *a)
{
	char text[NAME_MAX + 2];
	long n, r;

	if (a[1].len > sizeof text - 1)
		return -EBADMSG;
	while (made.n_locks) /* the monitor may remove the member at once, which it can't while we hold it */
		SYS1(close, made.locks[--made.n_locks]);
	if (a[0].i >= 0)
		MUST(SYS3(write, a[0].i, &go_on, 1));
	n = put_str(put_str(text, a[1].s), "\n") - text;
	r = SYS3(write, 1, text, n);
	if (r == n)
		sys_exit(0);
	if (r == -EPIPE)
		sys_exit(141); /* as Python does: 128 + SIGPIPE */
	unwritten = a[1].s; /* Python says what is in the way */
	return r < 0 ? r : -EIO;
}

#endif
