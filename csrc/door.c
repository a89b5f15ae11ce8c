/*
 * nsrun-door admits: the owner of a pod with a user namespace of its own has no power over the machine's cgroups, so
 * she can't move a process into the pod's cgroup; what is forked inside is in it.  This program waits there, as her,
 * on a socket that only she reaches, and forks what she asks for.  It has no power that she does not have, and ends with pause.
 *
 *   nsrun-door [listen=FD] pause=PIDFD [alive=FD] [forward=PIDFD] [uid=N gid=N groups=A,B,…]
 *     uid, gid, groups   started by root: becomes that user first
 *     listen             without it, it only holds what it inherits until pause ends: the ports and the table of an owned pod, which
 *                        its owner could take out of pause (pidfd_getfd(2)) and keep; and the lock by which root knows that it lives
 *     alive              the read end of a pipe that pause has the other end of: a pause that was killed lets go of it at once,
 *                        while its pidfd waits until every zombie of its PID namespace was reaped
 *     forward            a process that is to end with pause, too (the forwarder of a pod made without root)
 *
 * Started by root it has root's limits, because only so can what it forks have those of who asks, whatever they are.
 * Nothing that the owner may look into has them: door and X are not dumpable, X takes the limits and priorities of its
 * peer first of all (take_from_peer()), and execs the owner's programs last.
 *
 * One connection is one launch (run.py, `through`):
 *
 *   nsrun → door   one packet: descriptors.  The first is a memfd, the request: numbers, strings (see serve())
 *   door → nsrun   {pid, monitor's pid, stage that failed, -errno}, and pidfds of both: a pid alone may be somebody else's soon
 *
 * door forks X.  X puts the descriptors at the numbers that the request gives them, and forks a helper, because who
 * joins a user namespace can't come back.  The helper joins the pod and clones nsrun-init, born in the member's
 * cgroup, as X's child (CLONE_PARENT); X becomes nsrun-monitor.
 */
#include "decode.h"
#include "sys.h"

#include "session.h"

#include <asm/signal.h>
#include <linux/close_range.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/stat.h>
#include <linux/wait.h>

#define AT_EMPTY_PATH_ 0x1000
#define MAX_FDS        250 /* SCM_MAX_FD is 253 */
#define HIGH           512 /* received descriptors wait here; what the request names is below */
#define MAX_REQUEST    (8 << 20) /* execve(2) takes 6 MiB of strings at most */
#define MAX_SECONDS    10 /* from a request to the answer */
#define MAX_WAITING    128 /* who has connected and not asked yet */
#define NAMESPACES \
	(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)

struct request {
	uint32_t magic;
	int32_t join_fd, join_flags, clone_flags, cgroup, program, monitor, pidfd_slot;
	int32_t stdio[3], monitor_stdio[3];
};

/* Written by the helper, read by X. */
struct outcome {
	int32_t pid, monitor, failed, error;
	int32_t pidfd, nest;
};

static const char **argv_[3]; /* of nsrun-init, of nsrun-monitor, and its environment */
static int32_t numbers[MAX_FDS], keep[MAX_FDS], monitor_keep[MAX_FDS], locks[8];
static struct outcome *outcome;

static long fork_(unsigned long flags)
{
	return SYS5(clone, SIGCHLD | flags, 0, 0, 0, 0);
}

static void set_cloexec(int fd, int on)
{
	SYS3(fcntl, fd, F_SETFD, on ? FD_CLOEXEC : 0);
}

/* ---- the launch ------------------------------------------------------------------------------------ */

static void inherit(const int32_t *fds, int n)
{
	for (int i = 0; i < n; i++)
		set_cloexec(fds[i], 0);
}

static void take_stdio(const int32_t *from)
{
	long high[3];
	for (int i = 0; i < 3; i++)
		high[i] = from[i] >= 0 ? SYS3(fcntl, from[i], F_DUPFD_CLOEXEC, 64) : -1;
	for (int i = 0; i < 3; i++)
		if (high[i] >= 0)
			SYS3(dup3, high[i], i, 0);
}

/* In the new process: nsrun-init. */
static __attribute__((noreturn)) void become_init(const struct request *r, int n_keep)
{
	static const char *const no_env[] = {NULL};
	take_stdio(r->stdio);
	inherit(keep, n_keep);
	SYS2(setgroups, 0, NULL); /* without a map entry, a group of hers means nothing in there */
	SYS5(execveat, r->program, "", argv_[0], no_env, AT_EMPTY_PATH_);
	sys_exit(125);
}

static long clone_init(const struct request *r, int n_keep)
{
	struct clone_args args = {
		.flags = CLONE_PIDFD | CLONE_PARENT | (uint32_t)r->clone_flags | (r->cgroup >= 0 ? CLONE_INTO_CGROUP : 0),
		.pidfd = (uint64_t)(uintptr_t)&outcome->pidfd,
		.cgroup = r->cgroup >= 0 ? (uint64_t)r->cgroup : 0,
	};
	long pid = SYS2(clone3, &args, sizeof args);
	if (pid == 0)
		become_init(r, n_keep);
	return pid;
}

/* In the helper, which shares X's descriptors: join, clone, end. */
static __attribute__((noreturn)) void join(const struct request *r, int n_keep)
{
	long pid;

	SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0); /* the clone is seen in the pod before it is nsrun-init */
	/* The session keyring is door's own until nsrun-init has joined another: a user may have 200 keys, keyrings(7). */
	outcome->failed = 2;
	outcome->error = (int32_t)SYS2(setns, r->join_fd, r->join_flags);
	if (outcome->error < 0)
		sys_exit(0);
	outcome->failed = 3;
	if (r->join_flags & r->clone_flags & CLONE_NEWPID) {
		/* a PID namespace inside the pod's is made by one who was born in the pod's */
		outcome->error = 1;
		pid = fork_(CLONE_FILES | CLONE_PARENT);
		if (pid == 0) {
			pid = clone_init(r, n_keep);
			outcome->error = pid < 0 ? (int32_t)pid : 0;
			sys_exit(0);
		}
		if (pid < 0)
			outcome->error = (int32_t)pid;
		outcome->nest = (int32_t)pid; /* X's child, for X to wait for */
		sys_exit(0);
	}
	pid = clone_init(r, n_keep);
	outcome->error = pid < 0 ? (int32_t)pid : 0;
	outcome->pid = (int32_t)pid;
	sys_exit(0);
}

/* The pid that a pidfd stands for, here: "Pid:" of its fdinfo. */
static int32_t pid_of(int fd)
{
	char path[64], text[1024];
	long info, n;

	*put_num(put_str(path, "/proc/self/fdinfo/"), (unsigned long)fd, 1) = 0;
	info = SYS4(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	n = info < 0 ? 0 : SYS3(read, info, text, sizeof text - 1);
	SYS1(close, info);
	text[n > 0 ? n : 0] = 0;
	for (char *p = text; *p; p++) {
		char *digits = (char *)(uintptr_t)str_after(p, "Pid:\t"), *q = digits;
		while (q && *q >= '0' && *q <= '9')
			q++;
		if (q && q > digits) {
			*q = 0;
			return (int32_t)str_num(digits, -1);
		}
	}
	return -1;
}

struct message {
	void *name;
	uint32_t name_len, pad;
	void *iov;
	size_t iov_len;
	void *control;
	size_t control_len;
	uint32_t flags;
};
struct iov {
	void *base;
	size_t len;
};
struct control { /* struct cmsghdr and what follows */
	size_t len;
	int32_t level, type;
	int32_t fds[256];
};

static long receive(int conn, int *fds)
{
	char byte;
	struct iov iov = {&byte, 1};
	struct control c = {0};
	struct message msg = {.iov = &iov, .iov_len = 1, .control = &c, .control_len = sizeof c};
	long n;

	if (SYS3(recvmsg, conn, &msg, 0x40000040 /* MSG_CMSG_CLOEXEC | MSG_DONTWAIT */) < 1 || msg.control_len < 16)
		return -1;
	if (c.level != 1 /* SOL_SOCKET */ || c.type != 1 /* SCM_RIGHTS */)
		return -1;
	n = c.len < 16 || c.len > msg.control_len ? 0 : (long)((c.len - 16) / sizeof(int));
	memcpy(fds, c.fds, (size_t)n * sizeof(int));
	return n;
}

static void answer(int conn, int pidfd, int monitor_pidfd)
{
	struct iov iov = {outcome, offsetof(struct outcome, pidfd)};
	struct control c = {.len = 16 + 2 * sizeof(int), .level = 1 /* SOL_SOCKET */, .type = 1 /* SCM_RIGHTS */, .fds = {pidfd, monitor_pidfd}};
	struct message msg = {.iov = &iov, .iov_len = 1, .control = pidfd >= 0 ? &c : NULL, .control_len = pidfd >= 0 ? c.len : 0};
	SYS3(sendmsg, conn, &msg, 0x4040 /* MSG_NOSIGNAL | MSG_DONTWAIT */);
}

/* The member's keeper is this process, nsrun-monitor to be: it proves so from here on (nsrun/state/life.py, KEEPER). */
static long take_lock(int fd)
{
	struct { /* struct flock, which linux/fcntl.h has with the types of libc */
		int16_t type, whence;
		int64_t start, len;
		int32_t pid;
	} lock = {.type = 0 /* F_RDLCK */, .start = 1, .len = 1};
	return SYS3(fcntl, fd, F_SETLK, &lock);
}

static __attribute__((noreturn)) void refuse(int conn, int err)
{
	outcome->failed = 1;
	outcome->error = -err;
	answer(conn, -1, -1);
	sys_exit(125);
}

/* What serves one connection ends with door, or after so many seconds; 0: it becomes the monitor, which does neither. */
static void limit_time(long seconds)
{
	const struct {
		long every[2], first[2];
	} timer = {.first = {seconds, 0}};

	SYS5(prctl, PR_SET_PDEATHSIG, seconds ? SIGKILL : 0, 0, 0, 0);
	SYS3(setitimer, 0 /* ITIMER_REAL: SIGALRM */, &timer, NULL);
}

/*
 * The bytes of the request.  Only a sealed memfd is one: it is read without waiting for anybody, and can't get shorter
 * (SIGBUS) or say something else while it is read; memfd_create(2), fcntl(2) F_GET_SEALS.  NULL: it is none.
 */
static const char *map_request(int fd, uint64_t *size)
{
	const long sealed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	long seals = SYS2(fcntl, fd, F_GET_SEALS), map;
	struct statx st;

	if (seals < 0 || (seals & sealed) != sealed || SYS5(statx, fd, "", AT_EMPTY_PATH_, STATX_SIZE, &st) < 0)
		return NULL;
	if (st.stx_size > MAX_REQUEST)
		return NULL;
	*size = st.stx_size;
	map = SYS(mmap, 0, st.stx_size, PROT_READ, MAP_PRIVATE, fd, 0);
	return map < 0 ? NULL : (const char *)map;
}

/* What the one who asks has, is what it gets: only lowering, which needs no power.  A thread's own are its process's first. */
static long take_priorities(long pid)
{
	static const char *const self = "/proc/self/oom_score_adj";
	struct schedule mine = {.size = sizeof mine}, theirs = {.size = sizeof theirs};
	unsigned long cpus[128]; /* 8192 of them, as many as Linux can have */
	char path[64];
	long n, io, score, own;

	MUST(CALL(sched_getattr, 0, &mine, sizeof mine, 0, 0));
	MUST(CALL(sched_getattr, pid, &theirs, sizeof theirs, 0, 0));
	if (is_plain(theirs.policy)) /* a realtime process may be anything else of its nice value */
		mine.policy = mine.policy == 5 ? 5 : theirs.policy;
	mine.flags = 0;
	if (theirs.nice > mine.nice)
		mine.nice = theirs.nice;
	MUST(CALL(sched_setattr, 0, &mine, 0, 0, 0));
	io = CALL(ioprio_get, 1 /* IOPRIO_WHO_PROCESS */, pid, 0, 0, 0);
	if (io >> 13 == 2 || io >> 13 == 3) /* IOPRIO_CLASS_BE, IOPRIO_CLASS_IDLE */
		CALL(ioprio_set, 1, 0, io, 0, 0);
	n = CALL(sched_getaffinity, pid, sizeof cpus, cpus, 0, 0);
	MUST(n);
	n = CALL(sched_setaffinity, 0, n, cpus, 0, 0);
	if (n < 0 && n != -EINVAL) /* EINVAL: none of them is in the pod's cpuset, which counts */
		return n;
	*put_str(put_num(put_str(path, "/proc/"), (unsigned long)pid, 1), "/oom_score_adj") = 0;
	n = oom_score(path, &score);
	if (n == -ENOENT || n == -EPERM || n == -EACCES)
		return 0; /* hidepid: nobody can say; it stays what door has, that of an ordinary process */
	MUST(n);
	MUST(oom_score(self, &own));
	if (score <= own)
		return 0;
	SYS5(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0); /* else the file is root's; what there was of root's is gone */
	n = set_oom_score(score);
	SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	return n;
}

/*
 * In X: takes the limits and priorities of the process that connected.  Before Linux 6.5 (SO_PEERPIDFD) its pid may be
 * another's by now: then that one's, and it is a process of the owner's, because the kernel shows the limits of no other
 * (prlimit(2)).  One kind there is that has the owner's ids and limits of root's: a door, and what it forked and is not
 * yet past this.  Their saved group id is none of the owner's (guarded_gid()), so of those, too, the kernel says EPERM.
 */
static long take_from_peer(int conn)
{
	struct {
		int32_t pid, uid, gid;
	} peer = {0};
	uint32_t size = sizeof peer, fd_size = sizeof(int);
	struct limit limits[N_LIMITS];
	int fd = -1;
	long r;

	MUST(SYS5(getsockopt, conn, 1 /* SOL_SOCKET */, 17 /* SO_PEERCRED */, &peer, &size));
	if (peer.pid <= 0)
		return -ESRCH; /* of a PID namespace that is not below ours */
	r = SYS5(getsockopt, conn, 1, 77 /* SO_PEERPIDFD */, &fd, &fd_size);
	if (r == -ENOPROTOOPT)
		r = fd = (int)SYS2(pidfd_open, peer.pid, 0);
	MUST(r);
	for (int i = 0; i < N_LIMITS; i++)
		MUST(SYS4(prlimit64, peer.pid, i, NULL, &limits[i]));
	for (int i = 0; i < N_LIMITS; i++)
		MUST(lower_limit(i, limits[i]));
	MUST(take_priorities(peer.pid));
	MUST(SYS4(pidfd_send_signal, fd, 0, NULL, 0)); /* all of that was one process's */
	SYS1(close, fd);
	return SYS3(setresgid, -1, -1, SYS0(getegid));
}

static __attribute__((noreturn)) void serve(int conn)
{
	int fds[260];
	uint64_t size = 0;
	struct request r;
	const char *p, *end;
	int n_fds, n_keep, n_monitor_keep, n_locks;
	long n, map, helper;

	default_signals();
	limit_time(MAX_SECONDS);
	map = SYS(mmap, 0, sizeof *outcome, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (map < 0)
		sys_exit(125);
	outcome = (struct outcome *)map;
	*outcome = (struct outcome){.pidfd = -1};
	n = SYS3(fcntl, conn, F_DUPFD_CLOEXEC, HIGH);
	if (n < 0)
		refuse(conn, (int)-n);
	conn = (int)n;
	/* door's own descriptors are no numbers that a request could name */
	SYS3(close_range, 3, conn - 1, 0);
	SYS3(close_range, conn + 1, ~0U, 0);
	n = receive(conn, fds);
	for (long i = 0; i < n; i++) {
		long high = SYS3(fcntl, fds[i], F_DUPFD_CLOEXEC, HIGH);
		SYS1(close, fds[i]);
		if (high < 0)
			refuse(conn, (int)-high);
		fds[i] = (int)high;
	}
	p = n < 1 ? NULL : map_request(fds[0], &size);
	if (!p)
		refuse(conn, EBADMSG);
	end = p + size;
	if (!take(&p, end, &r, sizeof r) || r.magic != 0x3244534eU /* NSD2 */)
		refuse(conn, EBADMSG);
	if ((r.join_flags | r.clone_flags) & ~NAMESPACES)
		refuse(conn, EBADMSG);
	n_fds = take_numbers(&p, end, numbers, MAX_FDS, HIGH);
	n_keep = take_numbers(&p, end, keep, MAX_FDS, HIGH);
	n_monitor_keep = take_numbers(&p, end, monitor_keep, MAX_FDS, HIGH);
	n_locks = take_numbers(&p, end, locks, 8, HIGH);
	if (n_fds != n - 1 || n_keep < 0 || n_monitor_keep < 0 || n_locks < 0 || r.pidfd_slot < 3 || r.pidfd_slot >= HIGH)
		refuse(conn, EBADMSG);
	for (int i = 0; i < 3; i++) {
		const char *list;
		uint32_t len;
		if (!take_list(&p, end, &list, &len) || (!len && i < 2))
			refuse(conn, EBADMSG);
		argv_[i] = pointers((size_t)(n = count_strings(list, len)));
		if (!argv_[i])
			refuse(conn, ENOMEM);
		split_strings(list, len, argv_[i], (int)n);
	}
	for (int i = 0; i < n_fds; i++) {
		SYS3(dup3, fds[i + 1], numbers[i], O_CLOEXEC);
		SYS1(close, fds[i + 1]);
	}

	n = take_from_peer(conn);
	if (n < 0) {
		outcome->failed = 8;
		outcome->error = (int32_t)n;
		answer(conn, -1, -1);
		sys_exit(125);
	}
	SYS5(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* which ids that change take away */
	SYS0(setsid);
	for (int i = 0; i < n_locks; i++) {
		long r_ = take_lock(locks[i]);
		if (r_ < 0)
			refuse(conn, (int)-r_);
	}
	helper = fork_(CLONE_FILES);
	if (helper == 0)
		join(&r, n_keep);
	if (helper < 0)
		refuse(conn, (int)-helper);
	SYS4(wait4, helper, NULL, __WALL, NULL);
	if (outcome->nest > 0) {
		SYS4(wait4, outcome->nest, NULL, __WALL, NULL);
		outcome->pid = pid_of(outcome->pidfd);
	}
	if (outcome->error > 0)
		outcome->error = -ECHILD; /* the one in the pod was killed */
	outcome->monitor = (int32_t)SYS0(getpid);
	if (outcome->error < 0) {
		answer(conn, -1, -1);
		sys_exit(125);
	}
	outcome->failed = 0;
	SYS3(dup3, outcome->pidfd, r.pidfd_slot, 0);
	take_stdio(r.monitor_stdio);
	inherit(monitor_keep, n_monitor_keep);
	set_cloexec(r.pidfd_slot, 0);
	SYS1(chdir, "/");
	limit_time(0);
	answer(conn, r.pidfd_slot, (int)SYS2(pidfd_open, outcome->monitor, 0));
	SYS5(execveat, r.monitor, "", argv_[1], argv_[2], AT_EMPTY_PATH_);
	sys_exit(125);
}

/* ---- the wait ---------------------------------------------------------------------------------------- */

/* A group id that the owner does not have, for door itself and what is not yet past take_from_peer(). */
static long guarded_gid(long gid)
{
	return gid == 65535 ? 65534 : 65535;
}

/* The kernel's audit records name who acts: from here on that is the owner, who may ask, not who made the pod. */
static void set_login(long uid)
{
	char text[24];
	long fd = SYS4(openat, AT_FDCWD, "/proc/self/loginuid", O_WRONLY | O_CLOEXEC, 0);
	if (fd >= 0) /* ENOENT: no audit */
		SYS3(write, fd, text, put_num(text, (unsigned long)uid, 1) - text);
	SYS1(close, fd);
}

static void become(long uid, long gid, long saved, const char *list)
{
	static uint32_t groups[65536]; /* NGROUPS_MAX */
	long n = 0;

	while (list && *list) {
		long value = 0;
		while (*list >= '0' && *list <= '9')
			value = value * 10 + (*list++ - '0');
		if (n == 65536 || (*list && *list++ != ','))
			sys_exit(125);
		groups[n++] = (uint32_t)value;
	}
	if (plain_priorities(1) < 0 || become_user(uid, gid, saved, groups, n) < 0)
		sys_exit(125);
}

/*
 * Who has connected has a descriptor here, and a process only when a request has come: however many connect and say
 * nothing, nobody waits for them.  When there are too many, the one that has waited longest goes.
 */
static int waiting[MAX_WAITING], n_waiting;

static int take_waiting(int at)
{
	int conn = waiting[at];
	memmove(waiting + at, waiting + at + 1, (size_t)(--n_waiting - at) * sizeof *waiting);
	return conn;
}

/* 0: there was none, for want of descriptors or memory. */
static int admit(long listener)
{
	long conn = SYS4(accept4, listener, NULL, NULL, O_CLOEXEC);
	if (n_waiting == MAX_WAITING || (n_waiting && (conn == -EMFILE || conn == -ENFILE)))
		SYS1(close, take_waiting(0));
	if (conn >= 0)
		waiting[n_waiting++] = (int)conn;
	return conn >= 0;
}

int main(int argc, char **argv, char **envp)
{
	const sigbits none = 0;
	struct {
		unsigned long handler, flags;
		void *restorer;
		sigbits mask;
	} ignore = {.handler = 1 /* SIG_IGN: no child of ours becomes a zombie */};
	long listener = -1, pause = -1, alive = -1, forward = -1, uid = -1, gid = -1;
	const char *groups = NULL;
	(void)envp;

	for (int i = 1; i < argc; i++) {
		const char *v;
		if ((v = str_after(argv[i], "listen=")))
			listener = str_num(v, -1);
		else if ((v = str_after(argv[i], "pause=")))
			pause = str_num(v, -1);
		else if ((v = str_after(argv[i], "alive=")))
			alive = str_num(v, -1);
		else if ((v = str_after(argv[i], "forward=")))
			forward = str_num(v, -1);
		else if ((v = str_after(argv[i], "uid=")))
			uid = str_num(v, -1);
		else if ((v = str_after(argv[i], "gid=")))
			gid = str_num(v, -1);
		else if ((v = str_after(argv[i], "groups=")))
			groups = v;
	}
	if (pause < 0) {
		say("nsrun-door: started by nsrun, not by hand (see nsrun explain pod create)\n");
		return 2;
	}
	SYS5(prctl, PR_SET_NAME, listener >= 0 ? "nsrun-door" : "nsrun-hold", 0, 0, 0);
	SYS3(close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC);
	if (uid >= 0 && listener >= 0)
		set_login(uid);
	if (uid >= 0)
		become(uid, gid, listener >= 0 ? guarded_gid(gid) : gid, groups);
	if (listener < 0)
		SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	default_signals();
	sys_sigmask(SIG_SETMASK_, none);
	SYS4(rt_sigaction, SIGCHLD, &ignore, NULL, sizeof(sigbits));
	SYS1(chdir, "/");
	for (;;) {
		struct pollfd p[3 + MAX_WAITING] = {{(int)listener, POLLIN, 0}, {(int)pause, POLLIN, 0}, {(int)alive, POLLIN, 0}};
		const int polled = n_waiting;
		for (int i = 0; i < polled; i++)
			p[3 + i] = (struct pollfd){waiting[i], POLLIN, 0};
		if (SYS5(ppoll, p, 3 + polled, NULL, NULL, 0) < 0)
			continue;
		if (p[1].revents || p[2].revents) {
			if (forward >= 0)
				SYS4(pidfd_send_signal, forward, SIGKILL, NULL, 0);
			return 0;
		}
		for (int i = polled - 1; i >= 0; i--) {
			int conn;
			if (!p[3 + i].revents)
				continue;
			conn = take_waiting(i);
			if (p[3 + i].revents & POLLIN && fork_(0) == 0)
				serve(conn);
			SYS1(close, conn);
		}
		if (p[0].revents && !admit(listener)) {
			long pace[2] = {0, 50000000}; /* 50 ms */
			SYS5(ppoll, p + 1, 2, pace, NULL, 0);
		}
	}
}
