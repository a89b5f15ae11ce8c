/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch.h: how nsrun-init becomes a process of a pod, for kernel.c (nsrun itself) and for door.c.
 *
 * join_apart() is the launch that joins a user namespace, which is one-way: a helper, which shares our memory and
 * descriptors, joins the pod and clones nsrun-init as our child (CLONE_PARENT).  kernel.c has the other launch, which joins
 * and comes back, and uses the parts of this file.
 *
 *     us ── spawn ──> helper         before_join(), setns(2)
 *     us <── CLONE_PARENT ── helper  clone3(2): the later nsrun-init, born in its cgroup; before_exec(), execveat(2)
 *
 * A PID namespace inside the pod's needs one more process: clone3 makes one only for a caller whose own PID namespace is
 * the parent, so a second helper (become_nest) is born in the pod, and clones.
 *
 * Everything goes through CALL (session.h), so that it works with and without a C library, and between clone and exec in
 * the memory of a process with threads.  The including file defines the two functions that differ.
 */
#ifndef NSRUN_LAUNCH_H
#define NSRUN_LAUNCH_H

#include "protocol.h"
#include "session.h"

#include <linux/close_range.h>
#include <linux/wait.h>

/* kernel_build.py passes this to cffi unchanged. */
struct launch {
	int user_fd;    /* a user namespace to join first; -1: none */
	int join_fd;    /* setns(join_fd, join_flags) before the clone; -1: none */
	int join_flags;
	int one_way;     /* a helper joins and clones, since joining a user namespace is one-way */
	int clone_flags; /* CLONE_NEW… for namespaces made with the process */
	int cgroup;      /* directory of the cgroup it is born in; -1: the caller's */
	int program;     /* nsrun-init: a sealed memfd */
	const char **argv;
	int stdio[3]; /* -1: unchanged */
	int *keep;    /* descriptors it inherits, by the same numbers */
	int n_keep;
	int monitor; /* nsrun-monitor, or -1: the caller itself is the parent */
	const char **monitor_argv;
	const char **monitor_envp;
	int *monitor_keep;
	int n_monitor_keep;
	int pidfd_slot; /* with a monitor: the number under which it finds the member's pidfd */
	int *locks;     /* the process that stays, the monitor or the program, locks lock_byte of these descriptors */
	int n_locks;
	int lock_byte;
	/*
	 * For nsrun-oci, whose containers take namespaces from anywhere: these are joined one by one, in a helper (one_way); with
	 * joins_user, the last is a user namespace, and nsrun-init becomes root of it.
	 */
	int *joins;
	int n_joins;
	int joins_user;
	int plain;       /* nothing of the caller's is changed: no priority, and with keep_keys no keyring */
	int keep_keys;
	int pid;         /* out */
	int pidfd;       /* out; without a monitor */
	int monitor_pid; /* out */
	int failed;      /* out: of enum stage */
	int error;       /* out: -errno; positive until a helper has written its result */
	int nest;        /* internal: pid of the second helper */
};

/* In the helper, before it joins: give up what no process in the pod may have. */
static long before_join(struct launch *l);
/* In the process that is about to exec nsrun-init, in the pod. */
static long before_exec(struct launch *l);

#define CHILD_STACK (64 * 1024)

/*
 * clone3(2), which glibc does not offer: the child calls fn(arg) on its own stack.  We need it for one flag:
 * CLONE_INTO_CGROUP.  Moving a process by cgroup.procs waits for an RCU grace period, ten milliseconds; being
 * born there costs nothing.
 */
static long clone_call(struct clone_args *args, int (*fn)(void *), void *arg)
{
#if defined(__x86_64__)
	register int (*f)(void *) __asm__("r12") = fn;
	register void *a __asm__("r13") = arg;
	long ret;
	__asm__ volatile("syscall\n\ttest %%rax,%%rax\n\tjnz 1f\n\txor %%ebp,%%ebp\n\tmov %3,%%rdi\n\tcall *%2\n\t"
	                 "mov %%eax,%%edi\n\tmov %4,%%eax\n\tsyscall\n1:"
	                 : "=a"(ret)
	                 : "0"((long)__NR_clone3), "r"(f), "r"(a), "i"(__NR_exit_group), "D"(args), "S"(sizeof *args)
	                 : "rcx", "r11", "memory");
	return ret;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = __NR_clone3;
	register long ret __asm__("x0") = (long)args;
	register long x1 __asm__("x1") = sizeof *args;
	register int (*f)(void *) __asm__("x19") = fn;
	register void *a __asm__("x20") = arg;
	__asm__ volatile("svc 0\n\tcbnz x0,1f\n\tmov x29,#0\n\tmov x0,%4\n\tblr %3\n\tmov x8,%5\n\tsvc 0\n1:"
	                 : "+r"(ret)
	                 : "r"(x8), "r"(x1), "r"(f), "r"(a), "i"(__NR_exit_group)
	                 : "x30", "memory", "cc");
	return ret;
#else
#error "nsrun knows x86-64 and aarch64"
#endif
}

/*
 * Start a child that calls fn(arg) in our memory, on its own stack, and wait until it execs or ends (CLONE_VFORK).
 * Returns its pid, or -errno.
 */
static long spawn(int (*fn)(void *), void *arg, uint64_t flags, int *handle, int into)
{
	long pid, stack = CALL6(mmap, 0, CHILD_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_VFORK | flags | (into >= 0 ? CLONE_INTO_CGROUP : 0),
		.pidfd = (uint64_t)(uintptr_t)handle,
		/* With CLONE_PARENT the child sends the same signal as we do at our end, and this must be 0. */
		.exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD,
		.stack = (uint64_t)stack,
		.stack_size = CHILD_STACK,
		.cgroup = into >= 0 ? (unsigned)into : 0,
	};

	if (stack < 0 && stack > -4096)
		return stack;
	pid = clone_call(&args, fn, arg);
	CALL(munmap, stack, CHILD_STACK, 0, 0, 0);
	return pid;
}

/* Wait for a helper, whatever signal it sends at its end. */
static void wait_for(long pid)
{
	CALL(wait4, pid, 0, __WALL, 0, 0);
}

/* ---- descriptors and locks ------------------------------------------------------------------------- */

static void inherit(const int *fds, int n)
{
	for (int i = 0; i < n; i++)
		CALL(fcntl, fds[i], F_SETFD, 0, 0, 0);
}

/* What we start must not inherit descriptors that a shell left open for us (9>lock). */
static void close_all_on_exec(void)
{
	CALL(close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC, 0, 0);
}

/* Make these descriptors our 0, 1 and 2, even if they are 0, 1 or 2 in another order; -1 leaves one unchanged. */
static long take_stdio(const int *from)
{
	long high[3];

	for (int i = 0; i < 3; i++) {
		high[i] = from[i] >= 0 ? CALL(fcntl, from[i], F_DUPFD_CLOEXEC, 3, 0, 0) : -1;
		if (from[i] >= 0)
			MUST(high[i]);
	}
	for (int i = 0; i < 3; i++)
		if (high[i] >= 0)
			MUST(CALL(dup3, high[i], i, 0, 0, 0));
	return 0;
}

/* fcntl(2) F_SETLK of one byte (length 1) or from one to the end (length 0). */
static long lock_byte(int fd, int kind, long byte, long length)
{
	struct flock lock = {.l_type = (short)kind, .l_start = byte, .l_len = length};
	return CALL(fcntl, fd, F_SETLK, &lock, 0, 0);
}

/*
 * A record lock belongs to a process and its descriptor table, and survives an exec: so the program that is about to be
 * executed proves from its first instruction on that what it keeps is alive (nsrun/state/life.py).  A fork does not inherit
 * it, so the child itself takes it.
 */
static inline long take_locks(struct launch *l)
{
	for (int i = 0; i < l->n_locks; i++) {
		long r = lock_byte(l->locks[i], F_RDLCK, l->lock_byte, 1);
		if (r < 0) {
			l->failed = STAGE_LOCK;
			l->error = (int)r;
			return r;
		}
	}
	return 0;
}

/* The pid of a pidfd's process in our PID namespace: "Pid:" of its fdinfo. */
static int pid_of(int fd)
{
	static const char directory[] = "/proc/thread-self/fdinfo/", key[] = "Pid:\t";
	char path[64], text[1024], *p = path + sizeof directory - 1;
	long info, n;
	int digits = 1, pid = 0;

	if (fd < 0)
		return -1;
	for (int i = fd; i > 9; i /= 10)
		digits++;
	memcpy(path, directory, sizeof directory);
	for (p[digits] = 0; digits--; fd /= 10)
		p[digits] = (char)('0' + fd % 10);
	info = CALL(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, 0);
	if (info < 0)
		return -1;
	n = CALL(read, info, text, sizeof text - 1, 0, 0);
	CALL(close, info, 0, 0, 0, 0);
	text[n > 0 ? n : 0] = 0;
	for (p = text; *p; p++)
		if ((p == text || p[-1] == '\n') && memcmp(p, key, sizeof key - 1) == 0)
			break;
	if (!*p)
		return -1;
	for (p += sizeof key - 1; *p >= '0' && *p <= '9'; p++)
		pid = pid * 10 + (*p - '0');
	return pid > 0 ? pid : -1;
}

/* ---- the processes --------------------------------------------------------------------------------- */

/* In the child, which has its own descriptor table but our memory: exec nsrun-init. */
static int become_init(void *arg)
{
	static const char *const no_env[] = {NULL};
	struct launch *l = arg;

	if (take_stdio(l->stdio) < 0)
		quit(125);
	close_all_on_exec();
	inherit(l->keep, l->n_keep);
	if (before_exec(l) < 0)
		quit(125);
	CALL(execveat, l->program, "", l->argv, no_env, AT_EMPTY_PATH);
	quit(125);
}

static long clone_init(struct launch *l, uint64_t flags)
{
	return spawn(become_init, l, CLONE_PIDFD | flags | (uint64_t)(unsigned)l->clone_flags, &l->pidfd, l->cgroup);
}

/* Whether a PID namespace inside the pod's is to be made. */
static int is_nested(const struct launch *l)
{
	return (l->join_flags & l->clone_flags & CLONE_NEWPID) != 0;
}

/* The second helper, born in the pod.  It shares our descriptors, so that we have the pidfd. */
static int become_nest(void *arg)
{
	struct launch *l = arg;
	long r;

	l->error = 0;
	r = clone_init(l, CLONE_PARENT);
	if (r < 0)
		l->error = (int)r;
	return 0;
}

/* The result of a helper that has ended: the pid of nsrun-init, or -errno. */
static long outcome(const struct launch *l)
{
	if (l->error < 0)
		return l->error;
	return l->error == 0 && l->pid > 0 ? l->pid : -ECHILD; /* the helper was killed */
}

/* Join them; what refuses us before the user namespace is joined is joined after it (its owner may have made it). */
static long join_each(struct launch *l)
{
	int last = l->n_joins - (l->joins_user != 0);
	uint64_t later = 0;

	for (int i = 0; i < last; i++) {
		long r = CALL(setns, l->joins[i], 0, 0, 0, 0);
		if (r == -EPERM && l->joins_user && i < 64)
			later |= (uint64_t)1 << i;
		else
			MUST(r);
	}
	if (l->joins_user)
		MUST(CALL(setns, l->joins[last], CLONE_NEWUSER, 0, 0, 0));
	for (int i = 0; i < last; i++)
		if (i < 64 && later >> i & 1)
			MUST(CALL(setns, l->joins[i], 0, 0, 0, 0));
	return 0;
}

static int become_helper(void *arg)
{
	struct launch *l = arg;
	long r;

	l->failed = STAGE_LEAVE;
	r = before_join(l);
	if (r >= 0) {
		l->failed = STAGE_JOIN;
		if (l->user_fd >= 0)
			r = CALL(setns, l->user_fd, CLONE_NEWUSER, 0, 0, 0);
		if (r >= 0 && l->join_fd >= 0)
			r = CALL(setns, l->join_fd, l->join_flags, 0, 0, 0);
		if (r >= 0)
			r = join_each(l);
	}
	if (r >= 0) {
		/* New credentials have set it to fs.suid_dumpable, and the clone is visible in the pod before it is nsrun-init. */
		CALL(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
		l->failed = STAGE_CLONE;
		if (is_nested(l)) {
			r = spawn(become_nest, l, CLONE_FILES | CLONE_PARENT, NULL, -1);
			l->nest = (int)r; /* a child of our parent, which waits for it */
		} else {
			l->error = 0;
			r = clone_init(l, CLONE_PARENT);
			l->pid = (int)r;
		}
	}
	if (r < 0)
		l->error = (int)r;
	return 0;
}

/* Join the pod in a helper, and clone nsrun-init there as our child; returns its pid, or -errno. */
static long join_apart(struct launch *l)
{
	long helper;

	l->failed = STAGE_CLONE;
	l->error = 1;
	helper = spawn(become_helper, l, CLONE_FILES, NULL, -1);
	if (helper < 0)
		return helper;
	wait_for(helper);
	if (l->nest > 0) {
		wait_for(l->nest);
		l->pid = pid_of(l->pidfd);
	}
	helper = outcome(l);
	if (helper >= 0)
		l->failed = STAGE_DONE;
	return helper;
}

#endif
