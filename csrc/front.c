/* SPDX-License-Identifier: Apache-2.0 */
/*
 * front.c: what is executed first when somebody types nsrun.  It replays a plan that Python left behind, or executes Python.
 *
 * A plan is data, so what Python would do for the same words can be done without it, as long as everything that Python looked
 * at is as it was.  The front hashes the words up to the member's command, looks for a compiled plan of that name (REPLAY in
 * protocol.h), checks its witnesses, and carries the steps out: exec in 2 ms instead of 12.  In every other case (no plan, a
 * witness that changed, a step that fails) what was begun ends with its descriptors, and Python runs the very same words.
 * So the front knows no option and has no messages; the one thing that it could do wrong is to be stale.
 *
 * Nothing has happened yet that anybody could notice until op_release(): if we are killed before, nsrun-init reads the end of
 * its channel and exits.  From there on we are what Python is there: all signals are blocked until we are the monitor.
 *
 * docs/replay.md tells more.  NSRUN_REPLAY=0 goes without; =must fails instead of executing Python, for tests.
 */
#include "sys.h"

#include "decode.h"
#include "join.h"
#include "protocol.h"
#include "sealed.h"

#include <asm/ioctls.h>
#include <asm/statfs.h>
#include <linux/auxvec.h>
#include <linux/magic.h>

#ifndef NSRUN_BUILD /* "": nothing is replayed */
#define NSRUN_BUILD ""
#endif
#ifndef NSRUN_HOME /* the directory of the interpreter; "": beside this program */
#define NSRUN_HOME ""
#endif
#define SCRIPT "/nsrun-python"

static int argc_;
static char **argv_, **envp_;
static int n_words;     /* of our words, those that the plan is for */
static int channel = -1; /* of nsrun-init */
static int child = -1;   /* pidfd of nsrun-init */
static sigbits mask;     /* the caller's */
static int released;

/*
 * Signals that we treat as Python does: it ignores SIGPIPE, and SIGXFSZ, since files in memory count against RLIMIT_FSIZE; and
 * it has children to wait for, which the kernel would reap for a caller that ignores SIGCHLD (wait(2), ECHILD).
 */
static struct {
	int number;
	struct action ours, callers;
} ours[] = {{SIGPIPE, {.handler = SIG_IGN}, {0}}, {SIGXFSZ, {.handler = SIG_IGN}, {0}}, {SIGCHLD, {.handler = SIG_DFL}, {0}}};
static int replayed; /* whether we have begun to */

static const char *variable(const char *name)
{
	for (char **e = envp_; *e; e++) {
		const char *value = str_after(*e, name);
		if (value && *value == '=')
			return value + 1;
	}
	return NULL;
}

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

/* ---- the witnesses --------------------------------------------------------------------------------- */

static long same(int is)
{
	return is ? 0 : -ESTALE;
}

static long op_words(struct arg *a)
{
	const char *words[REPLAY_WORDS + 1];
	int n = split_strings(a[0].s, a[0].len, words, REPLAY_WORDS);

	if (n != n_words)
		return -ESTALE;
	for (int i = 0; i < n; i++)
		if (!str_eq(words[i], argv_[i + 1]))
			return -ESTALE;
	/* A word with a dash could be an option, which is for Python to understand. */
	return same(a[1].i ? argc_ > n + 1 && argv_[n + 1][0] != '-' : argc_ == n + 1);
}

static long nanoseconds(struct statx_timestamp t)
{
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

/* Whether a file is the one of these five: device, inode, size, and both times. */
static long same_as(const struct statx *st, const struct arg *a)
{
	return same((long)((uint64_t)st->stx_dev_major << 32 | st->stx_dev_minor) == a[0].i && (long)st->stx_ino == a[1].i &&
	            (long)st->stx_size == a[2].i && nanoseconds(st->stx_mtime) == a[3].i && nanoseconds(st->stx_ctime) == a[4].i);
}

static long op_same_file(struct arg *a)
{
	struct statx st;

	MUST(SYS5(statx, AT_FDCWD, a[0].s, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st));
	return same_as(&st, a + 1);
}

static long op_same_text(struct arg *a)
{
	char text[4096];

	MUST(read_text(a[0].s, text, sizeof text));
	return same(str_eq(text, a[1].s));
}

static long op_same_link(struct arg *a)
{
	char target[PATH_MAX];
	long n = SYS4(readlinkat, AT_FDCWD, a[0].s, target, sizeof target - 1);

	MUST(n);
	target[n] = 0;
	return same(str_eq(target, a[1].s));
}

static long op_same_variable(struct arg *a)
{
	const char *value = variable(a[0].s);
	return same(a[1].s[0] ? value && str_eq(value, a[1].s + 1) : !value);
}

static long op_same_powers(struct arg *a)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[2] = {{0}};
	long bounding = 0, r;

	MUST(SYS2(capget, &head, sets));
	for (int cap = 0; (r = SYS5(prctl, PR_CAPBSET_READ, cap, 0, 0, 0)) >= 0; cap++)
		bounding |= r << cap;
	return same((long)((uint64_t)sets[1].effective << 32 | sets[0].effective) == a[0].i && bounding == a[1].i);
}

/* Open a file as the process `pid` sees it: nothing leads out of its root directory. */
static long open_inside(long pid, const char *path, unsigned long flags)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	char root[64];
	long r, fd;

	*put_str(put_num(put_str(root, "/proc/"), (unsigned long)pid, 1), "/root") = 0;
	fd = SYS3(openat, AT_FDCWD, root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	MUST(fd);
	r = open_how((int)fd, path, &how, sizeof how);
	SYS1(close, fd);
	return r;
}

static long op_same_inside(struct arg *a)
{
	struct statx st;
	long r, fd = open_inside(a[0].i, a[1].s, O_PATH);

	if (fd == -ENOENT && !a[2].i)
		return 0;
	MUST(fd);
	r = SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &st);
	SYS1(close, fd);
	MUST(r);
	return same_as(&st, a + 2);
}

static long op_input_is_a_terminal(struct arg *a)
{
	char termios[256];
	(void)a;
	return SYS3(ioctl, 0, TCGETS, termios);
}

/* ---- the steps ------------------------------------------------------------------------------------- */

/* When a process began, as in proc_pid_stat(5): field 22, after the name in parentheses. */
static long start_of(long pid)
{
	char path[64], text[1024], *p;
	long found = 0;

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
		found = found * 10 + (*p - '0');
	return found;
}

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
	uint32_t len = 0;
	char *whole, *p;
	long r;

	for (char **word = argv_ + 1 + n_words; *word; word++)
		len += (uint32_t)str_len(*word) + 1;
	p = whole = map_memory((size_t)a[0].len + sizeof len + len + a[1].len);
	if (!whole)
		return -ENOMEM;
	p = (char *)memcpy(p, a[0].s, a[0].len) + a[0].len;
	p = (char *)memcpy(p, &len, sizeof len) + sizeof len;
	for (char **word = argv_ + 1 + n_words; *word; word++) {
		size_t n = str_len(*word) + 1;
		p = (char *)memcpy(p, *word, n) + n;
	}
	p = (char *)memcpy(p, a[1].s, a[1].len) + a[1].len;
	r = move_to(sealed_memfd("plan", whole, (size_t)(p - whole), 0), a[2].i);
	SYS2(munmap, whole, p - whole);
	return r;
}

static long op_pipe(struct arg *a)
{
	int ends[2];

	MUST(SYS2(pipe2, ends, O_CLOEXEC));
	MUST(move_to(ends[0], a[0].i));
	MUST(move_to(ends[1], a[1].i));
	return a[3].i ? SYS3(fchown, a[2].i, a[3].i, -1) : 0;
}

static long op_null(struct arg *a)
{
	return move_to(SYS3(openat, AT_FDCWD, "/dev/null", O_RDONLY | O_CLOEXEC), a[0].i);
}

static long op_terminal(struct arg *a)
{
	struct winsize { /* ioctl_tty(2) */
		unsigned short row, col, x, y;
	} size;
	const int unlocked = 0;
	struct statfs fs;
	long master, r, devpts = open_inside(a[0].i, "/dev/pts", O_PATH | O_DIRECTORY);

	MUST(devpts);
	if (SYS2(fstatfs, devpts, &fs) < 0 || fs.f_type != DEVPTS_SUPER_MAGIC) {
		SYS1(close, devpts);
		return -ESTALE;
	}
	master = SYS3(openat, devpts, "ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
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

static long op_cgroup(struct arg *a)
{
	struct statx st;
	long fd = SYS3(openat, AT_FDCWD, a[0].s, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	MUST(fd);
	if (SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_INO, &st) < 0 || (long)st.stx_ino != a[1].i) {
		SYS1(close, fd);
		return -ESTALE;
	}
	return move_to(fd, a[2].i);
}

/* The next record of nsrun-init's: of enum init_says, 0 at the end, or -errno. */
static long hear(void)
{
	struct init_record record;
	char text[1024];
	long n = SYS3(read, channel, text, sizeof text);

	if (n <= 0)
		return n;
	if ((size_t)n < sizeof record)
		return -EBADMSG;
	memcpy(&record, text, sizeof record);
	return record.kind;
}

static long op_launch(struct arg *a)
{
	struct launch l = {.user_fd = -1, .join_fd = (int)a[0].i, .join_flags = (int)a[1].i, .cgroup = (int)a[2].i, .program = (int)a[3].i, .monitor = -1, .pidfd_slot = -1, .pidfd = -1, .pid = -1};
	char numbers[2][24];
	const char *words[] = {"nsrun-init", numbers[0], numbers[1], NULL};
	int keep[32], two[2];
	long r;

	*put_num(numbers[0], (unsigned long)a[4].i, 1) = 0;
	*put_num(numbers[1], (unsigned long)a[5].i, 1) = 0;
	if (a[7].len % sizeof *keep || a[7].len > sizeof keep || a[8].len != sizeof l.stdio)
		return -EBADMSG;
	memcpy(keep, a[7].s, a[7].len);
	memcpy(l.stdio, a[8].s, a[8].len);
	l.argv = words, l.keep = keep, l.n_keep = (int)(a[7].len / sizeof *keep);
	MUST(SYS4(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, two));
	channel = two[0];
	MUST(move_to(two[1], a[5].i));
	r = join_and_clone(&l);
	if (l.failed == STAGE_RETURN) { /* we would execute Python half inside the pod */
		say("nsrun: setns(2) back to our own namespaces failed\n");
		sys_exit(125);
	}
	MUST(r);
	child = l.pidfd;
	/* We must not keep the child's descriptors: the end of the channel has to mean that it is gone. */
	SYS1(close, a[4].i);
	SYS1(close, a[5].i);
	for (int i = 0; i < 3; i++)
		SYS1(close, l.stdio[i]);
	r = hear();
	if (r != INIT_WAITS)
		return r < 0 ? r : -ESRCH;
	return copy_to(child, a[6].i);
}

static long op_release(struct arg *a)
{
	static const char go = GO;
	long r;
	(void)a;

	sys_sigmask(SIG_SETMASK, ~0UL);
	MUST(SYS3(write, channel, &go, 1));
	r = hear();
	if (r == 0)
		released = 1;
	return r > 0 ? -ENOEXEC : r; /* the exec failed: Python says why */
}

static long op_become(struct arg *a)
{
	int keep[32], n = (int)(a[2].len / sizeof *keep);
	const char *words[33];

	if (a[2].len % sizeof *keep || a[2].len > sizeof keep || split_strings(a[1].s, a[1].len, words, 32) < 1)
		return -EBADMSG;
	memcpy(keep, a[2].s, a[2].len);
	inherit(keep, n);
	return SYS5(execveat, a[0].i, "", words, envp_, AT_EMPTY_PATH);
}

/* ---- a compiled plan ------------------------------------------------------------------------------- */

static const struct op {
	const char *args;
	long (*run)(struct arg *);
} ops[] = {
#define ENTRY(name, args) {args, op_##name},
	/* clang-format off: a table */
	REPLAY(ENTRY)
	/* clang-format on */
};
#define N_OPS (sizeof ops / sizeof *ops)

/* Returns whether it is a plan for our words; one that is, and fails on the way, leaves the rest to Python. */
static int run_plan(const char *p, const char *end)
{
	struct replay_header head;
	struct arg a[12];
	uint32_t code;

	if (!take(&p, end, &head, sizeof head) || memcmp(head.magic, REPLAY_MAGIC, sizeof head.magic) != 0 ||
	    memcmp(head.build, NSRUN_BUILD, sizeof head.build) != 0 || checksum(p, (size_t)(end - p)) != head.checksum)
		return 0;
	for (uint32_t i = 0; i < head.count; i++)
		if (!take(&p, end, &code, sizeof code) || code >= N_OPS || !decode_args(ops[code].args, &p, end, a) || ops[code].run(a) < 0)
			return i > 0;
	return 1;
}

/* Map a file that only we may write, and nobody else read; 0 when it is none. */
static const char *map_plan(int fd, size_t *size)
{
	const uint32_t known = STATX_TYPE | STATX_MODE | STATX_UID | STATX_SIZE;
	struct statx st;
	long n;
	char *text;

	if (SYS5(statx, fd, "", AT_EMPTY_PATH, known, &st) < 0 || (st.stx_mode & S_IFMT) != S_IFREG || st.stx_mode & 077 ||
	    st.stx_uid != (uint32_t)SYS0(geteuid) || st.stx_size > REPLAY_BYTES || !(text = map_memory(st.stx_size)))
		return NULL;
	for (*size = 0; *size < st.stx_size; *size += (size_t)n)
		if ((n = SYS3(read, fd, text + *size, st.stx_size - *size)) <= 0)
			break;
	return text;
}

/* FNV-1a of the words so far, each with its NUL. */
static uint64_t hash_word(uint64_t hash, const char *word)
{
	do
		hash = (hash ^ (unsigned char)*word) * 0x100000001b3;
	while (*word++);
	return hash;
}

static int fits(const char *root)
{
	return root[0] == '/' && str_len(root) < PATH_MAX - 64;
}

static void replay(void)
{
	char path[PATH_MAX], *name;
	const char *root = variable("NSRUN_ROOT");
	uint64_t hash = 0xcbf29ce484222325;

	if (sizeof NSRUN_BUILD != sizeof((struct replay_header *)0)->build + 1 || SYS0(geteuid) != 0 || (root && *root && !fits(root)))
		return;
	replayed = 1;
	SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0); /* until our child execs, it is in the pod with our memory: kernel.c, hide() */
	for (unsigned i = 0; i < sizeof ours / sizeof *ours; i++)
		SYS4(rt_sigaction, ours[i].number, &ours[i].ours, &ours[i].callers, sizeof(sigbits));
	for (int fd = 0; fd < 3; fd++)
		if (SYS2(fcntl, fd, F_GETFD) < 0)
			return;
	name = put_str(path, root && *root ? root : "/run/nsrun");
	name = put_str(name, root && *root ? "/run/plans/" : "/plans/");
	for (n_words = 1; n_words < argc_ && n_words <= REPLAY_WORDS; n_words++) {
		const char *text;
		size_t size;
		long fd;
		hash = hash_word(hash, argv_[n_words]);
		for (int i = 0; i < 16; i++)
			name[i] = "0123456789abcdef"[hash >> (60 - 4 * i) & 15];
		name[16] = 0;
		fd = SYS3(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (fd < 0)
			continue;
		text = map_plan((int)fd, &size);
		SYS1(close, fd);
		if (!text)
			continue;
		for (fd = REPLAY_FIRST; fd < REPLAY_FIRST + REPLAY_HANDLES; fd++)
			if (SYS2(fcntl, fd, F_GETFD) >= 0)
				return; /* a caller's descriptor, which is not ours to replace */
		if (run_plan(text, text + size))
			return;
	}
}

/* What was begun ends: nsrun-init, if it was started.  All of our descriptors end with the next exec; the caller's do not. */
static void undo(void)
{
	SYS1(close, channel);
	if (child >= 0) {
		SYS4(pidfd_send_signal, child, SIGKILL, NULL, 0);
		SYS5(waitid, P_PIDFD, child, NULL, WEXITED, NULL);
	}
	if (replayed)
		for (unsigned i = 0; i < sizeof ours / sizeof *ours; i++)
			SYS4(rt_sigaction, ours[i].number, &ours[i].callers, NULL, sizeof(sigbits));
	SYS4(rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
}

/* ---- Python ---------------------------------------------------------------------------------------- */

/* Cut a path after its directory; returns 0 when it has none. */
static int to_directory(char *path, long n)
{
	while (n > 0 && path[n - 1] != '/')
		n--;
	path[n > 0 ? n - 1 : 0] = 0;
	return n > 0;
}

/* Find the file that was executed, where /proc can't tell: what the kernel was given (getauxval(3), AT_EXECFN), or where that leads. */
static long find_ourselves(char *path, size_t size)
{
	const long *vector = (const long *)envp_;
	const char *name = argv_[0];
	long n;

	while (*vector++)
		;
	for (; *vector; vector += 2)
		if (*vector == AT_EXECFN)
			name = (const char *)vector[1];
	if ((size_t)(n = (long)str_len(name)) >= size)
		return -ENAMETOOLONG;
	memcpy(path, name, (size_t)n + 1);
	for (int links = 0; links < 8; links++) {
		char target[PATH_MAX];
		long at = n, length = SYS4(readlinkat, AT_FDCWD, path, target, sizeof target - 1);
		if (length <= 0)
			break;
		while (target[0] != '/' && at > 0 && path[at - 1] != '/')
			at--;
		at = target[0] == '/' ? 0 : at;
		if ((size_t)(at + length) >= size)
			return -ENAMETOOLONG;
		memcpy(path + at, target, (size_t)length);
		path[n = at + length] = 0;
	}
	return n;
}

/* Execute an interpreter with the script beside us and our words; returns -errno. */
static long python(const char *directory, const char *where, size_t n_where, const char *flags)
{
	char interpreter[2 * PATH_MAX], script[2 * PATH_MAX];
	const char **words = pointers((size_t)argc_ + 3);
	int n = 0;

	if (!words)
		return -ENOMEM;
	if (n_where > PATH_MAX)
		return -ENAMETOOLONG;
	*put_str((char *)memcpy(interpreter, where, n_where) + n_where, "/python3") = 0;
	*put_str(put_str(script, directory), SCRIPT) = 0;
	if (SYS3(faccessat, AT_FDCWD, script, R_OK) < 0)
		return -ENOENT;
	words[n++] = interpreter;
	words[n++] = flags;
	words[n++] = script;
	for (int i = 1; i < argc_; i++)
		words[n++] = argv_[i];
	return SYS3(execve, interpreter, words, envp_);
}

/*
 * Execute Python: the interpreter that setup.py was told, or the one beside us, without site, which costs 2 ms; or, if there is
 * none, that of PATH, which finds what `pip install --user` installed.
 */
static long any_python(const char *directory)
{
	const char *home = NSRUN_HOME[0] ? NSRUN_HOME : directory, *path = variable("PATH"), *end;
	long r = python(directory, home, str_len(home), NSRUN_FLAGS);

	for (path = path ? path : DEFAULT_PATH; *path && r == -ENOENT && !NSRUN_HOME[0]; path = *end ? end + 1 : end) {
		for (end = path; *end && *end != ':'; end++)
			;
		if (*path == '/')
			r = python(directory, path, (size_t)(end - path), "-P");
	}
	return r;
}

static int give_up(long error)
{
	char text[64];

	if (error == -E2BIG) {
		say("nsrun: the arguments and the environment are too long [E2BIG]\nhint: fewer, or shorter ones: execve(2)\n");
		return 125;
	}
	say("nsrun: Python can't be executed: it is expected beside the program nsrun, with nsrun-python");
	*put_str(put_num(put_str(text, " [errno "), (unsigned long)-error, 1), "]\n") = 0;
	say(text);
	say("hint: make build, or make install\n");
	return 125;
}

int main(int argc, char **argv, char **envp)
{
	const char *wish;
	char path[PATH_MAX];
	long n;

	argc_ = argc, argv_ = argv, envp_ = envp;
	wish = variable("NSRUN_REPLAY");
	if (!wish || !str_eq(wish, "0")) {
		SYS4(rt_sigprocmask, SIG_SETMASK, NULL, &mask, sizeof mask);
		replay();
		undo();
		if (released) {
			say("nsrun: the command was started, and killed again: its monitor can't be executed\n");
			return 125;
		}
		if (wish && str_eq(wish, "must")) {
			say("nsrun: nothing to replay\n");
			return 125;
		}
	}
	n = SYS4(readlinkat, AT_FDCWD, "/proc/self/exe", path, sizeof path - 1);
	if (n <= 0)
		n = find_ourselves(path, sizeof path - 1);
	if (n > 0 && to_directory(path, n))
		n = any_python(path);
	return give_up(n < 0 ? n : -ENOENT);
}
