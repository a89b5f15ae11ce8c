/* SPDX-License-Identifier: Apache-2.0 */
/*
 * health.h: the health checks of a member, for monitor.c.
 *
 * A check is one more process in the member, started as `nsrun exec` starts it: Python has left the plan of nsrun-init for that in
 * a memfd, and launch.h does the rest.  Nothing of it may hold up the monitor, so the monitor forks for each check, and its child,
 * nsrun-health, does what can wait: it launches the check, waits for it, and kills it with all that it has started when its time
 * is over, when the member has ended, or when the monitor has closed the pipe of the output.
 *
 *     nsrun-monitor ── fork ──> nsrun-health ── launch.h ──> nsrun-init, which becomes the check, in the member
 *           <── pipe ─────────────────────────────────────── its output, of which the last 4 KiB are kept
 *           <── exit status: that of the check; SIGALRM: its time was over; SIGTERM: it counts for nothing
 *
 * A check that connects (--health-tcp, --health-http) executes nothing: nsrun-health itself joins the network namespace, and sees
 * whether somebody answers there (connect.h).
 *
 * A check has a cgroup below the member's, so that cgroup.kill ends it and nothing else; a new one each time, since Linux 6.12 and
 * later let no process be born where cgroup.kill was used.  A member without a cgroup has its checks in copies of its mount
 * namespace, by which they are found.
 *
 * What is known is in the member's directory, whole in each file: `health`, "STATUS STREAK COUNT", and `probe-N`, "BEGIN END EXIT"
 * and the output, of the last five checks, where N is COUNT modulo 5 (nsrun/lifecycle/health.py).
 */
#ifndef NSRUN_HEALTH_H
#define NSRUN_HEALTH_H

#include "launch.h"

#define KEPT_CHECKS 5    /* results that are kept, as by Docker */
#define SLACK       2000 /* ms after which nsrun-health itself is killed, when it should have killed the check */
#define NOT_YET     20   /* ms after which we look again whether the member has begun */

enum health_status { STARTING,
	                 HEALTHY,
	                 UNHEALTHY };

static struct {
	int plan, init, filter, join; /* descriptors of memfds, -1 for none; CLONE_NEW… of what to join */
	int connect;   /* the plan is an address and a request, for connect.h */
	int uid;       /* whom the pipe of the output belongs to */
	long interval, timeout, period, often, retries; /* in ms; often: the interval until the period is over, or it is healthy */
	enum health_status status;
	long streak, count; /* failures one after the other, and checks so far */
	long since, next, deadline; /* in ms: of the member's begin, of the next check, of this one's end */
	int process, out;           /* pidfd of nsrun-health, and the read end; -1: no check is under way */
	char began[32];
	size_t len; /* of health_text */
} health = {.plan = -1, .init = -1, .filter = -1, .process = -1, .out = -1, .retries = 3};
static char health_text[4096] PAGES; /* the last that this check has written */

/* ---- nsrun-health ---------------------------------------------------------------------------------- */

/* Its descriptors: those of protocol.h, which the plan names, and */
enum {
	CHECK_PLAN = PROBE_FILTER_FD + 1,
	CHECK_INIT,
	CHECK_ABOVE, /* the member's cgroup */
	CHECK_OUT,
	CHECK_FDS
};

static int by_root; /* outside of the user namespace that may be joined */

/* As in join.h: root gives up its keys, and, when it comes under another user's control, its priorities. */
static long before_join(struct launch *l)
{
	MUST(CALL(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0));
	if (!by_root)
		return 0; /* a user may have only 200 keys, and nsrun-init joins another keyring anyway */
	MUST(own_keyring());
	return l->join_flags & CLONE_NEWUSER ? plain_priorities(0) : 0;
}

static long before_exec(struct launch *l)
{
	long r;

	CALL(setsid, 0, 0, 0, 0, 0);
	if (!(l->join_flags & CLONE_NEWUSER))
		return 0;
	r = CALL(setgroups, 0, NULL, 0, 0, 0);
	if (!by_root)
		return 0; /* the owner, who is root of the pod; a group that is not mapped means nothing there */
	MUST(r);
	MUST(CALL(setresgid, 0, 0, 0, 0, 0));
	return CALL(setresuid, 0, 0, 0, 0, 0);
}

static __attribute__((noreturn)) void end_as(int sig)
{
	set_action(sig, SIG_DFL);
	SYS2(kill, SYS0(getpid), sig);
	sys_exit(125);
}

/* The end of a check that wait_until() gave up; a member that is paused is not unhealthy. */
static __attribute__((noreturn)) void end_late(int came, int frozen)
{
	end_as(came == 0 && !frozen ? SIGALRM : SIGTERM);
}

static __attribute__((noreturn)) void complain(const char *what, size_t n, long error, int code)
{
	char text[256], *p = put_str(text, "nsrun: the health check can't be executed: ");

	n = n > 128 ? 128 : n;
	p = (char *)memcpy(p, what, n) + n;
	if (error)
		p = put_str(put_num(put_str(p, n ? " [errno " : "[errno "), (unsigned long)-error, 1), "]");
	*p++ = '\n';
	SYS3(write, CHECK_OUT, text, p - text);
	sys_exit(code);
}

/* Have these descriptors, -1 for none, from 3 on, and no others above. */
static long keep_only(const int *fds, int n)
{
	long high[CHECK_FDS];

	for (int i = 0; i < n; i++) {
		high[i] = fds[i] < 0 ? -1 : SYS3(fcntl, fds[i], F_DUPFD_CLOEXEC, 3 + n);
		if (fds[i] >= 0)
			MUST(high[i]);
	}
	for (int i = 0; i < n; i++)
		if (high[i] < 0)
			SYS1(close, 3 + i);
		else
			MUST(SYS3(dup3, high[i], 3 + i, O_CLOEXEC));
	return SYS3(close_range, 3 + n, ~0U, 0);
}

/*
 * Wait until a descriptor is ready; 0 when it is too late, -1 when the member has ended, or the monitor wants no result.  Of a
 * pipe without a reader ppoll(2) tells as POLLERR.
 */
static int wait_until(int fd, short events, long until)
{
	for (;;) {
		struct pollfd p[] = {{fd, events, 0}, {PROBE_MEMBER_FD, POLLIN, 0}, {CHECK_OUT, 0, 0}};
		long left = until - now_ms();
		struct timespec wait = {left / 1000, left % 1000 * 1000000};
		if (left <= 0)
			return 0;
		if (SYS5(ppoll, p, 3, &wait, NULL, 0) <= 0)
			continue;
		return p[1].revents || p[2].revents ? -1 : 1;
	}
}

/* Kill all that is in the cgroup of a check, if there is one below this, and remove it; returns -EBUSY when it does not end. */
static long end_cgroup(int above, int tries)
{
	struct timespec pause = {0, 2000000};
	long r, fd = SYS3(openat, above, CHECKS "/cgroup.kill", O_WRONLY | O_CLOEXEC | O_NOFOLLOW);

	if (fd >= 0)
		SYS3(write, fd, "1", 1), SYS1(close, fd);
	while ((r = SYS3(unlinkat, above, CHECKS, AT_REMOVEDIR)) == -EBUSY && tries-- > 0)
		SYS2(nanosleep, &pause, NULL);
	return r;
}

static long new_cgroup(int above)
{
	long r = SYS3(mkdirat, above, CHECKS, 0755);

	if (r == -EEXIST) { /* of a check whose nsrun-health was killed */
		MUST(end_cgroup(above, 1000));
		r = SYS3(mkdirat, above, CHECKS, 0755);
	}
	MUST(r);
	return SYS3(openat, above, CHECKS, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* The end of a check, and of all that it has started. */
static void end_check(struct launch *l)
{
	SYS4(pidfd_send_signal, l->pidfd, SIGKILL, NULL, 0);
	SYS5(waitid, P_PIDFD, l->pidfd, NULL, WEXITED, NULL);
	if (l->cgroup >= 0)
		end_cgroup(CHECK_ABOVE, 1000);
	else if (mnt >= 0)
		end_namespace();
}

/* Without a cgroup: open the mount namespace that the check has for itself now, unless it is one of those that are others'. */
static void find_namespace(long of, const long *others)
{
	char path[40];
	struct statx st = {0};

	*put_str(put_num(put_str(path, "/proc/"), (unsigned long)of, 1), "/ns/mnt") = 0;
	mnt = (int)SYS4(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	if (mnt < 0)
		return; /* we may not look into it */
	SYS5(statx, mnt, "", AT_EMPTY_PATH, STATX_INO, &st);
	if (!st.stx_ino || !others[0] || (long)st.stx_ino == others[0] || (long)st.stx_ino == others[1])
		SYS1(close, mnt), mnt = -1;
}

/* Whether a cgroup is frozen, with all that is in it. */
static int is_frozen(int fd)
{
	char text[256];
	long n, file = fd >= 0 ? SYS3(openat, fd, "cgroup.events", O_RDONLY | O_CLOEXEC) : -1;

	if (file < 0)
		return 0;
	n = SYS3(read, file, text, sizeof text - 1);
	SYS1(close, file);
	text[n > 0 ? n : 0] = 0;
	for (const char *p = text; *p; p++)
		if (str_after(p, "frozen 1"))
			return 1;
	return 0;
}

#include "connect.h"

static __attribute__((noreturn)) void run_check(int output, long until)
{
	static const char *argv[] = {"nsrun-init", NULL, NULL, NULL};
	static char plan[8], channel[8];
	struct launch l = {.user_fd = -1, .join_fd = PROBE_MEMBER_FD, .join_flags = health.join, .one_way = 1, .cgroup = -1, .program = CHECK_INIT, .argv = argv, .monitor = -1, .pid = -1, .pidfd = -1};
	int fds[] = {pidfd, health.filter, health.plan, health.init, cgroup, output}, ours[2], keep[4];
	char said[512];
	struct init_record record = {0};
	siginfo_t info = {0};
	long n, null, others[2] = {inode_of("/proc/", SYS0(getpid), "/ns/mnt"), inode_of("/proc/self/fd/", mnt, "")};
	int going = 0, came;

	mnt = -1;
	by_root = SYS0(geteuid) == 0;
	default_signals();
	sys_sigmask(SIG_SETMASK, 0);
	SYS0(setsid); /* what a terminal sends is not for us */
	SYS5(prctl, PR_SET_NAME, "nsrun-health", 0, 0, 0);
	SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0); /* our memory is root's, and the clone is visible in the pod */
	if (keep_only(fds, CHECK_FDS - 3) < 0)
		end_as(SIGTERM);
	if (health.connect)
		connect_check(until);
	null = SYS4(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
	n = null < 0 ? null : take_stdio((int[]){(int)null, (int)null, (int)null});
	if (n >= 0)
		n = SYS4(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ours);
	if (n >= 0 && cgroup >= 0)
		n = l.cgroup = (int)new_cgroup(CHECK_ABOVE);
	if (n < 0)
		complain("", 0, n, 125);
	*put_num(plan, CHECK_PLAN, 1) = 0;
	*put_num(channel, (unsigned long)ours[1], 1) = 0;
	argv[1] = plan, argv[2] = channel;
	memcpy(keep, (int[]){PROBE_MEMBER_FD, CHECK_PLAN, ours[1], PROBE_FILTER_FD}, sizeof keep);
	l.keep = keep, l.n_keep = health.filter >= 0 ? 4 : 3;
	memcpy(l.stdio, (int[]){(int)null, CHECK_OUT, CHECK_OUT}, sizeof l.stdio);
	n = join_apart(&l);
	if (n < 0) {
		if (l.cgroup >= 0)
			SYS3(unlinkat, CHECK_ABOVE, CHECKS, AT_REMOVEDIR);
		complain("", 0, n, 125);
	}
	SYS1(close, ours[1]);
	for (;;) {
		came = wait_until(ours[0], POLLIN, until);
		n = came > 0 ? SYS3(read, ours[0], said, sizeof said) : -1;
		if (n < (long)sizeof record)
			break; /* end of file: it has been executed, if we have let it go */
		memcpy(&record, said, sizeof record);
		if (record.kind == INIT_FAILED) {
			end_check(&l);
			complain(said + sizeof record, (size_t)n - sizeof record, -record.err, record.err == ENOENT ? 127 : 126);
		}
		if (cgroup < 0)
			find_namespace(l.pid, others);
		going = 1;
		SYS3(write, ours[0], (char[]){GO}, 1);
	}
	SYS1(close, ours[0]);
	if (came > 0 && !going) {
		static const char killed[] = "nsrun-init was killed, or has ended";
		end_check(&l);
		complain(killed, sizeof killed - 1, 0, 125);
	}
	if (came > 0)
		came = wait_until(l.pidfd, POLLIN, until);
	if (came > 0) {
		SYS5(waitid, P_PIDFD, l.pidfd, &info, WEXITED, NULL);
		end_check(&l);
		sys_exit(info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status);
	}
	going = is_frozen(l.cgroup);
	end_check(&l);
	end_late(came, going);
}

/* ---- the monitor ----------------------------------------------------------------------------------- */

static void put_file(const char *name, const char *head, size_t n, const char *text, size_t len)
{
	struct iov v[2] = {{head, n}, {text, len}};
	long r, fd = SYS4(openat, dir, "health.tmp", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);

	if (fd < 0)
		return;
	r = SYS3(writev, fd, v, 2);
	SYS1(close, fd);
	if (r == (long)(n + len))
		SYS5(renameat2, dir, "health.tmp", dir, name, 0);
	else
		SYS3(unlinkat, dir, "health.tmp", 0);
}

static void put_status(void)
{
	static const char *const names[] = {"starting", "healthy", "unhealthy"};
	char text[80], *p = put_str(text, names[health.status]);

	p = put_num(put_str(p, " "), (unsigned long)health.streak, 1);
	p = put_str(put_num(put_str(p, " "), (unsigned long)health.count, 1), "\n");
	put_file("health", text, (size_t)(p - text), "", 0);
}

static int in_period(void)
{
	return health.status == STARTING && now_ms() - health.since < health.period;
}

static void plan_next(void)
{
	health.next = now_ms() + (in_period() ? health.often : health.interval);
}

/* A member with health checks begins: what its former life has left of them goes. */
static void begin_health(void)
{
	char name[16];

	if (health.plan < 0)
		return;
	for (unsigned i = 0; i < KEPT_CHECKS; i++) {
		*put_num(put_str(name, "probe-"), i, 1) = 0;
		SYS3(unlinkat, dir, name, 0);
	}
	health.since = now_ms();
	put_status();
	plan_next();
}

/* Start a check; a failure of ours counts as one of the check. */
static long start_check(void)
{
	int ends[2];
	long r = SYS2(pipe2, ends, O_CLOEXEC);

	MUST(r);
	SYS3(fcntl, ends[0], F_SETFL, O_NONBLOCK);
	SYS5(fchownat, ends[1], "", health.uid, -1, AT_EMPTY_PATH); /* so that it can open /dev/stdout; an owner may not do that */
	health.deadline = now_ms() + health.timeout;
	r = SYS5(clone, SIGCHLD | CLONE_PIDFD, 0, &health.process, 0, 0);
	if (r == 0)
		run_check(ends[1], health.deadline);
	SYS1(close, ends[1]);
	health.out = r < 0 ? -1 : ends[0];
	if (r < 0)
		SYS1(close, ends[0]);
	return r;
}

/* Take what a check has written: the last bytes of it are kept.  Returns what read(2) does. */
static long take_output(void)
{
	long n = SYS3(read, health.out, buf, sizeof buf);
	size_t over;

	if (n <= 0)
		return n;
	over = health.len + (size_t)n > sizeof health_text ? health.len + (size_t)n - sizeof health_text : 0;
	if (over) {
		over = over > health.len ? health.len : over;
		memmove(health_text, health_text + over, health.len - over);
		health.len -= over;
	}
	memcpy(health_text + health.len, buf, (size_t)n);
	health.len += (size_t)n;
	return n;
}

/* A check has ended with this status, -1: its time was over. */
static void note_check(int code)
{
	char head[96], name[16], *p;

	if (code == 0)
		health.status = HEALTHY, health.streak = 0;
	else if (!in_period() && ++health.streak >= health.retries)
		health.status = UNHEALTHY;
	*put_num(put_str(name, "probe-"), (unsigned long)(health.count++ % KEPT_CHECKS), 1) = 0;
	p = put_str(put_str(head, health.began), " ");
	p = put_str(put_time(p), " ");
	p = code < 0 ? put_str(p, "-1") : put_num(p, (unsigned long)code, 1);
	p = put_str(p, "\n");
	put_file(name, head, (size_t)(p - head), health_text, health.len);
	put_status();
	plan_next();
}

/* nsrun-health has ended: reap it. */
static void close_check(siginfo_t *info)
{
	SYS5(waitid, P_PIDFD, health.process, info, WEXITED | WNOHANG, NULL);
	SYS1(close, health.process);
	SYS1(close, health.out);
	health.process = health.out = -1;
}

static void finish_check(void)
{
	siginfo_t info = {0};
	int early = now_ms() < health.deadline;

	for (int i = 0; i < 64 && take_output() > 0; i++)
		; /* all that can write it has been killed */
	close_check(&info);
	if (info.si_code != CLD_EXITED && cgroup >= 0)
		end_cgroup(cgroup, 0); /* it may have been killed itself */
	if (info.si_code == CLD_EXITED)
		note_check(info.si_status);
	else if (info.si_status == SIGALRM || (info.si_status == SIGKILL && !is_frozen(cgroup)))
		note_check(info.si_status == SIGKILL && early ? 128 + SIGKILL : -1);
	else
		plan_next();
}

/* End a check at once, and with it what is in its cgroup. */
static void kill_check(void)
{
	SYS4(pidfd_send_signal, health.process, SIGKILL, NULL, 0);
	if (cgroup >= 0)
		end_cgroup(cgroup, 0);
}

/* Do what is due, and return how many ms are left until the next thing is; -1: there is nothing to be done. */
static long tend_health(void)
{
	long left, now = now_ms();

	if (health.plan < 0)
		return -1;
	if (health.process < 0 && now >= health.next) {
		if (go >= 0 && !is_ready(go, POLLIN)) {
			health.next = now + NOT_YET; /* nsrun-init may not have executed the member yet */
		} else if (is_frozen(cgroup)) {
			plan_next();
		} else {
			long r;
			health.len = 0;
			*put_time(health.began) = 0;
			r = start_check();
			if (r < 0) {
				char *p = put_str(health_text, "nsrun: the health check can't be started [errno ");
				p = put_str(put_num(p, (unsigned long)-r, 1), "]\n");
				health.len = (size_t)(p - health_text);
				note_check(125);
			}
		}
	}
	if (health.process >= 0 && now >= health.deadline + SLACK) {
		kill_check();
		health.deadline = now + SLACK; /* once more, should it not be dead by then */
	}
	left = (health.process >= 0 ? health.deadline + SLACK : health.next) - now_ms();
	return left < 0 ? 0 : left;
}

/* The member has ended: no check outlives it. */
static void end_health(void)
{
	struct timespec pause = {0, 2000000};
	siginfo_t info = {0};

	if (health.plan < 0)
		return;
	if (health.process >= 0) {
		SYS1(close, health.out);
		health.out = -1;
		/* without a cgroup, nsrun-health kills the check, which it sees ended; that takes it some ms */
		for (int i = 0; cgroup < 0 && i < 100 && !is_ready(health.process, POLLIN); i++)
			SYS2(nanosleep, &pause, NULL);
		kill_check();
		for (int i = 0; i < 100 && !is_ready(health.process, POLLIN); i++)
			SYS2(nanosleep, &pause, NULL);
		close_check(&info);
	}
	health.plan = -1;
	if (cgroup >= 0)
		end_cgroup(cgroup, 250);
}

/* Take the argument if it is one of ours. */
static void health_option(const char *arg)
{
	static const struct {
		const char *key;
		long *value;
	} longs[] = {{"interval=", &health.interval}, {"timeout=", &health.timeout}, {"period=", &health.period}, {"often=", &health.often}, {"retries=", &health.retries}};
	static const struct {
		const char *key;
		int *value;
	} ints[] = {{"probe=", &health.plan}, {"init=", &health.init}, {"filter=", &health.filter}, {"join=", &health.join}, {"connect=", &health.connect}, {"owner=", &health.uid}};

	for (unsigned i = 0; i < sizeof longs / sizeof *longs; i++)
		if (str_after(arg, longs[i].key))
			*longs[i].value = str_num(str_after(arg, longs[i].key), 0);
	for (unsigned i = 0; i < sizeof ints / sizeof *ints; i++)
		if (str_after(arg, ints[i].key))
			*ints[i].value = (int)str_num(str_after(arg, ints[i].key), -1);
}

#endif
