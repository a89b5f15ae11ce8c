/* SPDX-License-Identifier: Apache-2.0 */
/*
 * join.h: the launch as nsrun itself does it, for kernel.c (Python) and front.c (which replays what Python did).
 *
 * kernel.c tells why it is as it is.  A launch through nsrun-door is door.c's; what all of them have in common is in launch.h.
 */
#ifndef NSRUN_JOIN_H
#define NSRUN_JOIN_H

#include "launch.h"

/* ---- a network namespace without a process --------------------------------------------------------- */

struct maker {
	int user_fd;
	long result;
};

static int make_netns(void *arg)
{
	struct maker *m = arg;
	long r = m->user_fd >= 0 ? own_keyring() : 0;

	if (r >= 0 && m->user_fd >= 0)
		r = CALL(setns, m->user_fd, CLONE_NEWUSER, 0, 0, 0);
	if (r >= 0)
		r = CALL(unshare, CLONE_NEWNET, 0, 0, 0, 0);
	m->result = r < 0 ? r : CALL(openat, AT_FDCWD, "/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC, 0, 0);
	return 0;
}

/* Make one that belongs to the user namespace `user_fd` (-1: ours), by a child that shares our descriptors; returns one of it. */
static long new_netns(int user_fd)
{
	struct maker m = {.user_fd = user_fd, .result = -ECHILD};
	long child = spawn(make_netns, &m, CLONE_FILES, NULL, -1);

	if (child < 0)
		return child;
	wait_for(child);
	return m.result;
}

/* Enter one; returns a descriptor of the one before. */
static long enter_netns(int fd)
{
	long r, old = CALL(openat, AT_FDCWD, "/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC, 0, 0);

	MUST(old);
	r = CALL(setns, fd, CLONE_NEWNET, 0, 0, 0);
	if (r < 0)
		CALL(close, old, 0, 0, 0, 0);
	return r < 0 ? r : old;
}

/* ---- the launch ------------------------------------------------------------------------------------ */

/* Give up what nsrun-init must not have; session.h. */
static long before_exec(struct launch *l)
{
	if (l->monitor < 0)
		MUST(take_locks(l));
	CALL(setsid, 0, 0, 0, 0, 0); /* no controlling terminal: /dev/tty would be the caller's */
	if (!l->one_way && !l->keep_keys) /* otherwise before_join() has done it */
		MUST(own_keyring());
	/*
	 * Become root of the joined user namespace, since ids that are not mapped there can't create files.  Do so only after
	 * clone3: CLONE_INTO_CGROUP is checked against the caller's ids.
	 */
	if (l->user_fd >= 0 || l->join_flags & CLONE_NEWUSER || l->joins_user) {
		long r = CALL(setgroups, 0, NULL, 0, 0, 0);
		if (r < 0 && !(l->plain && r == -EPERM)) /* with one id alone, the user namespace denies it (user_namespaces(7)) */
			return r;
		MUST(CALL(setresgid, 0, 0, 0, 0, 0));
		MUST(CALL(setresuid, 0, 0, 0, 0, 0));
	}
	return l->user_fd >= 0 ? least_limits(64 << 20, 64) : 0; /* pause, in an owned pod */
}

static long before_join(struct launch *l)
{
	if (!l->keep_keys)
		MUST(own_keyring());
	return !l->plain && CALL(geteuid, 0, 0, 0, 0, 0) == 0 ? plain_priorities(0) : 0;
}

/* With a PID namespace inside the pod's, when we are in the pod already: launch.h. */
static long clone_nested(struct launch *l)
{
	long helper;

	l->error = 1;
	helper = spawn(become_nest, l, CLONE_FILES, NULL, -1);
	if (helper < 0)
		return helper;
	wait_for(helper);
	l->pid = pid_of(l->pidfd);
	return outcome(l);
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

static long join_and_return(struct launch *l)
{
	int saved[N_MINE], n = 0;
	long r = 0;

	if (l->join_fd >= 0) {
		l->failed = STAGE_PREPARE;
		for (; n < N_MINE && r >= 0; n++) {
			r = l->join_flags & mine[n].type ? CALL(openat, AT_FDCWD, mine[n].path, O_RDONLY | O_CLOEXEC, 0, 0) : -1;
			saved[n] = (int)r;
			r = l->join_flags & mine[n].type ? r : 0;
		}
		if (r >= 0) {
			l->failed = STAGE_JOIN;
			r = CALL(setns, l->join_fd, l->join_flags, 0, 0, 0);
		}
	}
	if (r >= 0) {
		l->failed = STAGE_CLONE;
		r = is_nested(l) ? clone_nested(l) : clone_init(l, 0);
		if (r >= 0 && l->failed == STAGE_CLONE)
			l->pid = (int)r, l->failed = STAGE_DONE;
	}
	for (int i = 0; i < n; i++)
		if (saved[i] >= 0) {
			long back = CALL(setns, saved[i], mine[i].type, 0, 0, 0);
			if (back < 0 && l->failed != STAGE_PREPARE) {
				/* Continuing would leave this thread half inside the pod. */
				l->failed = STAGE_RETURN;
				r = back;
			}
			CALL(close, saved[i], 0, 0, 0, 0);
		}
	return r;
}

static long join_and_clone(struct launch *l)
{
	long r = l->one_way ? join_apart(l) : join_and_return(l);

	if (l->failed == STAGE_LOCK) { /* it has ended before its exec */
		CALL(waitid, P_PIDFD, l->pidfd, NULL, WEXITED, NULL);
		r = l->error;
	}
	if (r < 0 && l->pidfd >= 0) {
		CALL(close, l->pidfd, 0, 0, 0, 0);
		l->pidfd = -1;
	}
	return r;
}

/* In the intermediate child: launch, then become the monitor. */
static int become_monitor(void *arg)
{
	struct launch *l = arg;
	long null;

	CALL(setsid, 0, 0, 0, 0, 0);
	if (take_locks(l) < 0)
		quit(125);
	l->error = (int)join_and_clone(l);
	if (l->error < 0)
		quit(125);
	close_all_on_exec();
	null = CALL(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0, 0);
	if (null < 0 || CALL(dup3, l->pidfd, l->pidfd_slot, 0, 0, 0) < 0 || take_stdio((int[]){(int)null, (int)null, (int)null}) < 0 ||
	    CALL(chdir, "/", 0, 0, 0, 0) < 0)
		quit(125);
	inherit(l->monitor_keep, l->n_monitor_keep);
	CALL(execveat, l->monitor, "", l->monitor_argv, l->monitor_envp, AT_EMPTY_PATH);
	quit(125);
}

/* Start nsrun-init, and a monitor that is its parent if there is to be one; returns a pid, or -errno with l->failed. */
static long launch(struct launch *l)
{
	long r;

	l->pid = l->monitor_pid = l->pidfd = -1;
	l->failed = STAGE_DONE;
	l->error = l->nest = 0;
	if (l->monitor < 0)
		return join_and_clone(l);
	l->failed = STAGE_MONITOR;
	r = spawn(become_monitor, l, 0, NULL, -1);
	l->pidfd = -1; /* it is a number in the monitor's descriptor table, not in ours */
	if (r < 0)
		return r;
	l->monitor_pid = (int)r;
	if (l->pid < 0)
		return l->error < 0 ? l->error : -ECHILD;
	l->failed = STAGE_DONE;
	return r;
}

#endif
