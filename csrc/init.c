/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nsrun-init executes phase 4 of a plan inside the pod's namespaces, and then becomes the member (or
 * pause) by execve(2).
 *
 *   nsrun-init PLAN CHANNEL      PLAN: a descriptor of the encoded steps; CHANNEL: a SOCK_SEQPACKET to nsrun
 *
 * Theory of operation.  nsrun (Python, on the host) has turned everything that lives on the host into
 * descriptors: mounts that are attached nowhere, pidfds, the cgroup.  It has also joined the net, IPC,
 * UTS and PID namespaces before it cloned us.  We run the steps in order.  No step takes a path of the
 * host: the kernel resolves paths inside the new root (openat2, RESOLVE_IN_ROOT), or in pause's own tiny
 * root.  There is no malloc, no library, no environment; a step either succeeds or ends the program with
 * one record, which has the step, the errno and the path.
 *
 * On the channel we send INIT_WAITS when everything but the exec is done, and wait for GO, which comes when the note is
 * written.  When a step fails, we send INIT_FAILED and exit with 125.  End of file tells nsrun that the exec succeeded, and
 * tells us that nsrun died: then we exit, and leave nothing behind.  protocol.h has the records, docs/protocol.md the whole
 * picture.
 *
 * All steps run privileged, in the pod; after set_user, change_directory and execute run unprivileged.
 */
#include "decode.h"
#include "protocol.h"
#include "sys.h"

#include "session.h"

#include <asm/ioctls.h>
#include <asm/statfs.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>

#define MAX_DEVICES 16

static int channel;        /* to nsrun */
static int root_fd = -1;   /* the new root, until and after pivot_root */
static uint32_t step_no;   /* the current step, counted from 0 */
static char detail[512];   /* the path or name on which the failing step worked */

/* ---- reporting ---------------------------------------------------------------------------------- */

static void report(enum init_says kind, long err)
{
	struct {
		struct init_record head;
		char detail[sizeof detail];
	} r = {.head = {.kind = (uint32_t)kind, .step = step_no, .err = (int32_t)-err}};
	memcpy(r.detail, detail, sizeof detail);
	SYS3(write, channel, &r, sizeof r.head + str_len(detail));
}

static void about(const char *text)
{
	size_t n = str_len(text);
	if (n > sizeof detail - 1)
		n = sizeof detail - 1;
	memcpy(detail, text, n);
	detail[n] = 0;
}

#define TRY(expr) \
	({ \
		long r_ = (expr); \
		if (r_ < 0) \
			return r_; \
		r_; \
	})

/* ---- paths: one resolver (docs/threats.md, R1) --------------------------------------------------- */

static long open_in(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve};
	about(path);
	return open_how(dir, path, &how);
}

#define IN_ROOT (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
/* Targets that the user or the spec names must not pass a symlink, or the mount would be somewhere else. */
#define STRICT (RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)

static long kind_of(int fd)
{
	struct statx st;
	TRY(SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_TYPE, &st));
	return st.stx_mode & S_IFMT;
}

/*
 * Open `path` inside the root and make what is missing: directories with mode 0755, and the last component
 * as a directory or an empty file.  A dangling symlink is followed by hand, inside the root.
 */
static long open_or_make(const char *path, int want_dir, uint64_t resolve, int depth)
{
	char part[PATH_MAX];
	size_t n = str_len(path), i = 0;
	long parent, fd = open_in(root_fd, path, O_PATH, 0, resolve);

	if (fd != -ENOENT)
		return fd;
	if (n >= sizeof part)
		return -ENAMETOOLONG;
	if (depth > 8)
		return -ELOOP;
	parent = TRY(open_in(root_fd, "/", O_PATH | O_DIRECTORY, 0, IN_ROOT));
	while (i < n) {
		size_t start, last;
		while (path[i] == '/')
			i++;
		if (!path[i])
			break;
		start = i;
		while (path[i] && path[i] != '/')
			i++;
		memcpy(part, path, i);
		part[i] = 0;
		for (last = i; path[last] == '/'; last++)
			;
		last = !path[last];
		fd = open_in(root_fd, part, O_PATH, 0, resolve);
		if (fd == -ENOENT) {
			if (str_eq(part + start, "..") || str_eq(part + start, "."))
				return -EINVAL;
			if (!last || want_dir)
				fd = SYS3(mkdirat, parent, part + start, 0755);
			else {
				fd = SYS4(openat, parent, part + start, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0644);
				if (fd >= 0)
					SYS1(close, fd), fd = 0;
			}
			if (fd == -EEXIST && resolve == IN_ROOT) {
				/* a dangling symlink: make its target, and continue from there */
				char whole[PATH_MAX];
				long got = TRY(SYS4(readlinkat, parent, part + start, whole, sizeof whole - 1));
				whole[got] = 0;
				if (whole[0] != '/') {
					if (start + (size_t)got >= sizeof whole)
						return -ENAMETOOLONG;
					memmove(whole + start, whole, (size_t)got + 1);
					memcpy(whole, part, start);
				}
				if (str_len(whole) + (n - i) >= sizeof whole)
					return -ENAMETOOLONG;
				*put_str(whole + str_len(whole), path + i) = 0;
				SYS1(close, parent);
				return open_or_make(whole, want_dir, resolve, depth + 1);
			}
			if (fd < 0)
				return fd;
			fd = open_in((int)parent, part + start, O_PATH | O_NOFOLLOW, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
		}
		if (fd < 0)
			return fd;
		SYS1(close, parent);
		parent = fd;
	}
	return parent;
}

/* Mount the detached `tree` on `target` inside the root. */
static long attach(int tree, const char *target, uint64_t resolve)
{
	long kind = TRY(kind_of(tree)), r;
	long at = TRY(open_or_make(target, kind == S_IFDIR, resolve, 0));
	r = kind_of((int)at);
	if (r >= 0 && (r == S_IFDIR) != (kind == S_IFDIR))
		r = kind == S_IFDIR ? -ENOTDIR : -EISDIR;
	if (r >= 0)
		r = SYS5(move_mount, tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	SYS1(close, at);
	return r;
}

/* Make a new, detached mount of a file system by fsopen … fsmount, with options "a=b,c". */
static long new_mount(const char *type, const char *options, unsigned attrs)
{
	char opt[1024], *p = opt;
	long fs, mnt;

	if (str_len(options) >= sizeof opt)
		return -ENAMETOOLONG;
	put_str(opt, options)[0] = 0;
	fs = TRY(SYS2(fsopen, type, FSOPEN_CLOEXEC));
	TRY(SYS5(fsconfig, fs, FSCONFIG_SET_STRING, "source", type, 0));
	while (*p) {
		char *key = p, *value = NULL;
		for (; *p && *p != ','; p++)
			if (*p == '=' && !value)
				*p = 0, value = p + 1;
		if (*p)
			*p++ = 0;
		about(key);
		TRY(value ? SYS5(fsconfig, fs, FSCONFIG_SET_STRING, key, value, 0)
		          : SYS5(fsconfig, fs, FSCONFIG_SET_FLAG, key, NULL, 0));
	}
	about(type);
	TRY(SYS5(fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	mnt = SYS3(fsmount, fs, FSMOUNT_CLOEXEC, attrs);
	SYS1(close, fs);
	return mnt;
}

static long set_attr(int fd, const char *path, unsigned flags, uint64_t set)
{
	struct mount_attr attr = {.attr_set = set};
	return SYS5(mount_setattr, fd, path, flags, &attr, sizeof attr);
}

/* ---- the steps ----------------------------------------------------------------------------------- */

static long op_enter_mount_namespace(struct arg *a)
{
	return SYS2(setns, a[0].i, a[1].i);
}

static long op_unshare(struct arg *a)
{
	return SYS1(unshare, a[0].i);
}

/*
 * Enter a mount namespace of our own, so that no mount of ours appears on the host.  In a chroot, our root is not the root
 * of the mount namespace: setns(2) to the one that we are in takes us there.  Otherwise the new root would cover only the
 * chroot's directory, and a process that enters this namespace would see the host's tree.
 */
static long op_make_private(struct arg *a)
{
	long fd;
	(void)a;
	about("/proc/self/ns/mnt");
	fd = TRY(SYS4(openat, AT_FDCWD, "/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC, 0));
	TRY(SYS2(setns, fd, CLONE_NEWNS));
	SYS1(close, fd);
	about("/");
	return SYS5(mount, NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

/* The new root: a detached mount, attached at a directory of the mount namespace we are in. */
static long op_attach_root(struct arg *a)
{
	about(a[1].s);
	root_fd = (int)a[0].i;
	return SYS5(move_mount, root_fd, "", AT_FDCWD, a[1].s, MOVE_MOUNT_F_EMPTY_PATH);
}

static long op_tmpfs_root(struct arg *a)
{
	struct arg at[2] = {{.i = TRY(new_mount("tmpfs", a[0].s, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV))}, a[1]};
	return op_attach_root(at);
}

static long op_mount(struct arg *a)
{
	long mnt = TRY(new_mount(a[0].s, a[2].s, (unsigned)a[3].i)), r;
	r = attach((int)mnt, a[1].s, STRICT);
	SYS1(close, mnt);
	return r;
}

/* A tree that nsrun opened on the host (a volume). */
static long op_mount_tree(struct arg *a)
{
	return attach((int)a[0].i, a[1].s, a[2].i ? STRICT : IN_ROOT);
}

/* A tree of pause's root: /dev/shm, /etc/hosts, … */
static long op_mount_from_pod(struct arg *a)
{
	long tree, r;
	about(a[0].s);
	tree = TRY(SYS3(open_tree, AT_FDCWD, a[0].s, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
	r = a[2].i ? set_attr((int)tree, "", AT_EMPTY_PATH, MOUNT_ATTR_RDONLY) : 0;
	if (r >= 0)
		r = attach((int)tree, a[1].s, IN_ROOT);
	SYS1(close, tree);
	return r;
}

static long op_make_directory(struct arg *a)
{
	long fd = TRY(open_or_make(a[0].s, 1, IN_ROOT, 0)), kind = kind_of((int)fd);
	SYS1(close, fd);
	return kind == S_IFDIR ? 0 : -ENOTDIR;
}

static long op_write_file(struct arg *a)
{
	long fd = TRY(open_in(root_fd, a[0].s, O_CREAT | O_EXCL | O_WRONLY, 0644, STRICT));
	long r = SYS3(write, fd, a[1].s, str_len(a[1].s));
	SYS1(close, fd);
	return r;
}

static long op_make_symlink(struct arg *a)
{
	const char *rel = a[1].s;
	while (*rel == '/')
		rel++;
	about(a[1].s);
	/* this is used only below the new tmpfs of /dev, so no component of rel is from the image */
	return SYS3(symlinkat, a[0].s, root_fd, rel);
}

/*
 * A new /dev.  The tmpfs is nodev, so a member with CAP_MKNOD can make nodes but never open one; the few
 * real nodes are bind mounts of themselves, made before the tmpfs was set to nodev.
 */
static long op_make_dev(struct arg *a)
{
	long dev = TRY(new_mount("tmpfs", "mode=755,size=64k", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC));
	long node[MAX_DEVICES];
	const char *name[MAX_DEVICES], *p = a[1].s, *end = a[1].s + a[1].len;
	int n = 0;

	/* Attach it first: before Linux 6.15 nothing can be cloned from a mount that is attached nowhere. */
	TRY(attach((int)dev, a[0].s, STRICT));
	for (; p < end && n < MAX_DEVICES; n++) {
		unsigned long major, minor;
		name[n] = p;
		p += str_len(p) + 1;
		if (p >= end)
			return -EINVAL;
		major = (unsigned long)str_num(p, 0), p += str_len(p) + 1;
		if (p >= end)
			return -EINVAL;
		minor = (unsigned long)str_num(p, 0), p += str_len(p) + 1;
		about(name[n]);
		TRY(SYS4(mknodat, dev, name[n], S_IFCHR | 0666, (major << 8) | minor));
		node[n] = TRY(SYS3(open_tree, dev, name[n], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
	}
	TRY(set_attr((int)dev, "", AT_EMPTY_PATH, MOUNT_ATTR_NODEV));
	for (int i = 0; i < n; i++) {
		about(name[i]);
		TRY(SYS5(move_mount, node[i], "", dev, name[i], MOVE_MOUNT_F_EMPTY_PATH));
		SYS1(close, node[i]);
	}
	SYS1(close, dev);
	return 0;
}

/* Hide a path: a directory under an empty read-only tmpfs, a file under the null device. */
static long op_mask(struct arg *a)
{
	long tree, r, at = open_in(root_fd, a[0].s, O_PATH, 0, STRICT);
	if (at == -ENOENT)
		return 0;
	TRY(at);
	if (TRY(kind_of((int)at)) == S_IFDIR) {
		tree = TRY(new_mount("tmpfs", "size=0k,mode=0555,nr_inodes=2", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID));
	} else {
		struct statx st;
		tree = TRY(open_in(root_fd, "/dev/null", O_PATH, 0, STRICT));
		TRY(SYS5(statx, tree, "", AT_EMPTY_PATH, STATX_TYPE, &st));
		if ((st.stx_mode & S_IFMT) != S_IFCHR || st.stx_rdev_major != 1 || st.stx_rdev_minor != 3)
			return -EINVAL; /* it is not the null device: CVE-2025-31133 */
		r = SYS3(open_tree, tree, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
		SYS1(close, tree);
		tree = TRY(r);
	}
	about(a[0].s);
	r = SYS5(move_mount, tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	SYS1(close, tree);
	SYS1(close, at);
	return r;
}

static long op_readonly_path(struct arg *a)
{
	long tree, r, at = open_in(root_fd, a[0].s, O_PATH, 0, STRICT);
	if (at == -ENOENT)
		return 0;
	TRY(at);
	tree = TRY(SYS3(open_tree, at, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE));
	TRY(set_attr((int)tree, "", AT_EMPTY_PATH | AT_RECURSIVE, MOUNT_ATTR_RDONLY));
	r = SYS5(move_mount, tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	SYS1(close, tree);
	SYS1(close, at);
	return r;
}

/* pivot_root(2): "." onto "." stacks the old root on the new one; then we unmount it. */
static long op_pivot(struct arg *a)
{
	(void)a;
	TRY(SYS1(fchdir, root_fd));
	TRY(SYS2(pivot_root, ".", "."));
	TRY(SYS2(umount2, ".", MNT_DETACH));
	return SYS1(chdir, "/");
}

static long op_readonly_root(struct arg *a)
{
	(void)a;
	return set_attr(root_fd, "", AT_EMPTY_PATH, MOUNT_ATTR_RDONLY);
}

static long op_set_hostname(struct arg *a)
{
	about(a[0].s);
	return SYS2(sethostname, a[0].s, str_len(a[0].s));
}

/* Write to a file and close it, if a real procfs has it: a root may have something else at /proc (CVE-2019-16884). */
static long write_proc(int fd, const char *value)
{
	struct statfs st;
	long r = SYS2(fstatfs, fd, &st);

	if (r >= 0 && st.f_type != PROC_SUPER_MAGIC)
		r = -EINVAL;
	if (r >= 0)
		r = SYS3(write, fd, value, str_len(value));
	SYS1(close, fd);
	return r;
}

/*
 * Write a value below our own new /proc: a sysctl, oom_score_adj.  An optional one may be refused.  In an exec nothing was
 * attached: setns(2) has made the member's root our working directory.
 */
static long op_write_proc(struct arg *a)
{
	long fd = open_in(root_fd < 0 ? AT_FDCWD : root_fd, a[0].s, O_WRONLY, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
	long r = fd < 0 ? fd : write_proc((int)fd, a[1].s);
	return a[2].i && r < 0 ? 0 : r;
}

static long op_set_limit(struct arg *a)
{
	struct rlimit64 lim = {.rlim_cur = (uint64_t)a[1].i, .rlim_max = (uint64_t)a[2].i};
	return SYS4(prlimit64, 0, a[0].i, &lim, NULL);
}

static long op_loopback_up(struct arg *a)
{
	struct { /* struct ifreq; <linux/if.h> would pull libc's headers in */
		char name[16];
		short flags;
		char rest[22];
	} ifr = {.name = "lo"};
	long r, s = TRY(SYS3(socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	(void)a;
	r = SYS3(ioctl, s, SIOCGIFFLAGS, &ifr);
	if (r >= 0) {
		ifr.flags |= IFF_UP;
		r = SYS3(ioctl, s, SIOCSIFFLAGS, &ifr);
	}
	SYS1(close, s);
	return r;
}

/* Make a new session, so that no TIOCSTI reaches the caller's terminal; a terminal of the member's becomes controlling. */
static long op_new_session(struct arg *a)
{
	long r = SYS0(setsid);
	if (r < 0 && r != -EPERM)
		return r;
	return a[0].i ? SYS3(ioctl, 0, TIOCSCTTY, 1) : 0;
}

static long op_new_keyring(struct arg *a)
{
	(void)a;
	return own_keyring();
}

/*
 * Drop the bounding set first, because that needs CAP_SETPCAP, then set the groups, and the ids last.  Where the user
 * namespace that we are in denies setgroups (a[4]), the groups stay as they are.
 */
static long op_set_user(struct arg *a)
{
	static uint32_t groups[MAX_GROUPS];
	int n = 0;
	const char *p = a[2].s, *end = a[2].s + a[2].len;
	uint64_t keep = (uint64_t)a[3].i;

	for (int cap = 0; cap < 64; cap++) {
		long has = SYS5(prctl, PR_CAPBSET_READ, cap, 0, 0, 0);
		if (has < 0)
			break;
		if (has && !(keep >> cap & 1))
			TRY(SYS5(prctl, PR_CAPBSET_DROP, cap, 0, 0, 0));
	}
	for (; p < end; p += str_len(p) + 1) {
		long gid = str_num(p, -1);
		if (n == MAX_GROUPS || gid < 0)
			return -EINVAL;
		groups[n++] = (uint32_t)gid;
	}
	if (!a[4].i)
		TRY(SYS2(setgroups, n, groups));
	TRY(SYS5(prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0));
	TRY(SYS3(setresgid, a[1].i, a[1].i, a[1].i));
	return SYS3(setresuid, a[0].i, a[0].i, a[0].i);
}

static long op_set_capabilities(struct arg *a)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {{0}};
	uint64_t permitted = (uint64_t)a[0].i;

	SYS5(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (int i = 0; i < 2; i++) {
		d[i].permitted = (uint32_t)(permitted >> (32 * i));
		d[i].effective = d[i].permitted;
	}
	return SYS2(capset, &head, d);
}

/* Set the AppArmor profile for the exec.  The file must be on a real procfs: an image could have one of that name. */
static long op_set_profile(struct arg *a)
{
	static const char *const files[] = {"/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"};
	long fd = -ENOENT;

	for (unsigned i = 0; i < 2 && fd == -ENOENT; i++) {
		about(files[i]);
		fd = SYS4(openat, AT_FDCWD, files[i], O_WRONLY | O_CLOEXEC, 0);
	}
	TRY(fd);
	return write_proc((int)fd, a[0].s);
}

static long op_no_new_privileges(struct arg *a)
{
	(void)a;
	return SYS5(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* Whether a filter asks a listener. */
static int asks(const struct sock_fprog *program)
{
	for (int i = 0; i < program->len; i++)
		if (program->filter[i].code == (BPF_RET | BPF_K) && program->filter[i].k == SECCOMP_RET_USER_NOTIF)
			return 1;
	return 0;
}

/*
 * Install filters, one after the other, with flags of seccomp(2): u32 length, struct sock_filter[length].  The one that asks has
 * its listener in *listener, if that is wanted.
 */
static long install_filters(int fd, long flags, long *listener)
{
	struct statx st;
	const char *p, *end;
	long map;

	TRY(SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_SIZE, &st));
	map = TRY(SYS(mmap, 0, st.stx_size, PROT_READ, MAP_PRIVATE, fd, 0));
	p = (const char *)map;
	end = p + st.stx_size;
	while (p < end) {
		uint32_t length;
		struct sock_fprog program;
		if (end - p < 4)
			return -EINVAL;
		memcpy(&length, p, 4);
		p += 4;
		if (length > MAX_FILTER || (size_t)(end - p) < length * sizeof(struct sock_filter))
			return -EINVAL;
		program = (struct sock_fprog){.len = (unsigned short)length, .filter = (struct sock_filter *)(uintptr_t)p};
		if (listener && asks(&program))
			*listener = TRY(SYS3(seccomp, SECCOMP_SET_MODE_FILTER, flags | (long)SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
		else
			TRY(SYS3(seccomp, SECCOMP_SET_MODE_FILTER, flags, &program));
		p += length * sizeof(struct sock_filter);
	}
	return 0;
}

static long op_set_filter(struct arg *a)
{
	return install_filters((int)a[0].i, 0, NULL);
}

static long op_undumpable(struct arg *a)
{
	(void)a;
	return SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
}

/* chdir as the member's own user; a directory outside the root would show as "(unreachable)". */
static long op_change_directory(struct arg *a)
{
	char here[PATH_MAX];
	about(a[0].s);
	TRY(SYS1(chdir, a[0].s));
	TRY(SYS2(getcwd, here, sizeof here));
	return here[0] == '/' ? 0 : -ENOENT;
}

/* ---- exec ---------------------------------------------------------------------------------------- */

/* A list as execve(2) takes it, of any length: the kernel decides how much is too much. */
static long unpack(struct arg *list, const char ***out)
{
	int n = count_strings(list->s, list->len);

	*out = pointers((size_t)n);
	return *out ? split_strings(list->s, list->len, *out, n) : -ENOMEM;
}

/* Report that everything is ready, with a number that only we know, and wait until we are told to go on. */
static void say_and_wait(long number)
{
	char go = 0;
	detail[0] = 0;
	report(INIT_WAITS, -number);
	if (SYS3(read, channel, &go, 1) != 1 || go != GO)
		sys_exit(125);
}

/* Report that everything is ready, and wait until the note is written on the host. */
static void wait_for_go(void)
{
	SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	say_and_wait(0);
}

/* Between two steps, for who walks through them one by one: nsrun explain --step. */
static long op_wait(struct arg *a)
{
	(void)a;
	wait_for_go();
	return 0;
}

/* Only a regular file that we may execute counts as found; the error of its exec is then final. */
static int executable(const char *path)
{
	struct statx st;
	if (SYS5(statx, AT_FDCWD, path, 0, STATX_TYPE, &st) < 0 || (st.stx_mode & S_IFMT) == S_IFDIR)
		return -ENOENT;
	return SYS3(faccessat, AT_FDCWD, path, 1) < 0 ? -EACCES : 0;
}

static long exec_in_path(const char **argv, const char **envp)
{
	char path[PATH_MAX];
	const char *search = DEFAULT_PATH, *name = argv[0];
	long found = -ENOENT;

	about(name);
	if (!*name)
		return -ENOENT;
	for (const char *p = name; *p; p++)
		if (*p == '/')
			return SYS3(execve, name, argv, envp);
	for (int i = 0; envp[i]; i++)
		if (str_after(envp[i], "PATH="))
			search = str_after(envp[i], "PATH=");
	while (*search) {
		char *end = path;
		const char *dir = search;
		int state;
		while (*search && *search != ':')
			search++;
		if ((size_t)(search - dir) + str_len(name) + 2 <= sizeof path) {
			memcpy(path, dir, (size_t)(search - dir));
			end += search - dir;
			if (end == path)
				*end++ = '.';
			*end++ = '/';
			*put_str(end, name) = 0;
			state = executable(path);
			if (state == 0) {
				about(path);
				return SYS3(execve, path, argv, envp);
			}
			if (state == -EACCES) {
				about(path);
				found = state;
			}
		}
		if (*search)
			search++;
	}
	return found;
}

static long op_execute(struct arg *a)
{
	const char **argv, **envp;

	TRY(unpack(&a[0], &argv));
	TRY(unpack(&a[1], &envp));
	if (!argv[0])
		return -EINVAL;
	wait_for_go();
	SYS3(close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC);
	sys_sigmask(SIG_SETMASK, 0);
	return exec_in_path(argv, envp);
}

/* Execute pause: a sealed program, without an environment, and with only the descriptors that it is to hold. */
static long op_execute_pause(struct arg *a)
{
	const char *p = a[2].s, *end = a[2].s + a[2].len;
	char ready[24];
	const char *argv[] = {a[1].s, ready, NULL}, *none[] = {NULL};
	if (!a[1].len)
		return -EINVAL;
	*put_num(ready, (unsigned long)channel, 1) = 0;
	wait_for_go();
	SYS3(close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC);
	for (; p < end; p += str_len(p) + 1)
		SYS3(fcntl, str_num(p, -1), F_SETFD, 0);
	SYS3(fcntl, channel, F_SETFD, 0);
	return SYS5(execveat, a[0].i, "", argv, none, AT_EMPTY_PATH);
}

/* ---- for nsrun-oci alone ------------------------------------------------------------------------- */

/* Open the directory in which the last component of `path` is, inside the root, making what is missing; *name is that one. */
static long open_parent(const char *path, const char **name)
{
	char above[PATH_MAX];
	size_t n = str_len(path);

	if (n >= sizeof above)
		return -ENAMETOOLONG;
	while (n > 0 && path[n - 1] != '/')
		n--;
	*name = path + n;
	if (!**name || str_eq(*name, ".") || str_eq(*name, ".."))
		return -EINVAL;
	memcpy(above, path, n);
	above[n] = 0;
	return n ? open_or_make(above, 1, IN_ROOT, 0) : open_in(root_fd, "/", O_PATH | O_DIRECTORY, 0, IN_ROOT);
}

/* A new file system, with its source, and a list of options of any length.  A tmpfs without a mode gets that of its place. */
static long op_new_mount(struct arg *a)
{
	const char *const type = a[0].s, *const source = a[1].s, *const target = a[2].s;
	/* procfs and sysfs where a link leads would be anywhere else than where those who look for them find them (CVE-2019-19921) */
	const uint64_t resolve = str_eq(type, "proc") || str_eq(type, "sysfs") ? STRICT : IN_ROOT;
	const char *end = a[3].s + a[3].len;
	int has_mode = !str_eq(type, "tmpfs");
	char key[256], mode[8];
	long r, mnt, fs = TRY(SYS2(fsopen, type, FSOPEN_CLOEXEC));

	about(type);
	TRY(SYS5(fsconfig, fs, FSCONFIG_SET_STRING, "source", source, 0));
	for (const char *p = a[3].s; p < end; p += str_len(p) + 1) {
		size_t n = 0;
		while (p[n] && p[n] != '=')
			n++;
		if (n >= sizeof key)
			return -ENAMETOOLONG;
		memcpy(key, p, n);
		key[n] = 0;
		about(p);
		has_mode |= str_eq(key, "mode");
		TRY(p[n] ? SYS5(fsconfig, fs, FSCONFIG_SET_STRING, key, p + n + 1, 0)
		         : SYS5(fsconfig, fs, FSCONFIG_SET_FLAG, key, NULL, 0));
	}
	if (!has_mode) {
		struct statx st;
		long at = open_in(root_fd, target, O_PATH, 0, resolve);
		if (at >= 0 && SYS5(statx, at, "", AT_EMPTY_PATH, STATX_MODE, &st) >= 0) {
			char *p = mode;
			for (int shift = 9; shift >= 0; shift -= 3)
				*p++ = (char)('0' + (st.stx_mode >> shift & 7));
			*p = 0;
			TRY(SYS5(fsconfig, fs, FSCONFIG_SET_STRING, "mode", mode, 0));
		}
		if (at >= 0)
			SYS1(close, at);
	}
	about(type);
	TRY(SYS5(fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	mnt = TRY(SYS3(fsmount, fs, FSMOUNT_CLOEXEC, a[4].i));
	SYS1(close, fs);
	r = attach((int)mnt, target, resolve);
	if (r >= 0 && a[5].i) {
		struct mount_attr attr = {.propagation = (uint64_t)a[5].i};
		r = SYS5(mount_setattr, mnt, "", AT_EMPTY_PATH, &attr, sizeof attr);
	}
	SYS1(close, mnt);
	return r;
}

/* A mount of a file or directory of the new root at another place in it: the terminal as /dev/console. */
static long op_bind_inside(struct arg *a)
{
	long r, tree, at = TRY(open_in(root_fd, a[0].s, O_PATH, 0, IN_ROOT));

	tree = SYS3(open_tree, at, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
	SYS1(close, at);
	TRY(tree);
	r = attach((int)tree, a[1].s, STRICT);
	SYS1(close, tree);
	return r;
}

/* A device node, a FIFO or a file; one that is there and is the same stays. */
static long op_make_node(struct arg *a)
{
	const char *name;
	long r, node, parent = TRY(open_parent(a[0].s, &name));
	struct statx st;

	about(a[0].s);
	r = SYS4(mknodat, parent, name, a[1].i, (a[2].i & 0xfff) << 8 | (a[3].i & 0xff) | (a[3].i & ~0xffL) << 12);
	if (r != -EEXIST)
		TRY(r);
	/* Whoever writes to the root may have put something else in its place, so it is named no more.  Our umask is 0. */
	node = TRY(open_in((int)parent, name, O_PATH | O_NOFOLLOW, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS));
	about(a[0].s);
	TRY(SYS5(statx, node, "", AT_EMPTY_PATH, STATX_TYPE, &st));
	if ((st.stx_mode & S_IFMT) != (a[1].i & S_IFMT) || st.stx_rdev_major != a[2].i || st.stx_rdev_minor != a[3].i)
		return -EEXIST;
	if (r == 0)
		TRY(SYS5(fchownat, node, "", a[4].i, a[5].i, AT_EMPTY_PATH));
	SYS1(close, node);
	SYS1(close, parent);
	return 0;
}

/* A symlink anywhere in the root; what has its name already stays. */
static long op_make_link(struct arg *a)
{
	const char *name;
	long r, parent = TRY(open_parent(a[1].s, &name));

	about(a[1].s);
	r = SYS3(symlinkat, a[0].s, parent, name);
	SYS1(close, parent);
	return r == -EEXIST ? 0 : r;
}

/* Instead of pivot_root(2), which can't be had on the initial ramfs: the new root is moved over /. */
static long op_move_root(struct arg *a)
{
	(void)a;
	TRY(SYS1(fchdir, root_fd));
	TRY(SYS5(mount, ".", "/", NULL, MS_MOVE, NULL));
	TRY(SYS1(chroot, "."));
	return SYS1(chdir, "/");
}

/*
 * a[0]: `tasks` of a cgroup of v1.  With 0 a thread moves itself, for which the kernel needs no lock against all forks and exits of the
 * machine; with the pid of another it waits for an RCU grace period, some milliseconds.  a[1]: it may be missing.
 */
static long op_enter_cgroup(struct arg *a)
{
	if (a[0].i < 0 && a[1].i)
		return 0;
	TRY(SYS3(write, a[0].i, "0", 1));
	return SYS1(close, a[0].i);
}

static long op_set_propagation(struct arg *a)
{
	(void)a;
	about("/");
	return SYS5(mount, NULL, "/", NULL, a[0].i, NULL);
}

/* Make one mount read-only, after something was mounted below it. */
static long op_set_readonly(struct arg *a)
{
	long r, at = TRY(open_in(root_fd, a[0].s, O_PATH, 0, IN_ROOT));

	r = set_attr((int)at, "", AT_EMPTY_PATH, MOUNT_ATTR_RDONLY);
	SYS1(close, at);
	return r;
}

static long op_set_domainname(struct arg *a)
{
	about(a[0].s);
	return SYS2(setdomainname, a[0].s, str_len(a[0].s));
}

static long op_set_umask(struct arg *a)
{
	SYS1(umask, a[0].i);
	return 0;
}

static long op_set_personality(struct arg *a)
{
	return SYS1(personality, a[0].i);
}

static long op_set_io_priority(struct arg *a)
{
	return SYS3(ioprio_set, IOPRIO_WHO_PROCESS, 0, a[0].i);
}

static long op_set_scheduler(struct arg *a)
{
	struct schedule s = {.size = sizeof s, .policy = (uint32_t)a[0].i, .flags = (uint64_t)a[1].i, .nice = (int32_t)a[2].i, .priority = (uint32_t)a[3].i, .runtime = (uint64_t)a[4].i, .deadline = (uint64_t)a[5].i, .period = (uint64_t)a[6].i};
	return SYS3(sched_setattr, 0, &s, 0);
}

/* All sets but the bounding one, which set_user has cut: effective, permitted, inheritable, ambient. */
static long op_set_capability_sets(struct arg *a)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {{0}};

	SYS5(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (int i = 0; i < 2; i++) {
		d[i].effective = (uint32_t)((uint64_t)a[0].i >> (32 * i));
		d[i].permitted = (uint32_t)((uint64_t)a[1].i >> (32 * i));
		d[i].inheritable = (uint32_t)((uint64_t)a[2].i >> (32 * i));
	}
	TRY(SYS2(capset, &head, d));
	for (int cap = 0; cap < 64; cap++)
		if ((uint64_t)a[3].i >> cap & 1)
			TRY(SYS5(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0));
	return 0;
}

/* Let the exec close all descriptors from `first` on: once, and before a filter is in force that may forbid it. */
static long close_on_exec(long first)
{
	static int done;

	if (done)
		return 0;
	done = 1;
	return SYS3(close_range, first, ~0U, CLOSE_RANGE_CLOEXEC);
}

static long op_set_filter_flags(struct arg *a)
{
	TRY(close_on_exec(a[2].i));
	return install_filters((int)a[0].i, a[1].i, NULL);
}

/*
 * nsrun takes the listener by its number (pidfd_getfd), so that the filter need not allow us to send it.  Then we close it: as long
 * as anybody has it, the kernel lets a call wait for an answer, and after that it says ENOSYS.  nsrun/oci/filters.py sees to it
 * that the calls until then ask nobody.
 */
static long op_set_filter_with_listener(struct arg *a)
{
	long listener = -EINVAL;
	TRY(close_on_exec(a[2].i));
	TRY(install_filters((int)a[0].i, a[1].i, &listener));
	TRY(listener);
	say_and_wait(listener);
	SYS1(close, listener);
	return 0;
}

/*
 * Find the file that execve(2) is to be given, as the user whom we have become: -ENOENT when there is none, -EACCES when all
 * that there are may not be executed.
 */
static long find_program(const char *name, const char **envp, char *path)
{
	const char *search = DEFAULT_PATH;
	long r, found = -ENOENT;

	about(name);
	if (!*name)
		return -ENOENT;
	for (const char *p = name; *p; p++)
		if (*p == '/') {
			struct statx st;
			if (str_len(name) >= PATH_MAX)
				return -ENAMETOOLONG;
			*put_str(path, name) = 0;
			TRY(SYS5(statx, AT_FDCWD, name, 0, STATX_TYPE, &st));
			return (st.stx_mode & S_IFMT) == S_IFDIR ? -EACCES : SYS3(faccessat, AT_FDCWD, name, 1);
		}
	for (int i = 0; envp[i]; i++)
		if (str_after(envp[i], "PATH="))
			search = str_after(envp[i], "PATH=");
	while (*search) {
		const char *dir = search;
		char *end;
		while (*search && *search != ':')
			search++;
		if ((size_t)(search - dir) + str_len(name) + 3 <= PATH_MAX) {
			end = (char *)memcpy(path, dir, (size_t)(search - dir)) + (search - dir);
			if (end == path)
				*end++ = '.';
			*end++ = '/';
			*put_str(end, name) = 0;
			r = executable(path);
			if (r == 0)
				return 0;
			if (r == -EACCES)
				found = r;
		}
		if (*search)
			search++;
	}
	return found;
}

/*
 * Become the program of a container, or one more in it: a[0], or the first of the arguments in a[1].  Whether there is such a
 * program is found out before we say that all is done.  a[3]: descriptors from this one on are closed.  a[4], a[5]: two FIFOs,
 * of a container that waits for `start`: through the first one comes GO, and into the second goes what fails; its end of file
 * tells that the exec succeeded.  Nothing but read(2) and write(2) is needed there, because a filter may be in force.
 * a[6], a[7]: a filter that is set last of all.
 */
static long op_execute_container(struct arg *a)
{
	static char path[PATH_MAX];
	const char **argv, **envp;
	char go = 0;
	long r;

	TRY(unpack(&a[1], &argv));
	TRY(unpack(&a[2], &envp));
	if (!argv[0])
		return -EINVAL;
	TRY(find_program(*a[0].s ? a[0].s : argv[0], envp, path));
	TRY(close_on_exec(a[3].i));
	wait_for_go();
	if (a[4].i >= 0) {
		SYS1(close, channel);
		channel = (int)a[5].i;
		do
			r = SYS3(read, a[4].i, &go, 1);
		while (r == -EINTR);
		if (r != 1 || go != GO)
			sys_exit(125);
	}
	about(path);
	sys_sigmask(SIG_SETMASK, 0);
	if (a[6].i >= 0)
		TRY(install_filters((int)a[6].i, a[7].i, NULL));
	return SYS3(execve, path, argv, envp);
}

/* ---- the decoder --------------------------------------------------------------------------------- */

enum op_number {
#define NUMBER(name, args) OP_##name,
	OPS(NUMBER)
};

static const struct op {
	const char *name, *args;
	long (*run)(struct arg *);
} ops[] = {
#define ENTRY(name, args) {#name, args, op_##name},
	/* clang-format off: a table */
	OPS(ENTRY)
	/* clang-format on */
};
#define N_OPS (sizeof ops / sizeof *ops)

/* Run one step: u32 op, then its arguments. */
static const struct op *decode(const char **p, const char *end, struct arg *a)
{
	uint32_t code;

	if (!take(p, end, &code, sizeof code) || code >= N_OPS || !decode_args(ops[code].args, p, end, a))
		return NULL;
	return &ops[code];
}

static int list_ops(void)
{
	char line[64];
	for (unsigned i = 0; i < N_OPS; i++) {
		char *p = put_str(put_num(line, i, 1), " ");
		p = put_str(put_str(put_str(p, ops[i].name), " "), ops[i].args);
		*p++ = '\n';
		SYS3(write, 1, line, p - line);
	}
	return 0;
}

int main(int argc, char **argv, char **envp)
{
	struct statx st;
	struct arg a[8];
	struct plan_header head;
	const char *p, *end;
	long map;
	(void)envp;

	if (argc == 2 && str_eq(argv[1], "--ops"))
		return list_ops();
	if (argc != 3) {
		say("nsrun-init: started by nsrun, not by hand (see nsrun explain join)\n");
		return 2;
	}
	SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0); /* processes in the pod can see us from here on */
	SYS5(prctl, PR_SET_NAME, "nsrun-init", 0, 0, 0);
	channel = (int)str_num(argv[2], -1);
	default_signals();
	SYS1(umask, 0);
	if (SYS5(statx, str_num(argv[1], -1), "", AT_EMPTY_PATH, STATX_SIZE, &st) < 0)
		return 125;
	map = SYS(mmap, 0, st.stx_size, PROT_READ, MAP_PRIVATE, str_num(argv[1], -1), 0);
	if (map < 0)
		return 125;
	p = (const char *)map;
	end = p + st.stx_size;
	if (!take(&p, end, &head, sizeof head) || memcmp(head.magic, PLAN_MAGIC, sizeof head.magic) != 0)
		return 125;
	for (step_no = 0; step_no < head.count; step_no++) {
		const struct op *op = decode(&p, end, a);
		long r;
		detail[0] = 0;
		if (op == &ops[OP_set_user])
			SYS1(umask, 022);
		r = op ? op->run(a) : -EBADMSG;
		if (r < 0) {
			report(INIT_FAILED, r);
			return 125;
		}
	}
	return 125;
}
