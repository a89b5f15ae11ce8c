/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.h: what a process gives up before it comes under another user's control.
 *
 * A process that may ptrace another has everything that one has.  nsrun as root becomes the owner of a pod, or enters the
 * owner's user namespace, in several places: the launch of pause, nsrun-door, the process that asks the owner's nsrun, and
 * `sudo nsrun exec`.  Each of them first calls the functions below, while the process can't be traced: it is not dumpable,
 * and its memory belongs to the host's user namespace until it execs (ptrace(2), "Ptrace access mode checking").  They work
 * in programs without a C library (sys.h) and in kernel.c; each returns 0 or -errno, and after an error the caller must end.
 */
#ifndef NSRUN_SESSION_H
#define NSRUN_SESSION_H

#include <asm/unistd.h>
#include <linux/capability.h>
#include <linux/ioprio.h>
#include <linux/keyctl.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <stddef.h>
#include <stdint.h>

/*
 * One system call, which returns a value or -errno.  In kernel.c it goes through libc's syscall(2), never through libc's
 * wrapper of the call, since the wrappers that change ids act on all threads of a process.
 */
#ifdef NSRUN_SYS_H
#define CALL6 SYS
#else
static long call(long number, long a, long b, long c, long d, long e, long f)
{
	long r = syscall(number, a, b, c, d, e, f);
	return r < 0 ? -errno : r;
}
#define CALL6(name, a, b, c, d, e, f) \
	call(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#endif
#define CALL(name, a, b, c, d, e) CALL6(name, a, b, c, d, e, 0)

#define MUST(expression) \
	do { \
		long must_ = (expression); \
		if (must_ < 0) \
			return must_; \
	} while (0)

/* End the process, which must not continue. */
static inline __attribute__((noreturn)) void quit(int code)
{
	for (;;)
		CALL(exit_group, code, 0, 0, 0, 0);
}

struct limit { /* struct rlimit64 */
	uint64_t soft, hard;
};

/*
 * Join a new, empty session keyring: keys are found through the session keyring alone, because the process and thread
 * keyrings do not survive a fork (keyrings(7)).  Where keyctl(2) itself is refused (no CONFIG_KEYS; a seccomp filter, which
 * children inherit), what we start can't name a key, either.
 */
static inline long own_keyring(void)
{
	long r = CALL(keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0);

	if ((r == -ENOSYS || r == -EPERM) && CALL(keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0, 0, 0) == r)
		return 0;
	return r < 0 ? r : 0;
}

static inline long lower_limit(int which, struct limit to)
{
	struct limit now;

	MUST(CALL(prlimit64, 0, which, 0, &now, 0));
	if (to.hard > now.hard)
		to.hard = now.hard;
	if (to.soft > to.hard)
		to.soft = to.hard;
	if (to.soft == now.soft && to.hard == now.hard)
		return 0;
	return CALL(prlimit64, 0, which, &to, 0, 0);
}

struct schedule { /* struct sched_attr, as of its first version */
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

/* SCHED_OTHER, SCHED_BATCH and SCHED_IDLE: those that need no privilege. */
static inline int is_plain(uint32_t policy)
{
	return policy == SCHED_NORMAL || policy == SCHED_BATCH || policy == SCHED_IDLE;
}

static inline long oom_score(const char *path, long *value)
{
	char text[16] = {0};
	int at = 0;
	long n, fd = CALL(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, 0);

	MUST(fd);
	n = CALL(read, fd, text, sizeof text - 1, 0, 0);
	CALL(close, fd, 0, 0, 0, 0);
	MUST(n);
	at = text[0] == '-';
	if (text[at] < '0' || text[at] > '9')
		return -EINVAL;
	for (*value = 0; text[at] >= '0' && text[at] <= '9'; at++)
		*value = *value * 10 + (text[at] - '0');
	if (text[0] == '-')
		*value = -*value;
	return 0;
}

static inline long set_oom_score(long value)
{
	char text[8];
	int n = 0, digits = value > 999 ? 4 : value > 99 ? 3
	                                  : value > 9    ? 2
	                                                 : 1;
	long r, fd = CALL(openat, AT_FDCWD, "/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC, 0, 0);

	MUST(fd);
	for (n = digits; n--; value /= 10)
		text[n] = (char)('0' + value % 10);
	r = CALL(write, fd, text, digits, 0, 0);
	CALL(close, fd, 0, 0, 0, 0);
	return r < 0 ? r : 0;
}

/*
 * Lower the priority to at most that of an ordinary process, whatever root's is: no realtime class, no nice value and no
 * OOM score below 0.  With `reset`, also raise it to that, as far as we may.  sched(7), ioprio_set(2),
 * proc_pid_oom_score_adj(5).
 */
static inline long plain_priorities(int reset)
{
	struct schedule s = {.size = sizeof s};
	long score;
	int high;

	MUST(CALL(sched_getattr, 0, &s, sizeof s, 0, 0));
	high = !is_plain(s.policy) || s.nice < 0;
	if (high || reset) {
		struct schedule plain = {.size = sizeof plain, .nice = reset || s.nice < 0 ? 0 : s.nice};
		long r = CALL(sched_setattr, 0, &plain, 0, 0, 0);
		if (r < 0 && high)
			return r;
	}
	if (reset || CALL(ioprio_get, IOPRIO_WHO_PROCESS, 0, 0, 0, 0) >> IOPRIO_CLASS_SHIFT == IOPRIO_CLASS_RT)
		CALL(ioprio_set, IOPRIO_WHO_PROCESS, 0, 0, 0, 0);
	MUST(oom_score("/proc/self/oom_score_adj", &score));
	if (score < 0 || (reset && score)) {
		long r = set_oom_score(0);
		if (r < 0 && score < 0)
			return r;
	}
	MUST(lower_limit(RLIMIT_NICE, (struct limit){0}));
	return lower_limit(RLIMIT_RTPRIO, (struct limit){0});
}

/*
 * Set the low limits that suffice for pause and for the process that asks an owner's nsrun, since both come under the
 * owner's control.  They fork nothing, and a descriptor above the limit stays open.  CPU time is not limited: pause reaps as
 * long as its pod lives.
 */
static inline long least_limits(uint64_t memory, uint64_t files)
{
	const struct limit none = {0}, one = {1, 1}, few = {16, 16}, size = {1 << 20, 1 << 20}, space = {memory, memory}, open = {files, files};
	const struct limit stack = {memory >> 6, memory >> 6};

	MUST(lower_limit(RLIMIT_FSIZE, size));
	MUST(lower_limit(RLIMIT_DATA, space));
	MUST(lower_limit(RLIMIT_STACK, stack));
	MUST(lower_limit(RLIMIT_CORE, none));
	MUST(lower_limit(RLIMIT_RSS, space));
	MUST(lower_limit(RLIMIT_NPROC, one));
	MUST(lower_limit(RLIMIT_NOFILE, open));
	MUST(lower_limit(RLIMIT_MEMLOCK, none));
	MUST(lower_limit(RLIMIT_AS, space));
	MUST(lower_limit(RLIMIT_LOCKS, few));
	MUST(lower_limit(RLIMIT_SIGPENDING, few));
	MUST(lower_limit(RLIMIT_MSGQUEUE, none));
	MUST(lower_limit(RLIMIT_NICE, none));
	return lower_limit(RLIMIT_RTPRIO, none);
}

/*
 * Root becomes an ordinary user for good.  We reset what setresuid(2) and execve(2) do not: keys, priorities, securebits
 * (with SECBIT_NO_SETUID_FIXUP the capabilities would stay), personality and umask.  `saved` is the saved group id.  The
 * caller must lower the limits before any program of the user runs in the process.
 */
static inline long become_user(long uid, long gid, long saved, const uint32_t *groups, long n)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct no[2] = {{0}};

	CALL(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	MUST(own_keyring());
	MUST(plain_priorities(0));
	if (CALL(prctl, PR_GET_SECUREBITS, 0, 0, 0, 0) != 0)
		MUST(CALL(prctl, PR_SET_SECUREBITS, 0, 0, 0, 0));
	CALL(personality, 0, 0, 0, 0, 0);
	CALL(umask, 022, 0, 0, 0, 0);
	CALL(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	MUST(CALL(setgroups, n, groups, 0, 0, 0));
	MUST(CALL(setresgid, gid, gid, saved, 0, 0));
	MUST(CALL(setresuid, uid, uid, uid, 0, 0));
	MUST(CALL(capset, &head, no, 0, 0, 0));
	return CALL(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
}

#endif
