/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernel.c: the C side of nsrun._kernel.  It has thin wrappers, and one larger function: launching.
 *
 * Why launching is C: between clone and exec a child shares the memory of a Python that may have threads,
 * so no Python may run there.  And a caller that has joined a pod's namespaces must leave them again
 * whatever happens, or it would keep them alive.  So nsrun_do_launch does this without interruption, with
 * all signals blocked:
 *
 *     [clone an intermediate child that will become nsrun-monitor, and does the rest]
 *     keep descriptors of its own net, ipc, uts and pid namespaces
 *     setns(pidfd of the pod, …)                       per thread: other threads of the process stay
 *     clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|…)       the child, born in its cgroup, execs nsrun-init
 *     setns back, one by one                           the monitor must not live in the pod
 *
 * Joining a user namespace is one-way.  So where one has to be joined, or where we are in one already (and have no power
 * over the namespaces to which we would return), a helper does the middle part, and makes the child ours (CLONE_PARENT).
 * That, and what both ways have in common, is in launch.h, which nsrun-door includes as well.
 *
 * What is launched has its own session and session keyring, and none of the descriptors that happen to be open here: in an
 * owned pod, the owner may trace it from its exec on (session.h).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/ethtool.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "join.h"
#include "sealed.h"

typedef struct launch nsrun_launch;

static long result(long r)
{
	return r < 0 ? -errno : r;
}

static long nsrun_lock(int fd, int kind, long byte, long length)
{
	return lock_byte(fd, kind, byte, length);
}

/* The pid, in our PID namespace, of a process that holds a lock there (0: it has none here); -ESRCH: there is none. */
static long nsrun_locked(int fd, long byte, long length)
{
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = length};
	if (fcntl(fd, F_GETLK, &l) < 0)
		return -errno;
	if (l.l_type == F_UNLCK)
		return -ESRCH;
	return l.l_pid > 0 ? l.l_pid : 0; /* -1: the lock is of an open file description, F_OFD_SETLK */
}

/*
 * Open NAME/held, whose locks say whether a pod or a member lives.  -1: it can't be opened.  -2: it is one of the files
 * that are ours (device and inode, two by two), which we do not open, since to close one would end our locks.
 */
static int open_held(int dir, const char *name, const uint64_t *ours, int n)
{
	char path[300];
	struct stat st;
	int i;

	snprintf(path, sizeof(path), "%s/held", name);
	if (n && fstatat(dir, path, &st, AT_SYMLINK_NOFOLLOW) == 0)
		for (i = 0; i < n; i++)
			if (ours[2 * i] == st.st_dev && ours[2 * i + 1] == st.st_ino)
				return -2;
	return openat(dir, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
}

/*
 * Look at the next entries of a directory of directories, at most `most`, and write down the names of those whose `held`
 * no other process is seen to lock, at most `wanted`, each with its NUL.  `position` is where in the directory to begin,
 * and then where to go on; after the last entry comes the first.  What is ours is not written down.  What can't be asked
 * is, for whoever asks again and concludes something.
 */
static long nsrun_unlocked(int dir, long *position, long most, long wanted, const uint64_t *ours, int n, char *names, size_t size)
{
	char entries[4096] __attribute__((aligned(8)));
	struct dirent *entry; /* that of getdents64, where a long has 64 bits */
	long got, at, length, begin, found = 0, used = 0, seen = 0;
	int fd, locked, here = dir;

	if (*position && lseek(dir, *position, SEEK_SET) < 0)
		*position = 0;
	begin = *position;
	while (seen < most && found < wanted) {
		got = syscall(SYS_getdents64, here, entries, sizeof(entries));
		if (got < 0) {
			used = -errno;
			break;
		}
		if (got == 0) {
			*position = 0;
			if (!begin || here != dir)
				break;
			/* not lseek: ext4 does not go back to the begin if nothing has been read before its end */
			here = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
			if (here < 0) {
				used = -errno;
				break;
			}
			continue;
		}
		for (at = 0; at < got && seen < most && found < wanted; at += entry->d_reclen) {
			entry = (struct dirent *)(entries + at);
			length = (long)strlen(entry->d_name) + 1;
			*position = entry->d_off;
			if (entry->d_name[0] == '.')
				continue;
			seen++;
			fd = open_held(dir, entry->d_name, ours, n);
			locked = fd == -2 || (fd >= 0 && nsrun_locked(fd, 0, 0) >= 0);
			if (fd >= 0)
				close(fd);
			if (locked || used + length > (long)size)
				continue;
			memcpy(names + used, entry->d_name, (size_t)length);
			used += length;
			found++;
		}
	}
	if (here != dir && here >= 0)
		close(here);
	return used;
}

/* What a keeper's descriptor `number` refers to, if it is a pidfd: the pid, and the innermost one; 0: of none that lives. */
static void find_kept(long keeper, long number, int64_t *pid, int64_t *inner)
{
	char path[64], text[1024], *line;
	struct pollfd ended = {.events = POLLIN};
	ssize_t got;
	int fd;

	*pid = *inner = 0;
	snprintf(path, sizeof(path), "/proc/%ld/fdinfo/%ld", keeper, number);
	if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		return;
	got = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[got > 0 ? got : 0] = 0;
	if ((line = strstr(text, "\nPid:")))
		*pid = strtol(line + 5, NULL, 10);
	if ((line = strstr(text, "\nNSpid:")))
		for (line += 7; *line == '\t'; *inner = strtol(line + 1, &line, 10))
			;
	ended.fd = *pid > 0 ? (int)syscall(SYS_pidfd_open, (pid_t)*pid, 0) : -1;
	if (ended.fd < 0 || poll(&ended, 1, 0) != 0)
		*pid = 0;
	if (ended.fd >= 0)
		close(ended.fd);
}

/*
 * Read the notes NAME/note of `names` (each with its NUL), and ask what the kernel says of each.  Write for each:
 *
 *     size of the note, or -1    keeper: its pid, 0: out of view, -1: none    inode of `held`, and when it was made
 *     which of the three `marks` there are, a bit each    the note's "pidfd"    the pid of that, and its innermost pid
 *
 * and then the note, filled up to 8 bytes.  Return the bytes that were written; `done` is set to how many names those are,
 * since it ends where `size` does.  It concludes nothing: whatever is not plain is asked for again in Python.
 */
static long nsrun_census(int dir, const char *names, size_t length, const char *marks, const uint64_t *ours, int n, long *done, char *out, size_t size)
{
	const char *name, *mark;
	char path[300], *text, *number;
	struct statx st;
	size_t used = 0;
	ssize_t got;
	int64_t *row;
	int fd, i;

	for (*done = 0, name = names; name < names + length; name += strlen(name) + 1, ++*done) {
		if (size - used < 8 * sizeof(*row) + 8)
			break;
		row = (int64_t *)(out + used);
		text = (char *)(row + 8);
		memset(row, 0, 8 * sizeof(*row));
		row[1] = row[5] = -1;
		snprintf(path, sizeof(path), "%s/note", name);
		fd = openat(dir, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
		row[0] = got = fd < 0 ? -1 : read(fd, text, size - used - 8 * sizeof(*row) - 8);
		if (fd >= 0)
			close(fd);
		if (got > 0 && (size_t)got == size - used - 8 * sizeof(*row) - 8) {
			if (*done)
				break; /* there is more of it than space */
			row[0] = got = -1;
		}
		text[got > 0 ? got : 0] = 0;
		if ((number = got > 0 ? strstr(text, "\"pidfd\": ") : NULL))
			row[5] = strtol(number + 9, NULL, 10);
		fd = open_held(dir, name, ours, n);
		if (fd >= 0) {
			row[1] = nsrun_locked(fd, KEEPER, 1);
			if (statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &st) == 0) {
				row[2] = (int64_t)st.stx_ino;
				row[3] = st.stx_mask & STATX_BTIME ? st.stx_btime.tv_sec * 1000000000L + st.stx_btime.tv_nsec : 0;
			}
			close(fd);
		}
		for (mark = marks, i = 0; *mark; mark += strlen(mark) + 1, i++) {
			snprintf(path, sizeof(path), "%s/%s", name, mark);
			row[4] |= (int64_t)(faccessat(dir, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT) << i;
		}
		if (row[1] > 0 && row[5] >= 0)
			find_kept(row[1], row[5], &row[6], &row[7]);
		used += 8 * sizeof(*row) + (((size_t)(got > 0 ? got : 0) + 7) & ~(size_t)7);
	}
	return (long)used;
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
	r = launch(l);
	hide(0);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return r;
}

/* ---- namespaces without a process --------------------------------------------------------------------- */

static long nsrun_new_netns(int user_fd)
{
	long r;

	hide(1);
	r = new_netns(user_fd);
	hide(0);
	return r;
}

struct clocks {
	int user_fd;
	const char *offsets;
	long result;
};

static int make_timens(void *arg)
{
	struct clocks *c = arg;
	long r = c->user_fd >= 0 ? own_keyring() : 0;
	int fd;

	if (r >= 0 && c->user_fd >= 0)
		r = result(setns(c->user_fd, CLONE_NEWUSER));
	if (r >= 0)
		r = result(unshare(CLONE_NEWTIME)); /* for the children, so that its clocks can still be set */

	if (r >= 0 && *c->offsets) {
		fd = open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
		r = fd < 0 ? -errno : result((int)write(fd, c->offsets, strlen(c->offsets)));
		if (fd >= 0)
			close(fd);
	}
	c->result = r < 0 ? r : result(open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC));
	return 0;
}

/*
 * Make a time namespace that belongs to the user namespace `user_fd` (-1: ours), whose clocks have these offsets: lines of
 * time_namespaces(7), /proc/PID/timens_offsets.
 */
static long nsrun_new_timens(int user_fd, const char *offsets)
{
	struct clocks c = {.user_fd = user_fd, .offsets = offsets, .result = -ECHILD};
	long child;

	hide(1);
	child = spawn(make_timens, &c, CLONE_FILES, NULL, -1);
	hide(0);
	if (child < 0)
		return child;
	wait_for(child);
	return c.result;
}

/*
 * Start a process in a new user namespace, which belongs to `uid` (-1: to us).  It waits until *hold is closed, so that its
 * maps can be written meanwhile.  It is a real fork, so that the parent can go on.  The user may signal it, so the parent
 * waits for it only some seconds, and ends it with SIGKILL, which also reaches a stopped process.
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

/* ---- a file is written over ------------------------------------------------------------------------------ */

/*
 * Write the first `size` bytes of a file over another one, by a child in a session of its own, which no signal keeps from doing so
 * but its own SIGKILL; returns its pid.  It ends with an errno, 0 when all is done.
 */
static long nsrun_write_apart(int source, int target, long long size)
{
	char piece[1 << 16];
	sigset_t all;
	pid_t pid = fork();

	if (pid == 0) {
		sigfillset(&all);
		sigprocmask(SIG_SETMASK, &all, NULL);
		setsid();
		for (long long at = 0; at < size;) {
			ssize_t n = pread(source, piece, sizeof piece, at), done = 0, r = 0;
			if (n <= 0)
				_exit(n ? errno : EIO);
			for (; done < n; done += r)
				if ((r = pwrite(target, piece + done, (size_t)(n - done), at + done)) < 0)
					_exit(errno);
			at += n;
		}
		_exit(ftruncate(target, size) < 0 ? errno : 0);
	}
	return pid < 0 ? -EAGAIN : pid;
}

/* ---- root becomes a user --------------------------------------------------------------------------------- */

/*
 * The calling process, which has one thread, becomes that user for good.  Descriptors above 2 stay open until an exec.  The
 * working directory is changed, since it could be one that the user can't reach by a path.
 */
static long nsrun_become(int uid, int gid, const unsigned *groups, int n)
{
	close_all_on_exec();
	if (chdir("/") < 0)
		return -errno;
	return become_user(uid, gid, gid, groups, n);
}

/*
 * Start a program as that user, in a session of its own, with its output going to `out`; returns its pid.  It is a real
 * fork, for which we do not wait, since the user may stop it at any moment.
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
		if (nsrun_become(uid, gid, groups, n) < 0 || least_limits(1 << 30, 256) < 0 || lower_limit(RLIMIT_CPU, (struct limit){60, 60}) < 0)
			_exit(125);
		CALL(execve, argv[0], argv, envp, 0, 0);
		quit(125);
	}
	close(null);
	return pid < 0 ? -EAGAIN : pid;
}

/*
 * Permanently enter that user namespace (-1: stay in ours) and a new mount namespace.  A process that was not dumpable
 * before (root's memory, nsrun_become()) is not dumpable afterwards, although new credentials set it to fs.suid_dumpable.
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

/* Move the calling thread; returns the descriptor that leads back. */
static long nsrun_enter_netns(int fd)
{
	return enter_netns(fd);
}

/*
 * Which directory somebody gets as their root who joins the mount namespace `mnt`, and before it the user namespace `user`
 * (-1: stay in ours): its device and inode.  A vfork child looks, and executes nothing that is found in there; nobody who has
 * power over that user namespace gets a process of ours into it unless we ask for that.
 */
static long nsrun_root_in(int user, int mnt, unsigned long long *found)
{
	volatile long r = 0;
	struct stat st;
	int status;
	pid_t pid = vfork();

	if (pid == 0) {
		if ((user >= 0 && setns(user, CLONE_NEWUSER) < 0) || setns(mnt, CLONE_NEWNS) < 0 || stat("/", &st) < 0)
			r = -errno;
		_exit(0);
	}
	if (pid < 0)
		return -errno;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	found[0] = st.st_dev;
	found[1] = st.st_ino;
	return r;
}

static long nsrun_pidfd_open(int pid)
{
	return CALL(pidfd_open, pid, 0, 0, 0, 0);
}

static long nsrun_pidfd_send_signal(int fd, int sig)
{
	return CALL(pidfd_send_signal, fd, sig, NULL, 0, 0);
}

static long nsrun_pidfd_getfd(int pidfd, int number)
{
	return CALL(pidfd_getfd, pidfd, number, 0, 0, 0);
}

static long nsrun_fsopen(const char *type)
{
	return CALL(fsopen, type, FSOPEN_CLOEXEC, 0, 0, 0);
}

static long nsrun_fsconfig(int fd, unsigned cmd, const char *key, const char *value)
{
	return CALL(fsconfig, fd, cmd, key, value, 0);
}

/*
 * Do the same with the working directory `dir` (-1: ours), for relative paths: an fsconfig string ends at 256 bytes, and
 * before Linux 6.5 all of an overlay's layers must share one.  And in the mount namespace `mnt` (-1: ours).  A vfork child
 * has its own working directory and mount namespace.
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
	return CALL(fsmount, fd, FSMOUNT_CLOEXEC, attrs, 0, 0);
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
		a->error = CALL(mount, NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	for (int i = 0; i < a->n && a->error >= 0; i++)
		a->error = CALL(move_mount, a->trees[i], "", AT_FDCWD, "/sys", MOVE_MOUNT_F_EMPTY_PATH);
	if (a->error >= 0) {
		a->fd = open("/proc/thread-self/ns/mnt", O_RDONLY | O_CLOEXEC);
		a->error = a->fd < 0 ? -errno : 0;
	}
	return 0;
}

/*
 * Make a mount namespace without a process, in which these detached trees are attached: before Linux 6.15 an overlay
 * accepts no layer from a mount that is attached nowhere.  They are stacked on one directory, since nothing looks them up.
 */
static long nsrun_attach_apart(const int *trees, int n)
{
	struct apart a = {.trees = trees, .n = n, .fd = -1};
	long child = spawn(attach_apart, &a, CLONE_FILES, NULL, -1);

	if (child < 0)
		return child;
	wait_for(child);
	return a.error < 0 ? a.error : a.fd;
}

static long nsrun_open_tree(int dir, const char *path, unsigned flags)
{
	return CALL(open_tree, dir, path, flags, 0, 0);
}

static long nsrun_mount_setattr(int fd, unsigned flags, uint64_t set, uint64_t clear, uint64_t propagation, int userns)
{
	struct mount_attr attr = {set, clear, propagation, userns >= 0 ? (unsigned)userns : 0};
	return CALL(mount_setattr, fd, "", flags | AT_EMPTY_PATH, &attr, sizeof attr);
}

static long nsrun_openat2(int dir, const char *path, uint64_t flags, uint64_t resolve)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
	long r = -EAGAIN;

	/* as open_how of sys.h, which says why */
	for (int tries = 0, loops = 0; tries < 1000 && (r == -EAGAIN || (r == -ELOOP && !(resolve & RESOLVE_NO_SYMLINKS) && ++loops <= 2)); tries++)
		r = CALL(openat2, dir, path, &how, sizeof how, 0);
	return r;
}

static long nsrun_fs_magic(int fd)
{
	struct statfs st;
	return fstatfs(fd, &st) < 0 ? -errno : (long)st.f_type;
}

/* When a file was made, in nanoseconds since 1970; 0 where its file system does not tell. */
static long nsrun_birth(int dir, const char *path)
{
	struct statx st;
	if (statx(dir, path, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_BTIME, &st) < 0)
		return -errno;
	return st.stx_mask & STATX_BTIME ? st.stx_btime.tv_sec * 1000000000L + st.stx_btime.tv_nsec : 0;
}

/*
 * Whether a link has a carrier; a bridge has one as long as one of its links forwards.  ETHTOOL_GLINK, because IFF_RUNNING
 * follows up to a second later.
 */
static long nsrun_carrier(const char *name)
{
	struct ethtool_value value = {.cmd = ETHTOOL_GLINK};
	struct ifreq request = {.ifr_data = (char *)&value};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	long r;

	if (fd < 0)
		return -errno;
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	r = ioctl(fd, SIOCETHTOOL, &request) < 0 ? -errno : value.data != 0;
	close(fd);
	return r;
}

/*
 * Attach a program of `n` bytes, instructions of eBPF, to a cgroup of v2: the kernel asks it before a process in it opens or
 * makes a device.  It lives as long as the cgroup.  bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE.
 */
static long nsrun_device_filter(int cgroup, const char *code, unsigned n)
{
	union bpf_attr load = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insns = (uintptr_t)code, .insn_cnt = n / 8, .license = (uintptr_t)"GPL"};
	union bpf_attr attach = {.target_fd = (unsigned)cgroup, .attach_type = BPF_CGROUP_DEVICE, .attach_flags = BPF_F_ALLOW_MULTI};
	long r, program = CALL(bpf, BPF_PROG_LOAD, &load, sizeof(load), 0, 0);

	if (program < 0)
		return program;
	attach.attach_bpf_fd = (unsigned)program;
	r = CALL(bpf, BPF_PROG_ATTACH, &attach, sizeof(attach), 0, 0);
	close((int)program);
	return r;
}

static long nsrun_sealed_memfd(const char *name, const char *data, size_t size, int program)
{
	return sealed_memfd(name, data, size, program);
}

static uint32_t nsrun_checksum(const char *data, size_t size)
{
	return checksum(data, size);
}

static long nsrun_channel(int *two)
{
	return result(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, two));
}

static long nsrun_replace_process(int program, char **argv, char **envp)
{
	return CALL(execveat, program, "", argv, envp, AT_EMPTY_PATH);
}
