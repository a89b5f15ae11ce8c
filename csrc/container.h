/* SPDX-License-Identifier: Apache-2.0 */
/*
 * container.h: the steps that only the plan of a container has (CONTAINER in protocol.h).  Each does what nsrun/oci/lifecycle.py does
 * where all is as usual, and fails where anything is not: then Python begins the command anew, and decides.
 */
#ifndef NSRUN_CONTAINER_H
#define NSRUN_CONTAINER_H

#include "process.h"
#include "replay.h"
#include "witnesses.h"

#include <asm/ioctls.h>
#include <asm/siginfo.h>
#include <linux/signalfd.h>

static const char *ident;             /* of the command line */
static char container_path[PATH_MAX]; /* ROOT/ID */
static int container = -1;            /* a descriptor of it, locked but for `state` */
static long to_send = 15;             /* the signal of `kill` */
static int forced;     /* whether --force was given */
static int told = -1;                 /* in a `start` that has let the process go: its FIFO, by which we hear how that went */
static int done;       /* whether the command is carried out */

/* What the options of `exec` and `create` say. */
static struct {
	const char *process, *pid_file; /* NULL: not given */
	int detach;
	const char *bundle;       /* of `create`; NULL: the working directory */
	struct strings args, env; /* of the file of --process, or of config.json */
	const char *home;         /* what its env gets */
	int unlike;               /* the plan is for another file of --process, or another /etc/passwd */
	int written;              /* whether --pid-file is */
} asked;

static struct {
	long pid, start; /* pid 0: it has ended */
	const char *status, *freezer;
	int v1;
} first;

/* Whether nobody else may change what is in a directory: nsrun/oci/state.py, _check_owner(). */
static int is_ours(const struct statx *st)
{
	return (st->stx_mode & S_IFMT) == S_IFDIR && st->stx_uid == 0 && !(st->stx_mode & 022);
}
#define KNOWN (STATX_TYPE | STATX_MODE | STATX_UID | STATX_INO)

static long op_container(struct arg *a)
{
	return same(str_eq(a[0].s, container_path));
}

static long op_verb(struct arg *a)
{
	(void)a; /* oci.c skips the steps of other commands */
	return 0;
}

/* Whether this process has that start time and is no zombie: nsrun/kernel.py, process_start(). */
static long is_alive(long pid, long start)
{
	char path[64], text[1024], *p;
	long r;

	*put_str(put_num(put_str(path, "/proc/"), (unsigned long)pid, 1), "/stat") = 0;
	r = read_text(path, text, sizeof text);
	if (r == -ENOENT || r == -ESRCH)
		return 0;
	MUST(r);
	for (p = text + r; p > text && *p != ')'; p--)
		;
	if (p[0] != ')' || p[1] != ' ')
		return -EBADMSG;
	if (p[2] == 'Z' || p[2] == 'X')
		return 0;
	r = start_of(pid);
	if (r == -ENOENT || r == -ESRCH)
		return 0;
	MUST(r);
	return r == start;
}

/* A pidfd of the first process, which is the container's as long as that is in hand. */
static long open_first(void)
{
	long fd = SYS2(pidfd_open, first.pid, 0);

	MUST(fd);
	if (is_alive(first.pid, first.start) == 1)
		return fd;
	SYS1(close, fd);
	return -ESRCH;
}

static int begins(const char *text, const char *word)
{
	return str_after(text, word) != NULL;
}

/* Whether its cgroup is frozen, or is being: nsrun/oci/cgroups.py, is_frozen(). */
static int is_frozen(void)
{
	char path[PATH_MAX], text[256], *file;

	if (!*first.freezer || str_len(first.freezer) > sizeof path - 32)
		return 0;
	file = put_str(path, first.freezer);
	text[0] = 0;
	if (first.v1) {
		*put_str(file, "/freezer.state") = 0;
		return read_text(path, text, sizeof text) > 0 && (begins(text, "FROZEN") || begins(text, "FREEZING"));
	}
	*put_str(file, "/cgroup.freeze") = 0;
	if (read_text(path, text, sizeof text) > 0 && begins(text, "1"))
		return 1;
	*put_str(file, "/cgroup.events") = 0;
	if (read_text(path, text, sizeof text) > 0)
		for (const char *line = text; *line; line++)
			if (begins(line, "frozen 1"))
				return 1;
	return 0;
}

static long op_look(struct arg *a)
{
	static const char init[] = "/memfd:nsrun-init (deleted)";
	struct statx st;
	char path[64], target[sizeof init];
	long r = is_alive(a[0].i, a[1].i);

	MUST(r);
	first.pid = r ? a[0].i : 0, first.start = a[1].i;
	first.freezer = a[2].s, first.v1 = a[3].i != 0;
	first.status = "stopped";
	if (!first.pid)
		return 0;
	first.status = "running";
	if (SYS5(statx, container, "started", AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) < 0) {
		*put_str(put_num(put_str(path, "/proc/"), (unsigned long)first.pid, 1), "/exe") = 0;
		r = SYS4(readlinkat, AT_FDCWD, path, target, sizeof target);
		if (r < 0 || (r == sizeof init - 1 && memcmp(target, init, sizeof init - 1) == 0))
			first.status = "created";
	}
	if (is_frozen())
		first.status = "paused";
	return 0;
}

static long op_only(struct arg *a)
{
	for (const char *word = a[0].s, *end = a[0].s + a[0].len; word < end; word += str_len(word) + 1)
		if (first.status && str_eq(word, first.status))
			return 0;
	return same(forced && first.status && !str_eq(first.status, "paused")); /* what is frozen does not die: Python thaws it */
}

static long op_answer(struct arg *a)
{
	size_t size = (size_t)a[0].len + a[1].len + a[2].len + 64;
	char *text = map_memory(size), *p;

	if (!text || !first.status)
		return -ENOMEM;
	p = put_num(put_str(text, a[0].s), (unsigned long)first.pid, 1);
	p = put_str(put_str(put_str(p, a[1].s), first.status), a[2].s);
	done = 1;
	for (const char *at = text; at < p;) {
		long n = SYS3(write, 1, at, p - at);
		if (n == -EPIPE)
			sys_exit(1); /* who asked does not listen: nsrun/oci/main.py */
		if (n <= 0) {
			done = at != text; /* Python would say the first half twice */
			return n < 0 && !done ? n : -EIO;
		}
		at += n;
	}
	return 0;
}

/* ---- start ----------------------------------------------------------------------------------------- */

/*
 * Whether the process that has closed its end of `told` may have ended before it became the program: then it still has the name
 * that nsrun-init gives itself, or `kill` has left a mark.  Python finds out.
 */
static int may_be_killed(void)
{
	static const char init[] = "/memfd:nsrun-init (deleted)", name[] = " (nsrun-init) ";
	char path[64], text[1024], target[sizeof init], *end;
	struct statx st;
	long r;

	end = put_num(put_str(path, "/proc/"), (unsigned long)first.pid, 1);
	*put_str(end, "/exe") = 0;
	r = SYS4(readlinkat, AT_FDCWD, path, target, sizeof target);
	if (r > 0 && (r != sizeof init - 1 || memcmp(target, init, sizeof init - 1) != 0))
		return 0;
	*put_str(end, "/stat") = 0;
	r = read_text(path, text, sizeof text);
	for (char *p = text; r > 0 && p < text + r; p++)
		if (str_after(p, name))
			return 1;
	return SYS5(statx, container, "killed", AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) == 0;
}

/* Wait until the process has become the program, or has ended; 1: it has said what went wrong, or may have been killed. */
static long await_told(int fd)
{
	struct pollfd both[] = {{.fd = told, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
	const struct timespec pause = {.tv_nsec = 200000000}, none = {0};

	for (;;) {
		struct timespec wait = pause;
		long r = SYS5(ppoll, both, 2, &wait, NULL, 0);
		MUST(r);
		if (r > 0) {
			wait = none;
			MUST(SYS5(ppoll, both, 1, &wait, NULL, 0)); /* what it has said before its end */
			return (both[0].revents & POLLIN) != 0 || may_be_killed();
		}
		if (is_frozen())
			return 1;
	}
}

static long op_let_go(struct arg *a)
{
	const long flags = O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW;
	long fd, hear, pidfd, r;
	(void)a;

	MUST(pidfd = open_first());
	MUST(hear = SYS3(openat, container, "told", O_RDONLY | flags));
	MUST(fd = SYS3(openat, container, "start", O_WRONLY | flags)); /* ENXIO: it has just ended */
	r = SYS3(write, fd, &go_on, 1);
	if (r != 1)
		return r < 0 ? r : -EIO;
	told = (int)hear;
	SYS1(close, fd);
	r = await_told((int)pidfd);
	MUST(r);
	if (r)
		return -ENOEXEC;
	MUST(fd = SYS4(openat, container, "started", O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
	for (int i = 0; i < 2; i++) {
		r = SYS3(unlinkat, container, i ? "told" : "start", 0);
		if (r < 0 && r != -ENOENT)
			return r;
	}
	return 0;
}

/* ---- kill and delete ------------------------------------------------------------------------------- */

static long op_send(struct arg *a)
{
	long fd;
	(void)a;

	if (!first.pid)
		return -ESRCH;
	MUST(fd = open_first());
	return SYS4(pidfd_send_signal, fd, to_send, NULL, 0);
}

static long op_end(struct arg *a)
{
	struct timespec patience = {.tv_nsec = 500000000};
	struct pollfd p = {.events = POLLIN};
	(void)a;

	if (!first.pid)
		return 0;
	p.fd = (int)open_first();
	if (p.fd == -ESRCH)
		return 0; /* it has just ended */
	MUST(p.fd);
	MUST(SYS4(pidfd_send_signal, p.fd, SIGKILL, NULL, 0));
	return SYS5(ppoll, &p, 1, &patience, NULL, 0) > 0 ? 0 : -EAGAIN;
}

/* Who was killed may be in its cgroup for a moment still; whoever stays there is ended by Python. */
static long remove_cgroup(const char *path, int most)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	long r = 0;

	for (int tries = 0; tries < most; tries++) {
		r = SYS3(unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
		if (r != -EBUSY)
			break;
		SYS2(nanosleep, &pause, NULL);
	}
	return r == -ENOENT || r == -ENODEV ? 0 : r;
}

static long op_remove_cgroup(struct arg *a)
{
	return remove_cgroup(a[0].s, 5);
}

struct entry { /* struct linux_dirent64 */
	uint64_t ino;
	int64_t off;
	unsigned short size;
	unsigned char type;
	char name[];
};

/* Remove what is written of the container.  The state goes last, so that whoever is killed here can be repeated. */
static long op_remove(struct arg *a)
{
	char entries[4096] __attribute__((aligned(8)));
	long r, n = SYS3(getdents64, container, entries, sizeof entries - 1);
	(void)a;

	MUST(n);
	entries[n] = 0;
	for (long at = 0; at + (long)sizeof(struct entry) < n;) {
		const struct entry *e = (const struct entry *)(const void *)(entries + at);
		if (e->size < sizeof *e || e->size % 8 || at + e->size > n)
			return -EBADMSG;
		at += e->size;
		if (!str_eq(e->name, ".") && !str_eq(e->name, "..") && !str_eq(e->name, "state")) {
			r = SYS3(unlinkat, container, e->name, 0);
			if (r < 0 && r != -ENOENT)
				return r;
		}
	}
	r = SYS3(unlinkat, container, "state", 0);
	if (r < 0 && r != -ENOENT) /* there is none of a container that was not finished */
		return r;
	return SYS3(unlinkat, AT_FDCWD, container_path, AT_REMOVEDIR);
}

/* ---- exec ------------------------------------------------------------------------------------------ */

/* Read the file of --process, or config.json; returns its size, and its text with a NUL. */
static long read_whole(const char *path, char **text)
{
	struct statx st;
	long n = 0, r, fd = SYS3(openat, AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	MUST(fd);
	r = SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_SIZE, &st);
	if (r == 0 && ((st.stx_mode & S_IFMT) != S_IFREG || st.stx_size > REPLAY_BYTES || !(*text = map_memory(st.stx_size + 1))))
		r = -EINVAL;
	for (; r >= 0 && n < (long)st.stx_size; n += r)
		if ((r = SYS3(read, fd, *text + n, st.stx_size - (uint64_t)n)) == 0)
			r = -EBADMSG; /* it is being written */
	SYS1(close, fd);
	return r < 0 ? r : n;
}

/* The command of the command line, as such a file would say it. */
static long take_command(void)
{
	size_t size = 0;
	char *p;

	for (char **word = argv_ + 1 + n_words; *word; word++)
		size += str_len(*word) + 1;
	if (!(p = map_memory(size)))
		return -ENOMEM;
	asked.args = (struct strings){.s = p, .len = (uint32_t)size};
	for (char **word = argv_ + 1 + n_words; *word; word++)
		p = put_bytes(p, *word, str_len(*word) + 1);
	return 0;
}

static long op_frame(struct arg *a)
{
	char *text = NULL, *strings;
	long n;

	if (!asked.process)
		return take_command();
	MUST(n = read_whole(asked.process, &text));
	if (!(strings = map_memory((size_t)n + 1)))
		return -ENOMEM;
	asked.unlike = !read_process(text, (size_t)n, a[0].s, a[0].len, strings, &asked.args, &asked.env);
	return same(!asked.unlike);
}

static int has_home(const struct strings *env)
{
	for (uint32_t at = 0; at < env->len; at += (uint32_t)str_len(env->s + at) + 1)
		if (str_after(env->s + at, "HOME="))
			return 1;
	return 0;
}

static long op_home(struct arg *a)
{
	char root[64];
	struct arg file[7] = {{.s = root}, {.s = "/etc/passwd"}};

	if (!asked.process || has_home(&asked.env))
		return 0;
	*put_str(put_num(put_str(root, "/proc/"), (unsigned long)first.pid, 1), "/root") = 0;
	for (int i = 0; i < 5; i++)
		file[2 + i] = a[1 + i];
	asked.unlike = !*a[0].s || op_same_inside(file) < 0; /* "": Python looks it up */
	asked.home = asked.unlike ? NULL : a[0].s;
	return same(!asked.unlike);
}

static const char *const namespaces[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"};
#define N_NAMESPACES (sizeof namespaces / sizeof *namespaces)

/* The inode of a namespace of a process, 0 of which stands for us; -errno, or 0, when there is none. */
static long namespace_of(long pid, const char *name)
{
	char path[64], *p = put_str(path, "/proc/");
	struct statx st;

	p = pid ? put_num(p, (unsigned long)pid, 1) : put_str(p, "self");
	*put_str(put_str(p, "/ns/"), name) = 0;
	MUST(SYS5(statx, AT_FDCWD, path, 0, STATX_INO, &st));
	return (long)st.stx_ino;
}

static long op_same_namespaces(struct arg *a)
{
	uint64_t inode;

	for (unsigned i = 0; i < 2; i++) {
		if (a[i].len != N_NAMESPACES * sizeof inode)
			return -EBADMSG;
		for (unsigned n = 0; n < N_NAMESPACES; n++) {
			memcpy(&inode, a[i].s + n * sizeof inode, sizeof inode);
			if (namespace_of(i ? first.pid : 0, namespaces[n]) != (long)inode)
				return -ESTALE;
		}
	}
	return 0;
}

static long op_unlock(struct arg *a)
{
	(void)a;
	SYS1(close, container);
	container = -1;
	return 0;
}

static long op_give_stdio(struct arg *a)
{
	char termios[256];
	struct statx st;

	for (int fd = 0; fd < 3; fd++)
		if (SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_UID, &st) == 0 && (long)st.stx_uid != a[0].i &&
		    ((st.stx_mode & S_IFMT) == S_IFIFO || SYS3(ioctl, fd, TCGETS, termios) == 0))
			SYS3(fchown, fd, a[0].i, -1); /* a file stays whose it is */
	return 0;
}

/* Write a number to a file of the kernel's. */
static long write_number(const char *path, long number)
{
	char text[24];
	long r, fd = SYS3(openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);

	MUST(fd);
	*put_num(put_str(text, number < 0 ? "-" : ""), number < 0 ? -(unsigned long)number : (unsigned long)number, 1) = 0;
	r = SYS3(write, fd, text, str_len(text));
	SYS1(close, fd);
	return r;
}

static long op_open_cgroup(struct arg *a)
{
	char path[PATH_MAX];

	if (a[0].len > sizeof path - 8)
		return -ENAMETOOLONG;
	*put_str(put_str(path, a[0].s), "/tasks") = 0;
	return move_to(SYS3(openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC), a[1].i);
}

static long op_oom_score(struct arg *a)
{
	char path[64];

	*put_str(put_num(put_str(path, "/proc/"), (unsigned long)member.pid, 1), "/oom_score_adj") = 0;
	return write_number(path, a[0].i);
}

static long op_arguments(struct arg *a)
{
	struct strings env = {.s = a[1].s, .len = a[1].len};
	const char *home = asked.home ? asked.home : "";
	uint32_t n_home = asked.home ? (uint32_t)str_len(home) + 1 : 0, n_env;
	char *whole, *p;
	size_t size;
	long r;

	if (asked.process || asked.env.s)
		env = asked.env;
	n_env = env.len + n_home;
	size = (size_t)a[0].len + 2 * sizeof n_env + asked.args.len + n_env + a[2].len;
	p = whole = map_memory(size);
	if (!whole)
		return -ENOMEM;
	p = put_bytes(p, a[0].s, a[0].len);
	p = put_bytes(p, &asked.args.len, sizeof asked.args.len);
	p = put_bytes(p, asked.args.s, asked.args.len);
	p = put_bytes(p, &n_env, sizeof n_env);
	p = put_bytes(p, env.s, env.len);
	p = put_bytes(p, home, n_home);
	put_bytes(p, a[2].s, a[2].len);
	r = move_to(sealed_memfd("plan", whole, size, 0), a[3].i);
	SYS2(munmap, whole, size);
	return r;
}

/* Write the pid beside the file that is named, where nobody can have put one before us, and rename it. */
static long op_write_pid(struct arg *a)
{
	char path[PATH_MAX], text[24], random[8], *end;
	const char *name = asked.pid_file;
	long r, fd;
	(void)a;

	if (!asked.pid_file)
		return 0;
	if (str_len(asked.pid_file) > sizeof path - 32 || SYS3(getrandom, random, sizeof random, 0) != sizeof random)
		return -ENAMETOOLONG;
	for (const char *c = name; *c; c++)
		if (*c == '/')
			name = c + 1;
	end = put_str(put_bytes(path, asked.pid_file, (size_t)(name - asked.pid_file)), ".nsrun-oci.");
	for (unsigned i = 0; i < 2 * sizeof random; i++)
		*end++ = "0123456789abcdef"[random[i / 2] >> 4 * (i % 2) & 15];
	*end = 0;
	MUST(fd = SYS4(openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644));
	end = put_num(text, (unsigned long)member.pid, 1);
	r = SYS3(write, fd, text, end - text);
	SYS1(close, fd);
	r = r < 0 ? r : r < end - text ? -ENOSPC
	                               : SYS4(renameat, AT_FDCWD, path, AT_FDCWD, asked.pid_file);
	if (r < 0)
		SYS3(unlinkat, AT_FDCWD, path, 0);
	asked.written = r >= 0;
	return r;
}

/* Wait for the new process, pass on what comes to us, and end as it does: nsrun/oci/foreground.py. */
static long op_stay(struct arg *a)
{
	const sigbits not_ours = SIGBIT(SIGKILL) | SIGBIT(SIGSTOP) | SIGBIT(SIGCHLD) | SIGBIT(SIGURG) | SIGBIT(SIGPIPE) |
	                         SIGBIT(SIGWINCH) | SIGBIT(SIGTSTP) | SIGBIT(SIGTTIN) | SIGBIT(SIGTTOU) | SIGBIT(SIGSEGV) |
	                         SIGBIT(SIGBUS) | SIGBIT(SIGFPE) | SIGBIT(SIGILL) | SIGBIT(SIGTRAP) | SIGBIT(SIGSYS);
	const sigbits passed = 0x7fffffff & ~not_ours;
	struct pollfd both[2] = {{.fd = child, .events = POLLIN}, {.events = POLLIN}};
	struct signalfd_siginfo info;
	siginfo_t end = {0};
	(void)a;

	if (asked.detach)
		return 0; /* whoever called us is its parent when we end */
	both[1].fd = (int)SYS4(signalfd4, -1, &passed, sizeof passed, SFD_CLOEXEC | SFD_NONBLOCK);
	sys_sigmask(SIG_SETMASK, passed);
	do {
		long r = SYS5(ppoll, both, 2, NULL, NULL, 0);
		if (r > 0 && both[1].revents && SYS3(read, both[1].fd, &info, sizeof info) == sizeof info)
			SYS4(pidfd_send_signal, child, info.ssi_signo, NULL, 0);
	} while (!both[0].revents);
	if (SYS5(waitid, P_PIDFD, child, &end, WEXITED, NULL) < 0)
		sys_exit(255);
	sys_exit(end.si_code == CLD_EXITED ? end.si_status : 128 + end.si_status);
}

#endif
