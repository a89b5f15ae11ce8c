/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nsrun-door forks processes in a pod's cgroup.  The owner of a pod with a user namespace has no power over the machine's
 * cgroups, and may not migrate a process into the pod's; but a child is born in its parent's cgroup.  So this program waits
 * there, as the owner, on a socket that only the owner can reach, and forks on request.  It has no power that the owner
 * does not have, and ends with pause.
 *
 *   nsrun-door [listen=FD] pause=PIDFD [alive=FD] [forward=PIDFD] [uid=N gid=N groups=A,B,…]
 *     uid, gid, groups   when root starts it, it becomes that user first
 *     listen             without it, it only holds what it inherits until pause ends: the ports and the table of an owned
 *                        pod, which its owner could take from pause (pidfd_getfd(2)) and keep, and the lock by which root
 *                        knows that the pod lives (nsrun-hold)
 *     alive              the read end of a pipe whose other end pause has: a killed pause closes it at once, while its
 *                        pidfd becomes readable only when every zombie of its PID namespace has been reaped
 *     forward            another process that is to end with pause (the pasta of a pod made without root)
 *
 * When root starts it, it keeps root's limits, because otherwise what it forks could not get the limits of the requesting
 * process, whatever those are.  Nothing that the owner may look into has root's limits: door and X are not dumpable, X
 * first of all takes the limits and priorities of its peer (take_from_peer()), and execs the owner's programs last.
 *
 * One connection is one launch (Run._through in nsrun/run/__init__.py):
 *
 *   nsrun → door   one packet with descriptors.  The first is a memfd, the request: numbers, strings (see serve())
 *   door → nsrun   {pid, monitor's pid, stage that failed, -errno}, and pidfds of both, since a pid may be reused
 *
 * door forks X.  X moves the descriptors to the numbers that the request gives them, and forks a helper, because joining a
 * user namespace is one-way.  The helper joins the pod and clones nsrun-init, born in the member's cgroup, as X's child
 * (CLONE_PARENT); X becomes nsrun-monitor.
 */
#include "decode.h"
#include "sys.h"

#include "launch.h"

#define HIGH        DOOR_NUMBERS /* received descriptors are kept from here on; the request names lower numbers */
#define MAX_WAITING 128          /* connections that have not sent a request yet */
#define NAMESPACES \
	(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)

static int32_t numbers[DOOR_FDS], keep[DOOR_FDS], monitor_keep[DOOR_FDS], locks[DOOR_LOCKS];

/* ---- the launch ------------------------------------------------------------------------------------ */

/* The clone is visible in the pod before it is nsrun-init. */
static long before_join(struct launch *l)
{
	(void)l;
	/* We keep door's session keyring, since a user may have only 200 keys (keyrings(7)); nsrun-init joins another. */
	return CALL(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
}

static long before_exec(struct launch *l)
{
	(void)l;
	CALL(setgroups, 0, NULL, 0, 0, 0); /* a group of the owner that is not mapped means nothing in the pod */
	return 0;
}

struct control_of_fds {
	struct control head;
	int32_t fds[256];
};

static long receive(int conn, int *fds)
{
	char byte;
	struct iov iov = {&byte, 1};
	struct control_of_fds c = {0};
	struct message msg = {.iov = &iov, .n_iov = 1, .control = &c, .control_len = sizeof c};
	long n;

	if (SYS3(recvmsg, conn, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) < 1 || msg.control_len < sizeof c.head)
		return -1;
	if (c.head.level != SOL_SOCKET || c.head.type != SCM_RIGHTS)
		return -1;
	n = c.head.len < sizeof c.head || c.head.len > msg.control_len ? 0 : (long)((c.head.len - sizeof c.head) / sizeof(int));
	memcpy(fds, c.fds, (size_t)n * sizeof(int));
	return n;
}

static void answer(int conn, struct door_answer what, int pidfd, int monitor_pidfd)
{
	struct iov iov = {&what, sizeof what};
	struct control_of_fds c = {{sizeof c.head + 2 * sizeof(int), SOL_SOCKET, SCM_RIGHTS}, {pidfd, monitor_pidfd}};
	struct message msg = {.iov = &iov, .n_iov = 1, .control = pidfd >= 0 ? &c : NULL, .control_len = pidfd >= 0 ? c.head.len : 0};
	SYS3(sendmsg, conn, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static __attribute__((noreturn)) void refuse(int conn, enum stage failed, long error)
{
	answer(conn, (struct door_answer){.failed = (int32_t)failed, .error = (int32_t)error}, -1, -1);
	sys_exit(125);
}

/* End with door, or after so many seconds.  0: neither, for X when it becomes the monitor. */
static void limit_time(long seconds)
{
	const struct {
		long every[2], first[2];
	} timer = {.first = {seconds, 0}};

	SYS5(prctl, PR_SET_PDEATHSIG, seconds ? SIGKILL : 0, 0, 0, 0);
	SYS3(setitimer, ITIMER_REAL /* SIGALRM */, &timer, NULL);
}

/*
 * Map the bytes of the request; NULL when it is not a sealed memfd.  Reading that waits for no other process, and it can't
 * shrink (SIGBUS) or change while it is read; memfd_create(2), fcntl(2) F_GET_SEALS.
 */
static const char *map_request(int fd, uint64_t *size)
{
	const long sealed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	long seals = SYS2(fcntl, fd, F_GET_SEALS), map;
	struct statx st;

	if (seals < 0 || (seals & sealed) != sealed || SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_SIZE, &st) < 0)
		return NULL;
	if (st.stx_size > DOOR_BYTES)
		return NULL;
	*size = st.stx_size;
	map = SYS(mmap, 0, st.stx_size, PROT_READ, MAP_PRIVATE, fd, 0);
	return map < 0 ? NULL : (const char *)map;
}

/* Take over the priorities of the peer's first thread: they are only lowered, which needs no privilege. */
static long take_priorities(long pid)
{
	static const char *const self = "/proc/self/oom_score_adj";
	struct schedule mine = {.size = sizeof mine}, theirs = {.size = sizeof theirs};
	unsigned long cpus[128]; /* 8192, the most that Linux can have */
	char path[64];
	long n, io, score, own;

	MUST(CALL(sched_getattr, 0, &mine, sizeof mine, 0, 0));
	MUST(CALL(sched_getattr, pid, &theirs, sizeof theirs, 0, 0));
	if (is_plain(theirs.policy)) /* the policy of a realtime process is not taken over, only its nice value */
		mine.policy = mine.policy == SCHED_IDLE ? SCHED_IDLE : theirs.policy;
	mine.flags = 0;
	if (theirs.nice > mine.nice)
		mine.nice = theirs.nice;
	MUST(CALL(sched_setattr, 0, &mine, 0, 0, 0));
	io = CALL(ioprio_get, IOPRIO_WHO_PROCESS, pid, 0, 0, 0);
	if (io >> IOPRIO_CLASS_SHIFT == IOPRIO_CLASS_BE || io >> IOPRIO_CLASS_SHIFT == IOPRIO_CLASS_IDLE)
		CALL(ioprio_set, IOPRIO_WHO_PROCESS, 0, io, 0, 0);
	n = CALL(sched_getaffinity, pid, sizeof cpus, cpus, 0, 0);
	MUST(n);
	n = CALL(sched_setaffinity, 0, n, cpus, 0, 0);
	if (n < 0 && n != -EINVAL) /* EINVAL: none of them is in the pod's cpuset, which then counts */
		return n;
	*put_str(put_num(put_str(path, "/proc/"), (unsigned long)pid, 1), "/oom_score_adj") = 0;
	n = oom_score(path, &score);
	if (n == -ENOENT || n == -EPERM || n == -EACCES)
		return 0; /* hidepid: it can't be read, so it stays door's, that of an ordinary process */
	MUST(n);
	MUST(oom_score(self, &own));
	if (score <= own)
		return 0;
	SYS5(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0); /* otherwise root owns the file; nothing of root is left here */
	n = set_oom_score(score);
	SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	return n;
}

/*
 * In X: take over the limits and priorities of the process that connected.  Before Linux 6.5 (SO_PEERPIDFD) another process
 * may have its pid by now; then we take that one's, and it is also the owner's, because the kernel shows the limits of no
 * other (prlimit(2)).  Only a door, and a process that it forked and that has not passed this function, have the owner's
 * ids and root's limits.  Their saved group id is not the owner's (guarded_gid()), so the kernel returns EPERM for them, too.
 */
static long take_from_peer(int conn)
{
	struct {
		int32_t pid, uid, gid;
	} peer = {0};
	uint32_t size = sizeof peer, fd_size = sizeof(int);
	struct limit limits[RLIM_NLIMITS];
	int fd = -1;
	long r;

	MUST(SYS5(getsockopt, conn, SOL_SOCKET, SO_PEERCRED, &peer, &size));
	if (peer.pid <= 0)
		return -ESRCH; /* its PID namespace is not below ours */
	r = SYS5(getsockopt, conn, SOL_SOCKET, SO_PEERPIDFD, &fd, &fd_size);
	if (r == -ENOPROTOOPT)
		r = fd = (int)SYS2(pidfd_open, peer.pid, 0);
	MUST(r);
	for (int i = 0; i < RLIM_NLIMITS; i++)
		MUST(SYS4(prlimit64, peer.pid, i, NULL, &limits[i]));
	for (int i = 0; i < RLIM_NLIMITS; i++)
		MUST(lower_limit(i, limits[i]));
	MUST(take_priorities(peer.pid));
	MUST(SYS4(pidfd_send_signal, fd, 0, NULL, 0)); /* the peer still lives, so all of that was one process's */
	SYS1(close, fd);
	return SYS3(setresgid, -1, -1, SYS0(getegid));
}

static __attribute__((noreturn)) void serve(int conn)
{
	struct launch l = {.user_fd = -1, .lock_byte = KEEPER, .pid = -1, .pidfd = -1};
	const char **strings[3];
	int fds[260];
	uint64_t size = 0;
	struct door_request r;
	const char *p, *end;
	int n_fds, n_keep, n_monitor_keep, n_locks;
	long n, pid;

	default_signals();
	limit_time(DOOR_SECONDS);
	n = SYS3(fcntl, conn, F_DUPFD_CLOEXEC, HIGH);
	if (n < 0)
		refuse(conn, STAGE_PREPARE, n);
	conn = (int)n;
	/* a request must not be able to name door's own descriptors */
	SYS3(close_range, 3, conn - 1, 0);
	SYS3(close_range, conn + 1, ~0U, 0);
	n = receive(conn, fds);
	for (long i = 0; i < n; i++) {
		long high = SYS3(fcntl, fds[i], F_DUPFD_CLOEXEC, HIGH);
		SYS1(close, fds[i]);
		if (high < 0)
			refuse(conn, STAGE_PREPARE, high);
		fds[i] = (int)high;
	}
	p = n < 1 ? NULL : map_request(fds[0], &size);
	if (!p)
		refuse(conn, STAGE_PREPARE, -EBADMSG);
	end = p + size;
	if (!take(&p, end, &r, sizeof r) || memcmp(r.magic, DOOR_MAGIC, sizeof r.magic) != 0)
		refuse(conn, STAGE_PREPARE, -EBADMSG);
	if ((r.join_flags | r.clone_flags) & ~NAMESPACES)
		refuse(conn, STAGE_PREPARE, -EBADMSG);
	n_fds = take_numbers(&p, end, numbers, DOOR_FDS, HIGH);
	n_keep = take_numbers(&p, end, keep, DOOR_FDS, HIGH);
	n_monitor_keep = take_numbers(&p, end, monitor_keep, DOOR_FDS, HIGH);
	n_locks = take_numbers(&p, end, locks, DOOR_LOCKS, HIGH);
	if (n_fds != n - 1 || n_keep < 0 || n_monitor_keep < 0 || n_locks < 0 || r.pidfd_slot < 3 || r.pidfd_slot >= HIGH)
		refuse(conn, STAGE_PREPARE, -EBADMSG);
	for (int i = 0; i < 3; i++) {
		const char *list;
		uint32_t len;
		if (!take_list(&p, end, &list, &len) || (!len && i < 2))
			refuse(conn, STAGE_PREPARE, -EBADMSG);
		strings[i] = pointers((size_t)(n = count_strings(list, len)));
		if (!strings[i])
			refuse(conn, STAGE_PREPARE, -ENOMEM);
		split_strings(list, len, strings[i], (int)n);
	}
	for (int i = 0; i < n_fds; i++) {
		n = SYS3(dup3, fds[i + 1], numbers[i], O_CLOEXEC);
		if (n < 0)
			refuse(conn, STAGE_PREPARE, n);
		SYS1(close, fds[i + 1]);
	}

	n = take_from_peer(conn);
	if (n < 0)
		refuse(conn, STAGE_LIMITS, n);
	SYS5(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* changing ids clears this setting */
	SYS0(setsid);
	l.join_fd = r.join_fd, l.join_flags = r.join_flags, l.clone_flags = r.clone_flags, l.cgroup = r.cgroup;
	l.program = r.program, l.argv = strings[0], l.keep = keep, l.n_keep = n_keep, l.locks = locks, l.n_locks = n_locks;
	memcpy(l.stdio, r.stdio, sizeof l.stdio);
	if (take_locks(&l) < 0)
		refuse(conn, STAGE_LOCK, l.error);
	pid = join_apart(&l);
	if (pid < 0)
		refuse(conn, (enum stage)l.failed, pid);
	n = SYS3(dup3, l.pidfd, r.pidfd_slot, 0);
	if (n >= 0)
		n = take_stdio(r.monitor_stdio);
	if (n < 0)
		refuse(conn, STAGE_MONITOR, n);
	inherit(monitor_keep, n_monitor_keep);
	inherit(&r.pidfd_slot, 1);
	SYS1(chdir, "/");
	limit_time(0);
	n = SYS0(getpid);
	answer(conn, (struct door_answer){.pid = (int32_t)pid, .monitor = (int32_t)n}, r.pidfd_slot, (int)SYS2(pidfd_open, n, 0));
	SYS5(execveat, r.monitor, "", strings[1], strings[2], AT_EMPTY_PATH);
	sys_exit(125);
}

/* ---- the wait ---------------------------------------------------------------------------------------- */

/* A group id that the owner does not have, for door itself and its children until take_from_peer(). */
static long guarded_gid(long gid)
{
	return gid == 65535 ? 65534 : 65535;
}

/* The kernel's audit records name the acting user: from here on that is the owner, who may send requests, not the maker. */
static void set_login(long uid)
{
	char text[24];
	long fd = SYS4(openat, AT_FDCWD, "/proc/self/loginuid", O_WRONLY | O_CLOEXEC, 0);
	if (fd >= 0) /* ENOENT: the kernel has no audit */
		SYS3(write, fd, text, put_num(text, (unsigned long)uid, 1) - text);
	SYS1(close, fd);
}

static void become(long uid, long gid, long saved, const char *list)
{
	static uint32_t groups[MAX_GROUPS];
	long n = 0;

	while (list && *list) {
		long value = 0;
		while (*list >= '0' && *list <= '9')
			value = value * 10 + (*list++ - '0');
		if (n == MAX_GROUPS || (*list && *list++ != ','))
			sys_exit(125);
		groups[n++] = (uint32_t)value;
	}
	if (plain_priorities(1) < 0 || become_user(uid, gid, saved, groups, n) < 0)
		sys_exit(125);
}

/*
 * A connection takes a descriptor here, and a process only when its request has come: however many connect and send
 * nothing, nobody waits for them.  When there are too many, the one that has waited longest is closed.
 */
static int waiting[MAX_WAITING], n_waiting;

static int take_waiting(int at)
{
	int conn = waiting[at];
	memmove(waiting + at, waiting + at + 1, (size_t)(--n_waiting - at) * sizeof *waiting);
	return conn;
}

/* Accept a connection; returns 0 when there was none, or descriptors or memory ran out. */
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
	sys_sigmask(SIG_SETMASK, none);
	set_action(SIGCHLD, SIG_IGN); /* no child of ours becomes a zombie */
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
			if (p[3 + i].revents & POLLIN && SYS5(clone, SIGCHLD, 0, 0, 0, 0) == 0)
				serve(conn);
			SYS1(close, conn);
		}
		if (p[0].revents && !admit(listener)) {
			long pace[2] = {0, 50000000}; /* 50 ms */
			SYS5(ppoll, p + 1, 2, pace, NULL, 0);
		}
	}
}
