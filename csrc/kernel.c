/*
 * kernel.c: the C side of nsrun._kernel.  Thin wrappers, and one function that is more: launching.
 *
 * Why launching is C.  Between clone and exec a child shares the memory of a Python that may have threads:
 * no Python may run there.  And a caller that has joined a pod's namespaces must leave them again whatever
 * happens, or it would pin them.  nsrun_do_launch therefore does, in one go and with all signals blocked:
 *
 *     [clone an intermediate child that will become nsrun-monitor; it does the rest]
 *     keep descriptors of its own net, ipc, uts and pid namespaces
 *     setns(pidfd of the pod, …)                       per thread: other threads of the process stay
 *     clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|…)       the child, born in its cgroup, execs nsrun-init
 *     setns back, one by one                           the monitor must not live in the pod
 *
 * Nobody comes back from a user namespace.  So where one has to be joined, or where we are in one already (and have no
 * power over the namespaces that we would go back to), a helper does the middle, and makes the child ours (CLONE_PARENT).
 *
 * What is launched has a session and a session keyring of its own, and none of the descriptors that happen to be open here: in a pod of
 * somebody's, its owner may look into it from its exec on (session.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "session.h"

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif

typedef struct {
	int user_fd, join_fd, join_flags, one_way, clone_flags, cgroup, program;
	char **argv;
	int stdio[3];
	int *keep, n_keep;
	int monitor;
	char **monitor_argv, **monitor_envp;
	int *monitor_keep, n_monitor_keep, pidfd_slot;
	int *locks, n_locks, lock_byte;
	int pid, pidfd, monitor_pid, failed, error, nest;
} nsrun_launch;

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

#define CHILD_STACK (64 * 1024)

struct clone3_args {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

/*
 * clone3(2), which glibc does not offer: the child calls fn(arg) on its own stack.  We need it for one flag:
 * CLONE_INTO_CGROUP.  Moving a process by cgroup.procs waits for an RCU grace period, ten milliseconds; being
 * born there costs nothing.
 */
static long clone3(struct clone3_args *args, int (*fn)(void *), void *arg)
{
#if defined(__x86_64__)
	register int (*f)(void *) __asm__("r12") = fn;
	register void *a __asm__("r13") = arg;
	long ret;
	__asm__ volatile("syscall\n\ttest %%rax,%%rax\n\tjnz 1f\n\txor %%ebp,%%ebp\n\tmov %3,%%rdi\n\tcall *%2\n\t"
	                 "mov %%eax,%%edi\n\tmov %4,%%eax\n\tsyscall\n1:"
	                 : "=a"(ret)
	                 : "0"((long)SYS_clone3), "r"(f), "r"(a), "i"(SYS_exit_group), "D"(args), "S"(sizeof *args)
	                 : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = SYS_clone3;
	register long ret __asm__("x0") = (long)args;
	register long x1 __asm__("x1") = sizeof *args;
	register int (*f)(void *) __asm__("x19") = fn;
	register void *a __asm__("x20") = arg;
	__asm__ volatile("svc 0\n\tcbnz x0,1f\n\tmov x29,#0\n\tmov x0,%4\n\tblr %3\n\tmov x8,%5\n\tsvc 0\n1:"
	                 : "+r"(ret)
	                 : "r"(x8), "r"(x1), "r"(f), "r"(a), "i"(SYS_exit_group)
	                 : "x30", "memory", "cc");
#else
#error "nsrun knows x86-64 and aarch64"
#endif
	if (ret < 0) {
		errno = (int)-ret;
		return -1;
	}
	return ret;
}

static long result(long r)
{
	return r < 0 ? -errno : r;
}

static long spawn(int (*fn)(void *), void *arg, uint64_t flags, int *pidfd, int cgroup)
{
	/* With CLONE_PARENT the signal to the parent is the parent's own: 0 has to stand here. */
	char *stack = mmap(NULL, CHILD_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	struct clone3_args args = {
		.flags = CLONE_VM | CLONE_VFORK | flags | (cgroup >= 0 ? CLONE_INTO_CGROUP : 0),
		.pidfd = (uint64_t)(uintptr_t)pidfd,
		.exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD,
		.stack = (uint64_t)(uintptr_t)stack,
		.stack_size = CHILD_STACK,
		.cgroup = cgroup >= 0 ? (uint64_t)cgroup : 0,
	};
	long pid;

	if (stack == MAP_FAILED)
		return -errno;
	pid = clone3(&args, fn, arg);
	if (pid < 0)
		pid = -errno;
	munmap(stack, CHILD_STACK);
	return pid;
}

static void inherit(const int *fds, int n)
{
	for (int i = 0; i < n; i++)
		fcntl(fds[i], F_SETFD, 0);
}

/* fcntl(2) F_SETLK of one byte (length 1) or from one to the end (length 0). */
static long nsrun_lock(int fd, int kind, long byte, long length)
{
	struct flock l = {.l_type = (short)kind, .l_whence = SEEK_SET, .l_start = byte, .l_len = length};
	return result(fcntl(fd, F_SETLK, &l));
}

/* The pid of who locks something there, in our PID namespace (0: it has none in here); -ESRCH: nobody does. */
static long nsrun_locked(int fd, long byte, long length)
{
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = length};
	if (fcntl(fd, F_GETLK, &l) < 0)
		return -errno;
	if (l.l_type == F_UNLCK)
		return -ESRCH;
	return l.l_pid > 0 ? l.l_pid : 0; /* -1: an open file description's, F_OFD_SETLK */
}

/*
 * A record lock belongs to a process and its descriptor table, and outlives an exec: what is about to be executed here
 * proves from its first instruction on that what it keeps is alive (nsrun/state/life.py).  Not inherited by a fork, so it is
 * taken by the child itself.
 */
static int take_locks(nsrun_launch *l)
{
	for (int i = 0; i < l->n_locks; i++) {
		long r = nsrun_lock(l->locks[i], F_RDLCK, l->lock_byte, 1);
		if (r < 0) {
			l->failed = 6;
			l->error = (int)r;
			return -1;
		}
	}
	return 0;
}

/* What a shell left open for us (9>lock) is not for whom we start. */
static void close_all_on_exec(void)
{
	syscall(SYS_close_range, 3, ~0U, 4 /* CLOSE_RANGE_CLOEXEC */);
}

/* In the child, which has its own descriptor table and our memory: exec nsrun-init. */
static int become_init(void *arg)
{
	static char *const no_env[] = {NULL};
	nsrun_launch *l = arg;
	int high[3];

	if (l->monitor < 0 && take_locks(l) < 0)
		_exit(125);
	syscall(SYS_setsid); /* no controlling terminal: /dev/tty would be the caller's */
	for (int i = 0; i < 3; i++)
		high[i] = fcntl(l->stdio[i], F_DUPFD_CLOEXEC, 64);
	for (int i = 0; i < 3; i++)
		dup3(high[i], i, 0);
	close_all_on_exec();
	inherit(l->keep, l->n_keep);
	if (!l->one_way && own_keyring() < 0) /* else before the user namespace was joined */
		_exit(125);
	/*
	 * In a user namespace that was joined its ids become 0 of it: ids that mean nothing there can make no file.  Not before
	 * the clone, which root's own id allows to be into root's cgroup.  By raw calls: libc's go to all threads of its process.
	 */
	if ((l->user_fd >= 0 || l->join_flags & CLONE_NEWUSER) &&
	    (syscall(SYS_setgroups, 0, NULL) < 0 || syscall(SYS_setresgid, 0, 0, 0) < 0 || syscall(SYS_setresuid, 0, 0, 0) < 0))
		_exit(125);
	if (l->user_fd >= 0 && least_limits(64 << 20, 64) < 0) /* pause, in a pod of somebody's */
		_exit(125);
	syscall(SYS_execveat, l->program, "", l->argv, no_env, AT_EMPTY_PATH);
	_exit(125);
}

/*
 * A PID namespace inside the pod's: clone3 makes one only for a caller whose own PID namespace is the parent.  So a
 * helper is born in the pod, makes the child our child (CLONE_PARENT) and ends; it shares our descriptor table, so
 * that the pidfd is ours.
 */
static int become_nest(void *arg)
{
	nsrun_launch *l = arg;
	long r = spawn(become_init, l, CLONE_PIDFD | CLONE_PARENT | (uint64_t)(unsigned)l->clone_flags, &l->pidfd, l->cgroup);
	l->error = r < 0 ? (int)r : 0;
	return 0;
}

/* The pid that a pidfd stands for, in our PID namespace: "Pid:" of its fdinfo. */
static int pid_of(int pidfd)
{
	char path[64], text[1024], *at;
	int fd;
	ssize_t n;

	snprintf(path, sizeof path, "/proc/thread-self/fdinfo/%d", pidfd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	at = strstr(text, "Pid:");
	return at ? atoi(at + 4) : -1;
}

static long spawn_nested(nsrun_launch *l)
{
	long helper = spawn(become_nest, l, CLONE_FILES, NULL, -1);

	if (helper < 0)
		return helper;
	waitpid((pid_t)helper, NULL, 0);
	return l->error < 0 ? l->error : pid_of(l->pidfd);
}

/* In the helper, which shares our memory and descriptors. */
static long join_one_way(nsrun_launch *l)
{
	l->failed = 7;
	MUST(own_keyring());
	if (syscall(SYS_geteuid) == 0)
		MUST(plain_priorities(0));
	l->failed = 2;
	if (l->user_fd >= 0 && setns(l->user_fd, CLONE_NEWUSER) < 0)
		return -errno;
	return l->join_fd >= 0 ? result(setns(l->join_fd, l->join_flags)) : 0;
}

static int become_joiner(void *arg)
{
	nsrun_launch *l = arg;
	long r = join_one_way(l);

	if (r >= 0) {
		l->failed = 3;
		if (l->join_flags & l->clone_flags & CLONE_NEWPID) {
			r = spawn(become_nest, l, CLONE_FILES | CLONE_PARENT, NULL, -1);
			l->nest = (int)r;
		} else {
			r = spawn(become_init, l, CLONE_PIDFD | CLONE_PARENT | (uint64_t)(unsigned)l->clone_flags, &l->pidfd, l->cgroup);
			l->pid = (int)r;
		}
	}
	if (r < 0)
		l->error = (int)r;
	return 0;
}

static long spawn_joiner(nsrun_launch *l)
{
	long helper;

	l->failed = 3;
	l->error = 0;
	helper = spawn(become_joiner, l, CLONE_FILES, NULL, -1);
	if (helper < 0)
		return helper;
	waitpid((pid_t)helper, NULL, 0);
	if (l->nest > 0) {
		waitpid(l->nest, NULL, 0);
		l->pid = l->error < 0 ? -1 : pid_of(l->pidfd);
	}
	if (l->error < 0)
		return l->error;
	l->failed = 0;
	return l->pid;
}

static const struct {
	const char *path;
	int type;
} mine[] = {{"/proc/thread-self/ns/net", CLONE_NEWNET},
            {"/proc/thread-self/ns/ipc", CLONE_NEWIPC},
            {"/proc/thread-self/ns/uts", CLONE_NEWUTS},
            {"/proc/thread-self/ns/cgroup", CLONE_NEWCGROUP},
            {"/proc/thread-self/ns/pid_for_children", CLONE_NEWPID}};
#define N_MINE (int)(sizeof mine / sizeof *mine)

static long join_and_clone(nsrun_launch *l)
{
	int saved[N_MINE], n = 0;
	long r = 0;

	if (l->one_way)
		return spawn_joiner(l);
	if (l->join_fd >= 0) {
		l->failed = 1;
		for (; n < N_MINE && r >= 0; n++) {
			saved[n] = l->join_flags & mine[n].type ? open(mine[n].path, O_RDONLY | O_CLOEXEC) : -2;
			r = saved[n] == -1 ? -errno : 0;
		}
		if (r >= 0) {
			l->failed = 2;
			r = result(setns(l->join_fd, l->join_flags));
		}
	}
	if (r >= 0) {
		l->failed = 3;
		if (l->join_flags & l->clone_flags & CLONE_NEWPID)
			r = spawn_nested(l);
		else
			r = spawn(become_init, l, CLONE_PIDFD | (uint64_t)(unsigned)l->clone_flags, &l->pidfd, l->cgroup);
		if (r >= 0 && l->failed == 6) {
			waitpid((pid_t)r, NULL, 0);
			r = l->error;
		} else if (r >= 0) {
			l->pid = (int)r, l->failed = 0;
		}
	}
	for (int i = 0; i < n; i++)
		if (saved[i] >= 0) {
			if (setns(saved[i], mine[i].type) < 0 && l->failed != 1) {
				/* Going on here would leave this thread half inside the pod. */
				l->failed = 5;
				r = -errno;
			}
			close(saved[i]);
		}
	return r;
}

/* In the intermediate child: launch, then become the monitor. */
static int become_monitor(void *arg)
{
	nsrun_launch *l = arg;
	int null;

	setsid();
	if (take_locks(l) < 0)
		_exit(125);
	l->error = (int)join_and_clone(l);
	if (l->error < 0)
		_exit(125);
	close_all_on_exec();
	dup3(l->pidfd, l->pidfd_slot, 0);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int i = 0; i < 3; i++)
		dup3(null, i, 0);
	inherit(l->monitor_keep, l->n_monitor_keep);
	if (chdir("/") < 0)
		_exit(125);
	syscall(SYS_execveat, l->monitor, "", l->monitor_argv, l->monitor_envp, AT_EMPTY_PATH);
	_exit(125);
}

/*
 * Until it execs, the child is a process of the pod with *our* memory: while any thread launches, this process is
 * not dumpable, so that no member can look into it (CVE-2016-9962).
 */
static void hide(int on)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static int launching, before;

	pthread_mutex_lock(&lock);
	if (on && launching++ == 0) {
		before = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	}
	if (!on && --launching == 0 && before == 1)
		prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	pthread_mutex_unlock(&lock);
}

static long nsrun_do_launch(nsrun_launch *l)
{
	sigset_t all, before;
	long r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	hide(1);
	l->pid = l->monitor_pid = l->pidfd = -1;
	l->failed = l->error = l->nest = 0;
	if (l->monitor < 0) {
		r = join_and_clone(l);
	} else {
		l->failed = 4;
		r = spawn(become_monitor, l, 0, NULL, -1);
		l->pidfd = -1; /* a number of the monitor's table, not of ours */
		if (r >= 0) {
			l->monitor_pid = (int)r;
			if (l->pid < 0)
				r = l->error < 0 ? l->error : -ECHILD;
			else
				l->failed = 0;
		}
	}
	hide(0);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return r;
}

/* ---- namespaces that nobody is in -------------------------------------------------------------------- */

struct maker {
	int user_fd, fd;
	long error;
};

static int make_netns(void *arg)
{
	struct maker *m = arg;

	m->error = m->user_fd >= 0 ? own_keyring() : 0;
	if (m->error >= 0 && m->user_fd >= 0)
		m->error = result(setns(m->user_fd, CLONE_NEWUSER));
	if (m->error >= 0)
		m->error = result(unshare(CLONE_NEWNET));
	if (m->error >= 0) {
		m->fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
		m->error = m->fd < 0 ? -errno : 0;
	}
	return 0;
}

/* A network namespace, owned by the user namespace `user_fd` (-1: ours): made by a child that shares our descriptors. */
static long nsrun_new_netns(int user_fd)
{
	struct maker m = {.user_fd = user_fd, .fd = -1};
	long child;

	hide(1);
	child = spawn(make_netns, &m, CLONE_FILES, NULL, -1);
	hide(0);
	if (child < 0)
		return child;
	waitpid((pid_t)child, NULL, 0);
	return m.error < 0 ? m.error : m.fd;
}

/*
 * A process in a new user namespace, which belongs to `uid` (-1: to us).  It waits until *hold is closed, so that
 * somebody can write its maps.  A real fork: the parent goes on meanwhile.  The user may signal it: a parent waits for it
 * some seconds only, and ends it with SIGKILL, which reaches what was stopped, too.
 */
static long nsrun_spawn_userns(int uid, int gid, int *hold)
{
	int ready[2], wait[2], error = 0;
	char byte;
	pid_t pid;

	if (pipe2(ready, O_CLOEXEC) < 0)
		return -errno;
	if (pipe2(wait, O_CLOEXEC) < 0) {
		error = errno;
		close(ready[0]), close(ready[1]);
		return -error;
	}
	pid = fork();
	if (pid == 0) {
		close(wait[1]);
		if (uid >= 0)
			error = (int)-become_user(uid, gid, gid, NULL, 0);
		if (!error && unshare(CLONE_NEWUSER) < 0)
			error = errno;
		if (write(ready[1], &error, sizeof error) == sizeof error)
			error = (int)read(wait[0], &byte, 1);
		_exit(0);
	}
	close(ready[1]), close(wait[0]);
	if (pid < 0) {
		error = EAGAIN;
	} else {
		struct pollfd p = {.fd = ready[0], .events = POLLIN};
		int heard;
		while ((heard = poll(&p, 1, 5000)) < 0 && errno == EINTR)
			;
		if (heard == 0)
			error = ETIMEDOUT;
		else if (heard < 0 || read(ready[0], &error, sizeof error) != sizeof error)
			error = ECHILD;
	}
	close(ready[0]);
	if (error) {
		close(wait[1]);
		if (pid > 0) {
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
		}
		return -error;
	}
	*hold = wait[1];
	return pid;
}

/* ---- root becomes a user --------------------------------------------------------------------------------- */

/*
 * The calling process, which has one thread, becomes that user for good.  The descriptors above 2 stay open here and do
 * not survive an exec; the working directory, which could lie where the user does not get by a path, does not stay.
 */
static long nsrun_become(int uid, int gid, const unsigned *groups, int n)
{
	close_all_on_exec();
	if (chdir("/") < 0)
		return -errno;
	return become_user(uid, gid, gid, groups, n);
}

/*
 * A program as that user, in a session of its own, whose output goes to `out`; its pid.  A real fork, and nothing is
 * waited for: the user may stop it at any moment.
 */
static long nsrun_spawn_as(int uid, int gid, const unsigned *groups, int n, int out, char **argv, char **envp)
{
	const sigset_t none = {0};
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	pid_t pid;

	if (null < 0)
		return -errno;
	pid = fork();
	if (pid == 0) {
		for (int sig = 1; sig <= 64; sig++)
			signal(sig, SIG_DFL);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setsid();
		if (dup2(null, 0) < 0 || dup2(null, 2) < 0 || dup2(out, 1) < 0)
			_exit(125);
		if (nsrun_become(uid, gid, groups, n) < 0 || least_limits(1 << 30, 256) < 0 || lower_limit(L_CPU, (struct limit){60, 60}) < 0)
			_exit(125);
		syscall(SYS_execve, argv[0], argv, envp);
		_exit(125);
	}
	close(null);
	return pid < 0 ? -EAGAIN : pid;
}

/*
 * From here on we are in that user namespace (-1: in ours), with a mount tree of our own in it.  There is no way back.  What was not to
 * be looked into before (root's memory, nsrun_become()) is not afterwards: new credentials set it to fs.suid_dumpable.
 */
static long nsrun_enter_userns(int fd)
{
	int hidden = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0;

	if ((fd >= 0 && setns(fd, CLONE_NEWUSER) < 0) || unshare(CLONE_NEWNS) < 0)
		return -errno;
	if (hidden)
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	return 0;
}

/* Moves the calling thread; the descriptor that leads back is the result. */
static long nsrun_enter_netns(int fd)
{
	int old = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (old < 0)
		return -errno;
	if (setns(fd, CLONE_NEWNET) < 0) {
		long r = -errno;
		close(old);
		return r;
	}
	return old;
}

static long nsrun_pidfd_open(int pid)
{
	return result(syscall(SYS_pidfd_open, pid, 0));
}

static long nsrun_pidfd_send_signal(int fd, int sig)
{
	return result(syscall(SYS_pidfd_send_signal, fd, sig, NULL, 0));
}

static long nsrun_fsopen(const char *type)
{
	return result(syscall(SYS_fsopen, type, 1 /* FSOPEN_CLOEXEC */));
}

static long nsrun_fsconfig(int fd, unsigned cmd, const char *key, const char *value)
{
	return result(syscall(SYS_fsconfig, fd, cmd, key, value, 0));
}

/*
 * The same in the directory `dir` (-1: where we are), for relative paths: an fsconfig string ends at 256 bytes, and before
 * Linux 6.5 all of an overlay's layers must share one.  And in the mount namespace `mnt` (-1: ours).  A vfork child has a
 * working directory and a mount namespace of its own.
 */
static long nsrun_fsconfig_in(int dir, int mnt, int fd, unsigned cmd, const char *key, const char *value)
{
	volatile long r = 0;
	int status;
	pid_t pid;

	if (dir < 0 && mnt < 0)
		return nsrun_fsconfig(fd, cmd, key, value);
	pid = vfork();
	if (pid == 0) {
		if ((mnt >= 0 && setns(mnt, CLONE_NEWNS) < 0) || (dir >= 0 && fchdir(dir) < 0))
			r = -errno;
		else
			r = nsrun_fsconfig(fd, cmd, key, value);
		_exit(0);
	}
	if (pid < 0)
		return -errno;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return r;
}

static long nsrun_fsmount(int fd, unsigned attrs)
{
	return result(syscall(SYS_fsmount, fd, 1 /* FSMOUNT_CLOEXEC */, attrs));
}

struct apart {
	const int *trees;
	int n, fd;
	long error;
};

static int attach_apart(void *arg)
{
	struct apart *a = arg;

	a->error = result(unshare(CLONE_NEWNS));
	if (a->error >= 0)
		a->error = result(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	for (int i = 0; i < a->n && a->error >= 0; i++)
		a->error = result(syscall(SYS_move_mount, a->trees[i], "", AT_FDCWD, "/sys", 4 /* MOVE_MOUNT_F_EMPTY_PATH */));
	if (a->error >= 0) {
		a->fd = open("/proc/thread-self/ns/mnt", O_RDONLY | O_CLOEXEC);
		a->error = a->fd < 0 ? -errno : 0;
	}
	return 0;
}

/*
 * A mount namespace that nobody is in, in which these detached trees are attached: before Linux 6.15 an overlay takes no
 * layer from a mount that is attached nowhere.  They are stacked on one directory: nobody looks them up by name.
 */
static long nsrun_attach_apart(const int *trees, int n)
{
	struct apart a = {.trees = trees, .n = n, .fd = -1};
	long child = spawn(attach_apart, &a, CLONE_FILES, NULL, -1);

	if (child < 0)
		return child;
	waitpid((pid_t)child, NULL, 0);
	return a.error < 0 ? a.error : a.fd;
}

static long nsrun_open_tree(int dir, const char *path, unsigned flags)
{
	return result(syscall(SYS_open_tree, dir, path, flags));
}

static long nsrun_mount_setattr(int fd, unsigned flags, uint64_t set, uint64_t clear, uint64_t propagation, int userns)
{
	uint64_t attr[4] = {set, clear, propagation, userns >= 0 ? (uint64_t)userns : 0}; /* struct mount_attr */
	return result(syscall(SYS_mount_setattr, fd, "", flags | AT_EMPTY_PATH, attr, sizeof attr));
}

static long nsrun_openat2(int dir, const char *path, uint64_t flags, uint64_t resolve)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
	long r = -EAGAIN;

	/* EAGAIN: something was renamed or mounted meanwhile, somewhere; the kernel asks to try again (sys.h, open_how) */
	for (int tries = 0; tries < 1000 && r == -EAGAIN; tries++)
		r = result(syscall(SYS_openat2, dir, path, &how, sizeof how));
	return r;
}

static long nsrun_fs_magic(int fd)
{
	struct statfs st;
	return fstatfs(fd, &st) < 0 ? -errno : (long)st.f_type;
}

/*
 * A file in memory that nobody can change any more, a program or data.  MFD_EXEC, MFD_NOEXEC_SEAL and F_SEAL_EXEC are
 * tried first (Linux 6.3).  EACCES: vm.memfd_noexec is 2, and it was to be a program.
 */
static long nsrun_sealed_memfd(const char *name, const char *data, size_t size, int program)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | (program ? 0x10U /* MFD_EXEC */ : 8U /* MFD_NOEXEC_SEAL */));
	const int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	for (size_t at = 0; at < size;) {
		ssize_t n = write(fd, data + at, size - at);
		if (n < 0) {
			long r = -errno;
			close(fd);
			return r;
		}
		at += (size_t)n;
	}
	if (fcntl(fd, F_ADD_SEALS, seals | 0x20 /* F_SEAL_EXEC */) < 0 && fcntl(fd, F_ADD_SEALS, seals) < 0) {
		long r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

/* CRC-32 (ISO 3309, as zlib has it): any flipped bit, and any burst of up to 32, shows. */
static uint32_t nsrun_checksum(const char *data, size_t size)
{
	static const uint32_t of_four_bits[] = {
		0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
		0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
	};
	uint32_t crc = ~0U;

	for (size_t i = 0; i < size; i++) {
		crc ^= (unsigned char)data[i];
		crc = crc >> 4 ^ of_four_bits[crc & 15];
		crc = crc >> 4 ^ of_four_bits[crc & 15];
	}
	return ~crc;
}

static long nsrun_channel(int *two)
{
	return result(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, two));
}

static long nsrun_replace_process(int program, char **argv, char **envp)
{
	return result(syscall(SYS_execveat, program, "", argv, envp, AT_EMPTY_PATH));
}
