/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nsrun-unpack reads one tar stream and writes its entries below one directory.
 *
 *   nsrun-unpack MODE BYTES ENTRIES DEPTH RECORDS <STREAM
 *       descriptor 0: the stream; 1: a memfd for the records; 3: the directory, a detached mount;
 *       4: a memfd with the account (below)
 *
 *   layer      the diff of one image layer in overlayfs's form: the layer's entries, and whiteouts as 0:0 devices
 *   whiteouts  only the whiteouts of a layer, applied to the tree below (an overlay of the layers beneath)
 *   entries    only the other entries, applied to the same tree
 *   list       nothing is written: the names, offsets and sizes of an archive's files
 *
 * Theory of operation.  The stream is untrusted.  Before the first byte is read, the program has pivoted
 * into the directory (so that no path, `..` or link leads out of it), kept only five capabilities (owner and
 * mode of any file; no device, no mount, no signal), set limits for itself, and confined itself by seccomp
 * to some twenty system calls on files.  The kernel resolves parents inside the root (openat2); the last
 * component is never followed: what is there is unlinked first.  The program reports only in records, of
 * enum unpack_says in protocol.h.
 *
 * Budgets.  What a layer costs is charged where it is spent, by charge(), to one account that all writers of all images
 * of a load share.  An entry is whatever takes an inode: one that is read, a parent that is implied, and, on an overlay,
 * every directory that has to be copied up.  Bytes are those of files (holes included), of extended attributes, and, on an
 * overlay, of a lower file that is copied up to be linked.  Depth is that of a directory's real place, whatever links led
 * there.
 */
#include "protocol.h"
#include "sys.h"
#include "tar.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#define ROOT          UNPACK_ROOT_FD
#define MAX_DEPTH     1024 /* the largest DEPTH */
#define MAX_TOLD      100
#define HELD          64 /* directories that are open at a time while a tree is removed */
#define TIMES_MAX     (48 << 20)
#define FOLLOWING_MAX 4000000000 /* ns of processor time in which the kernel follows links */

enum mode {
	LAYER,
	WHITEOUTS,
	ENTRIES,
	LIST,
};

static enum mode mode;
static struct tar tar;
static struct tar_entry entry;
static uint64_t max_bytes, max_entries, max_depth, max_records; /* the budgets */
static struct unpack_account *account, charged; /* the charges of all runs; of this run */
static struct statx_timestamp begun; /* when our root was made; 0: the file system does not tell */
static uint64_t kept[2]; /* the number of regular files in the tree, and their bytes; each name counts */
static char parent_path[TAR_PATH_MAX + 1]; /* the path of parent_fd, while parent_fd >= 0 */
static int parent_fd = -1;
static char clean_name[TAR_PATH_MAX + 1], clean_link[TAR_PATH_MAX + 1];
static char times[TIMES_MAX]; /* of directories, set at the end: struct, then the path */
static size_t times_end;

struct time_of {
	int64_t sec;
	uint32_t nsec, len;
};

/* ---- reporting ---------------------------------------------------------------------------------- */

static void put(enum unpack_says kind, int err, uint64_t a, uint64_t b, const char *s, size_t len, const char *s2, size_t len2)
{
	struct unpack_record r = {(uint32_t)kind, (uint32_t)err, a, b, (uint32_t)len, (uint32_t)len2};
	SYS3(write, 1, &r, sizeof r);
	SYS3(write, 1, s, len);
	SYS3(write, 1, s2, len2);
}

static __attribute__((noreturn)) void fail(int err, const char *why)
{
	put(UNPACK_FAILED, err, charged.entries, tar.offset, why, str_len(why), entry.name, str_len(entry.name));
	sys_exit(1);
}

/* Add n to *p atomically among all processes; returns the new value. */
static uint64_t add_shared(uint64_t *p, uint64_t n)
{
#if defined(__x86_64__)
	return __atomic_add_fetch(p, n, __ATOMIC_RELAXED);
#else /* gcc calls libgcc for it, which we do not link */
	uint64_t sum;
	uint32_t failed;
	__asm__ volatile("1:	ldxr	%0, %2\n"
	                 "	add	%0, %0, %3\n"
	                 "	stxr	%w1, %0, %2\n"
	                 "	cbnz	%w1, 1b"
	                 : "=&r"(sum), "=&r"(failed), "+Q"(*p)
	                 : "r"(n));
	return sum;
#endif
}

/* Charge n to a budget; returns 0 when it is used up. */
static int charge(uint64_t *of_all, uint64_t *of_us, uint64_t n, uint64_t max)
{
	if (n > max || add_shared(of_all, n) > max)
		return 0;
	*of_us += n;
	return 1;
}

static void spend(uint64_t n)
{
	if (!charge(&account->bytes, &charged.bytes, n, max_bytes))
		fail(EFBIG, "the layer is larger than its budget");
}

static void count(uint64_t n)
{
	if (!charge(&account->entries, &charged.entries, n, max_entries))
		fail(0, mode == LIST ? "the archive has more entries than its budget"
		                     : "the layer has more entries than its budget");
}

static void note(enum unpack_says kind, const char *path, const char *link, int err, uint64_t a, uint64_t b)
{
	uint64_t n = sizeof(struct unpack_record) + str_len(path) + str_len(link);
	if (!charge(&account->records, &charged.records, n, max_records))
		fail(0, mode == LIST ? "the archive's list is larger than its budget"
		                     : "too many whiteouts and implied directories");
	put(kind, err, a, b, path, str_len(path), link, str_len(link));
}

static void tell(enum unpack_says kind, const char *path)
{
	note(kind, path, "", 0, 0, 0);
}

static void tell_charges(void)
{
	put(UNPACK_CHARGED, 0, charged.entries, charged.bytes, (const char *)&charged.records, sizeof charged.records, "", 0);
}

/* Stop here: the caller begins again, over the layers beneath. */
static __attribute__((noreturn)) void need_lower(const char *why)
{
	if (mode != LAYER)
		fail(0, why);
	tell_charges();
	put(UNPACK_LOWER, 0, charged.entries, tar.offset, why, str_len(why), entry.name, str_len(entry.name));
	sys_exit(0);
}

/* ---- confinement -------------------------------------------------------------------------------- */

static void must(long result, const char *what)
{
	if (result < 0)
		fail((int)-result, what);
}

static void pivot(void)
{
	must(SYS1(unshare, CLONE_NEWNS), "unshare(CLONE_NEWNS)");
	must(SYS5(mount, "", "/", "", MS_REC | MS_PRIVATE, ""), "mount(/, MS_PRIVATE)");
	must(SYS5(move_mount, ROOT, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH), "move_mount");
	must(SYS1(fchdir, ROOT), "fchdir");
	must(SYS2(pivot_root, ".", "."), "pivot_root");
	must(SYS2(umount2, ".", MNT_DETACH), "umount2(MNT_DETACH)");
	must(SYS1(chdir, "/"), "chdir");
}

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#else
#define ARCH AUDIT_ARCH_AARCH64
#endif

/* Allow the system calls that a writer of files needs; any other ends the program. */
static void seccomp(void)
{
	static const int allowed[] = {
		/* clang-format off: a table */
		__NR_read, __NR_write, __NR_pwrite64, __NR_close, __NR_lseek, __NR_openat, __NR_openat2, __NR_statx,
		__NR_mkdirat, __NR_mknodat, __NR_symlinkat, __NR_linkat, __NR_unlinkat, __NR_fchown, __NR_fchownat,
		__NR_fchmod, __NR_utimensat, __NR_fsetxattr, __NR_ftruncate, __NR_getdents64, __NR_fchdir, __NR_getcwd,
		__NR_clock_gettime, __NR_exit_group,
		/* clang-format on */
	};
	static struct sock_filter code[2 * (sizeof allowed / sizeof *allowed) + 8];
	struct sock_fprog program = {.filter = code};
	unsigned short n = 0;
#define EMIT(...) code[n++] = (struct sock_filter)__VA_ARGS__
	EMIT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)));
	EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0));
	EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
	EMIT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
	for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) {
		EMIT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], 0, 1));
		EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	}
	EMIT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
	program.len = n;
	must(SYS5(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)");
	must(SYS3(seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "seccomp");
}

static void limit(int what, uint64_t value)
{
	struct rlimit64 r = {value, value};
	must(SYS4(prlimit64, 0, what, &r, NULL), "prlimit");
}

static void confine(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	uint32_t caps = mode == LIST ? 0
	                             : 1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER | 1u << CAP_FSETID;
	struct __user_cap_data_struct data[2] = {{.effective = caps, .permitted = caps}};

	if (mode != LIST) {
		data[0].effective = data[0].permitted = caps | 1u << (CAP_SETFCAP & 31);
		pivot();
	}
	must(SYS3(close_range, ROOT + (mode != LIST), ~0u, 0), "close_range");
	if (max_bytes < 1UL << 62)
		limit(RLIMIT_FSIZE, max_bytes + max_records + (1 << 20));
	limit(RLIMIT_CORE, 0);
	limit(RLIMIT_NOFILE, HELD + 64);
	limit(RLIMIT_AS, 256UL << 20);
	must(SYS2(capset, &header, data), "capset");
	seccomp();
}

/* ---- paths -------------------------------------------------------------------------------------- */

/* Clean a path: remove "", "." and ".." from `name`, as below a root.  Returns its depth. */
static uint64_t clean(const char *name, char *to)
{
	size_t n = 0;
	uint64_t depth = 0;
	while (*name) {
		size_t len = 0;
		while (name[len] && name[len] != '/')
			len++;
		if (len == 2 && name[0] == '.' && name[1] == '.') {
			while (n && to[--n] != '/')
				;
			depth -= depth > 0;
		} else if (len && !(len == 1 && *name == '.')) {
			if (len > 255)
				fail(0, "a component of its name is longer than 255 bytes");
			if (n)
				to[n++] = '/';
			memcpy(to + n, name, len);
			n += len;
			depth++;
		}
		name += len;
		while (*name == '/')
			name++;
	}
	to[n] = 0;
	return depth;
}

static long open_at(int dir, const char *path, uint64_t flags)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	return open_how(dir, *path ? path : ".", &how);
}

static void forget_parent(void)
{
	if (parent_fd >= 0)
		SYS1(close, parent_fd);
	parent_fd = -1;
}

static long stat_at(int dir, const char *name, struct statx *st)
{
	return SYS5(statx, dir, name, AT_SYMLINK_NOFOLLOW | (*name ? 0 : AT_EMPTY_PATH), STATX_BASIC_STATS | STATX_BTIME, st);
}

/* Whether it is in the upper directory already: overlayfs sets its birth time at copy-up.  In doubt it is not, and is charged. */
static int made_here(const struct statx *st)
{
	const struct statx_timestamp *born = &st->stx_btime;
	if (!(st->stx_mask & STATX_BTIME) || (!begun.tv_sec && !begun.tv_nsec))
		return 0;
	return born->tv_sec > begun.tv_sec || (born->tv_sec == begun.tv_sec && born->tv_nsec > begun.tv_nsec);
}

/* Fail if the directory is too deep, by its real path, which getcwd(2) returns. */
static void check_depth(int fd)
{
	char path[TAR_PATH_MAX];
	uint64_t depth = 0;
	long n = SYS1(fchdir, fd);
	if (n == 0)
		n = SYS2(getcwd, path, sizeof path);
	for (long i = 0; i < n - 1; i++)
		depth += path[i] == '/' && path[i + 1];
	if (n == -ERANGE || n == -ENAMETOOLONG || depth + 1 > max_depth)
		fail(0, "what it is in lies deeper than the budget");
	if (n < 0)
		fail((int)-n, "its parent can't be looked at");
}

static uint64_t processor_time(void)
{
	struct timespec t = {0, 0};
	SYS2(clock_gettime, CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/*
 * Open a directory by its path, or (one name) in `dir`.  When a link is on the way, set *linked and check the depth of its
 * target; otherwise the path shows the depth.
 */
static long open_directory(int dir, const char *path, const char *whole, int *linked)
{
	struct open_how how = {
		.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
		.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
	};
	long fd = open_how(dir, *path ? path : ".", &how);
	if (fd == -ELOOP) {
		uint64_t since = processor_time();
		fd = open_at(ROOT, whole, O_PATH | O_DIRECTORY);
		*linked = 1;
		if (!charge(&account->following, &charged.following, processor_time() - since, FOLLOWING_MAX) || fd == -EAGAIN)
			fail(0, "its links take too long to follow");
	}
	if (fd >= 0 && *linked)
		check_depth((int)fd);
	return fd;
}

/* Something in `dir`, at this depth, is about to change. */
static void charge_copy_up(int dir, uint64_t depth)
{
	struct statx st;
	if (mode != LAYER && depth && (stat_at(dir, "", &st) < 0 || !made_here(&st)))
		count(depth);
}

static uint64_t depth_of(const char *path)
{
	uint64_t depth = *path != 0;
	for (; *path; path++)
		depth += *path == '/';
	return depth;
}

static int is_whiteout(const struct statx *st)
{
	return (st->stx_mode & S_IFMT) == S_IFCHR;
}

struct dirent64_ {
	uint64_t ino;
	int64_t off;
	unsigned short reclen;
	unsigned char type;
	char name[];
};

/* Remove one entry; returns -ENOTEMPTY for a directory with something in it. */
static long drop(int dir, const char *name)
{
	struct statx st;
	long r = stat_at(dir, name, &st);
	if (r == 0 && (st.stx_mode & S_IFMT) == S_IFREG) {
		kept[0]--;
		kept[1] -= st.stx_size;
	}
	r = SYS3(unlinkat, dir, name, 0);
	if (r == -EISDIR || r == -EPERM)
		r = SYS3(unlinkat, dir, name, AT_REMOVEDIR);
	if (r < 0 && r != -ENOENT && r != -ENOTEMPTY && r != -EEXIST)
		fail((int)-r, "what it replaces can't be removed");
	return r == -ENOTEMPTY || r == -EEXIST ? -ENOTEMPTY : 0;
}

/*
 * Remove everything in the directory `top`, however deep: only we change this tree, so `..` leads back to where we came
 * from, and HELD open directories are enough.  The offset after a removal can't be relied on, so a directory is read again
 * until a pass finds nothing; a directory that was emptied is removed in the pass after.
 */
static void empty(int top)
{
	_Alignas(8) char buffer[2048];
	int fds[HELD], changed[HELD];
	uint64_t depth = 0, lowest = 0; /* those from `lowest` to `depth` are open */
	fds[0] = top;
	changed[0] = 0;
	SYS3(lseek, top, 0, 0);
	for (;;) {
		int *fd = &fds[depth % HELD], *again = &changed[depth % HELD];
		long n = SYS3(getdents64, *fd, buffer, sizeof buffer), down = -1;
		if (n < 0)
			fail((int)-n, "getdents64");
		for (long at = 0; at < n && down < 0;) {
			struct dirent64_ *d = (void *)(buffer + at);
			at += d->reclen;
			if (str_eq(d->name, ".") || str_eq(d->name, ".."))
				continue;
			*again = 1;
			if (drop(*fd, d->name) == 0)
				continue;
			down = SYS4(openat, *fd, d->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
			if (down < 0)
				fail((int)-down, "what it replaces can't be opened");
			SYS3(lseek, *fd, d->off, 0);
		}
		if (down >= 0) {
			if (++depth - lowest == HELD) {
				if (lowest)
					SYS1(close, fds[lowest % HELD]);
				lowest++;
			}
			fds[depth % HELD] = (int)down;
			changed[depth % HELD] = 0;
		} else if (n == 0 && *again) {
			SYS3(lseek, *fd, 0, 0);
			*again = 0;
		} else if (n == 0) {
			if (depth == 0)
				return;
			if (--depth < lowest) {
				down = depth ? SYS4(openat, *fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0) : top;
				if (down < 0)
					fail((int)-down, "what it replaces can't be opened");
				fds[depth % HELD] = (int)down;
				changed[depth % HELD] = 1;
				lowest = depth;
			}
			SYS1(close, *fd);
		}
	}
}

static void remove_at(int dir, const char *name)
{
	long fd;
	if (drop(dir, name) == 0)
		return;
	fd = SYS4(openat, dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd < 0)
		fail((int)-fd, "what it replaces can't be opened");
	empty((int)fd);
	SYS1(close, fd);
	if (drop(dir, name) < 0)
		fail(ENOTEMPTY, "what it replaces can't be removed");
}

/* Remove what has the name. */
static void replace(int dir, const char *name)
{
	struct statx st;
	if (stat_at(dir, name, &st) < 0)
		return;
	remove_at(dir, name);
	if ((st.stx_mode & S_IFMT) == S_IFDIR)
		forget_parent(); /* it may be within what was removed; the caller opens it again */
}

/* Imply a directory `name` in dir, `path` from the root. */
static void imply(int dir, const char *name, const char *path)
{
	int hidden = 0;
	long r;
	count(1);
	r = SYS3(mkdirat, dir, name, 0755);
	if (r == -EEXIST) {
		struct statx st;
		if (mode == LAYER && stat_at(dir, name, &st) == 0 && is_whiteout(&st)) {
			SYS3(unlinkat, dir, name, 0);
			hidden = 1;
			r = SYS3(mkdirat, dir, name, 0755);
		} else {
			need_lower("its parent is a link that leads nowhere");
		}
	}
	if (r < 0)
		fail((int)-r, "its parent can't be made");
	if (mode == LAYER)
		tell(hidden ? UNPACK_HIDING : UNPACK_IMPLIED, path);
}

/*
 * Return a descriptor of the directory that holds `path`, which is cut: *base is the last component.  With MAKE and
 * MAKE_OR_LEAVE, what is missing is made; the latter leaves a file in its place there, and returns -ENOTDIR.
 */
enum {
	FIND,
	MAKE,
	MAKE_OR_LEAVE,
};
static int parent_of(char *path, const char **base, int make)
{
	char *slash = NULL, *p;
	long fd, at;
	int linked = 0;
	for (p = path; *p; p++)
		if (*p == '/')
			slash = p;
	*base = slash ? slash + 1 : path;
	if (slash)
		*slash = 0;
	else
		path = "";
	if (parent_fd >= 0 && str_eq(path, parent_path))
		goto found;
	forget_parent();
	fd = open_directory(ROOT, path, path, &linked);
	if ((fd == -ENOENT || fd == -ENOTDIR) && make) {
		at = open_at(ROOT, "", O_PATH | O_DIRECTORY);
		linked = 0;
		for (p = path;; p++) {
			const char *name = p;
			char end;
			while (*p && *p != '/')
				p++;
			end = *p;
			*p = 0;
			fd = open_directory((int)at, name, path, &linked);
			if (fd == -ENOENT || fd == -ENOTDIR) {
				struct statx st;
				if (fd == -ENOTDIR && (stat_at((int)at, name, &st) < 0 || !is_whiteout(&st) || mode != LAYER)) {
					if (make != MAKE_OR_LEAVE)
						fail(ENOTDIR, "its parent is no directory");
					SYS1(close, at);
					*p = end;
					break;
				}
				charge_copy_up((int)at, name > path);
				imply((int)at, name, path);
				fd = open_directory((int)at, name, path, &linked);
			}
			if (fd < 0)
				fail((int)-fd, "its parent can't be opened");
			SYS1(close, at);
			at = fd;
			*p = end;
			if (!end)
				break;
		}
	}
	if (fd < 0 && make == MAKE)
		fail((int)-fd, "its parent can't be opened");
	if (fd < 0) {
		if (slash)
			*slash = '/';
		return (int)fd;
	}
	charge_copy_up((int)fd, depth_of(path));
	memcpy(parent_path, path, str_len(path) + 1);
	parent_fd = (int)fd;
found:
	if (slash)
		*slash = '/';
	return parent_fd;
}

/* ---- attributes --------------------------------------------------------------------------------- */

static int starts(const struct tar_xattr *x, const char *prefix)
{
	size_t n = str_len(prefix);
	return x->name_len >= n && memcmp(x->name, prefix, n) == 0;
}

static void set_xattrs(int fd)
{
	char name[256];
	for (uint32_t i = 0; i < entry.n_xattrs; i++) {
		const struct tar_xattr *x = &entry.xattrs[i];
		long r;
		if (starts(x, "trusted.overlay.") || starts(x, "user.overlay."))
			fail(0, "it has an attribute of overlayfs itself");
		if (!starts(x, "user.") && !tar_is(x->name, x->name_len, "security.capability") &&
		    !starts(x, "system.posix_acl_"))
			continue; /* labels of another machine's security module, trusted.*: we must not set them */
		if (x->name_len > 255 || x->value_len > 65536)
			fail(0, "an extended attribute of it is too large");
		spend(x->name_len + x->value_len);
		memcpy(name, x->name, x->name_len);
		name[x->name_len] = 0;
		r = SYS5(fsetxattr, fd, name, x->value, x->value_len, 0);
		if (r < 0 && r != -EOPNOTSUPP)
			fail((int)-r, "an extended attribute of it can't be set");
	}
}

/* Set owner, mode and extended attributes, in this order: a chown clears set-user-ID and capabilities. */
static void set_attributes(int fd)
{
	struct statx st;
	long r = stat_at(fd, "", &st);
	if (r == 0 && (st.stx_uid != entry.uid || st.stx_gid != entry.gid)) {
		r = SYS3(fchown, fd, entry.uid, entry.gid);
		st.stx_mode = 0;
	}
	if (r == 0 && (st.stx_mode & 07777) != entry.mode)
		r = SYS2(fchmod, fd, entry.mode);
	if (r < 0)
		fail((int)-r, "its owner or mode can't be set");
	set_xattrs(fd);
}

static void set_time(int dir, const char *name, int64_t sec, uint32_t nsec)
{
	struct timespec ts[2] = {{sec, nsec}, {sec, nsec}};
	long r = SYS4(utimensat, dir, name, ts, name ? AT_SYMLINK_NOFOLLOW : 0);
	if (r < 0)
		fail((int)-r, "its time can't be set");
}

static void remember_time(const char *path)
{
	struct time_of t = {entry.mtime, entry.mtime_ns, (uint32_t)str_len(path)};
	if (times_end + sizeof t + t.len + 1 > TIMES_MAX)
		fail(0, "too many directories");
	memcpy(times + times_end, &t, sizeof t);
	memcpy(times + times_end + sizeof t, path, t.len + 1);
	times_end += sizeof t + t.len + 1;
}

static void set_directory_times(void)
{
	for (size_t at = 0; at < times_end;) {
		struct time_of t;
		long fd;
		memcpy(&t, times + at, sizeof t);
		fd = open_at(ROOT, times + at + sizeof t, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
		if (fd >= 0) { /* otherwise something has replaced it */
			set_time((int)fd, NULL, t.sec, t.nsec);
			SYS1(close, fd);
		}
		at += sizeof t + t.len + 1;
	}
}

/* ---- entries ------------------------------------------------------------------------------------ */

static void copy(int fd, uint64_t offset, uint64_t length)
{
	const char *data;
	while (length) {
		long n = tar_data(&tar, &data, length);
		if (n <= 0)
			fail(0, tar.error);
		length -= (uint64_t)n;
		while (n) {
			long w = SYS4(pwrite64, fd, data, n, offset);
			if (w <= 0)
				fail((int)-w, "its data can't be written");
			data += w, n -= w, offset += (uint64_t)w;
		}
	}
}

static void file(int dir, const char *name)
{
	uint64_t flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
	long fd;
	spend(entry.size);
	fd = SYS4(openat, dir, name, flags, entry.mode & 0777);
	if (fd == -EEXIST) {
		replace(dir, name);
		if (parent_fd < 0)
			dir = parent_of(clean_name, &name, MAKE);
		fd = SYS4(openat, dir, name, flags, entry.mode & 0777);
	}
	if (fd < 0)
		fail((int)-fd, "it can't be made");
	if (entry.n_extents || entry.size != tar.remaining) {
		for (uint32_t i = 0; i < entry.n_extents; i++)
			copy((int)fd, tar.extents[i].offset, tar.extents[i].length);
		must(SYS2(ftruncate, fd, entry.size), "ftruncate");
	} else {
		copy((int)fd, 0, entry.size);
	}
	set_attributes((int)fd);
	set_time((int)fd, NULL, entry.mtime, entry.mtime_ns);
	SYS1(close, fd);
	kept[0]++;
	kept[1] += entry.size;
}

static void directory(int dir, const char *name)
{
	int hides = 0, was = 0;
	struct statx st;
	long fd, r = SYS3(mkdirat, dir, name, entry.mode & 0777);
	if (r == -EEXIST) {
		if (stat_at(dir, name, &st) == 0 && (st.stx_mode & S_IFMT) == S_IFDIR) {
			was = 1;
			r = 0;
		} else {
			replace(dir, name); /* a whiteout, or a file: either hides what lies beneath */
			hides = mode == LAYER;
			r = SYS3(mkdirat, dir, name, entry.mode & 0777);
		}
	}
	if (r < 0)
		fail((int)-r, "it can't be made");
	fd = SYS4(openat, dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (fd < 0)
		fail((int)-fd, "it can't be opened");
	set_attributes((int)fd);
	SYS1(close, fd);
	remember_time(clean_name);
	if (mode == LAYER && (was || hides)) /* it may have been implied before */
		tell(UNPACK_MADE, clean_name);
	if (hides)
		tell(UNPACK_OPAQUE, clean_name);
}

static void root_directory(void)
{
	long fd;
	if (entry.type != '5')
		fail(0, "it would replace the root directory");
	fd = open_at(ROOT, "", O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		fail((int)-fd, "the root can't be opened");
	set_attributes((int)fd);
	SYS1(close, fd);
	remember_time("");
	if (mode == LAYER)
		tell(UNPACK_MADE, "");
}

static void symlink(int dir, const char *name)
{
	long r;
	if (!entry.link[0])
		fail(ENOENT, "it is a link to nothing");
	r = SYS3(symlinkat, entry.link, dir, name);
	if (r == -EEXIST) {
		replace(dir, name);
		if (parent_fd < 0)
			dir = parent_of(clean_name, &name, MAKE);
		r = SYS3(symlinkat, entry.link, dir, name);
	}
	if (r == 0 && (entry.uid || entry.gid))
		r = SYS5(fchownat, dir, name, entry.uid, entry.gid, AT_SYMLINK_NOFOLLOW);
	if (r < 0)
		fail((int)-r, "it can't be made");
	set_time(dir, name, entry.mtime, entry.mtime_ns);
}

static void hard_link(void)
{
	const char *from_name, *name;
	struct statx a, b;
	long from, dir, r;
	if (clean(entry.link, clean_link) == 0)
		fail(EPERM, "it is a hard link to the root");
	dir = parent_of(clean_name, &name, MAKE);
	/* open the target beside the cached parent; it must exist: nothing is made for it */
	parent_fd = -1;
	from = parent_of(clean_link, &from_name, FIND);
	parent_fd = -1;
	if (from < 0 || stat_at((int)from, from_name, &a) < 0 || (mode == LAYER && is_whiteout(&a)))
		need_lower("the file it links to is not there");
	if ((a.stx_mode & S_IFMT) == S_IFDIR)
		fail(EPERM, "it is a hard link to a directory");
	if (stat_at((int)dir, name, &b) == 0) {
		if (a.stx_ino == b.stx_ino)
			goto out; /* it is the file itself, or is linked already */
		remove_at((int)dir, name);
		if (stat_at((int)from, from_name, &a) < 0)
			fail(ENOENT, "it replaces the directory that holds what it links to");
	}
	if (mode != LAYER && (a.stx_mode & S_IFMT) == S_IFREG && !made_here(&a))
		spend(a.stx_size);
	r = SYS5(linkat, from, from_name, dir, name, 0);
	if (r < 0)
		fail((int)-r, "it can't be linked");
	if ((a.stx_mode & S_IFMT) == S_IFREG) {
		kept[0]++;
		kept[1] += a.stx_size;
	}
out:
	SYS1(close, from);
	SYS1(close, dir);
}

static void fifo(int dir, const char *name)
{
	long r;
	replace(dir, name);
	if (parent_fd < 0)
		dir = parent_of(clean_name, &name, MAKE);
	r = SYS4(mknodat, dir, name, S_IFIFO | (entry.mode & 0777), 0);
	if (r == 0)
		r = SYS5(fchownat, dir, name, entry.uid, entry.gid, AT_SYMLINK_NOFOLLOW);
	if (r < 0)
		fail((int)-r, "it can't be made");
	set_time(dir, name, entry.mtime, entry.mtime_ns);
}

/* Hide `name` of the layers beneath; what this layer has stays. */
static void hide(int dir, const char *name, char *path)
{
	struct statx st;
	if (mode == WHITEOUTS) {
		if (stat_at(dir, name, &st) == 0)
			replace(dir, name);
		return;
	}
	if (stat_at(dir, name, &st) == 0) {
		if ((st.stx_mode & S_IFMT) == S_IFDIR)
			tell(UNPACK_REPLACED, path);
		return;
	}
	must(SYS4(mknodat, dir, name, S_IFCHR, 0), "mknodat(whiteout)");
	tell(UNPACK_WHITEOUT, path);
}

static void opaque(const char *path)
{
	if (mode == WHITEOUTS) {
		long fd = open_at(ROOT, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
		if (fd >= 0) {
			empty((int)fd);
			SYS1(close, fd);
		}
	} else {
		tell(UNPACK_OPAQUE, path);
	}
}

/* Handle .wh.NAME and .wh..wh..opq (OCI image-spec, layer.md); returns 1 if the entry was one. */
static int whiteout(void)
{
	char *base = clean_name, *p;
	const char *name, *rest;
	int dir;
	for (p = clean_name; *p; p++)
		if (*p == '/') {
			if (str_after(base, ".wh."))
				fail(0, "a part of its name is a whiteout");
			base = p + 1;
		}
	rest = str_after(base, ".wh.");
	if (!rest)
		return 0;
	if (mode == ENTRIES)
		return 1;
	if (mode == WHITEOUTS)
		count(1);
	if (str_after(rest, ".wh.")) {
		if (!str_eq(rest, ".wh..opq"))
			return 1; /* private data of AUFS */
		if (base > clean_name) {
			base[-1] = 0;
			if (mode == LAYER) {
				/* the directory must exist to be marked */
				size_t n = str_len(clean_name);
				clean_name[n] = '/', clean_name[n + 1] = '.', clean_name[n + 2] = 0;
				parent_of(clean_name, &name, MAKE);
				clean_name[n] = 0;
			}
			opaque(clean_name);
		} else {
			opaque("");
		}
		return 1;
	}
	if (!*rest || str_eq(rest, ".") || str_eq(rest, ".."))
		fail(0, "it is a whiteout of no name");
	dir = parent_of(clean_name, &name, mode == LAYER ? MAKE_OR_LEAVE : FIND);
	if (dir < 0)
		return 1; /* there is no directory, so nothing to hide */
	memmove(base, rest, str_len(rest) + 1);
	hide(dir, base, clean_name);
	return 1;
}

static void one(void)
{
	static int told;
	const char *name;
	int dir;
	if (mode == LAYER)
		count(1);
	if (clean(entry.name, clean_name) > max_depth)
		fail(0, "its name is deeper than the budget");
	if (!clean_name[0]) {
		if (mode != WHITEOUTS)
			root_directory();
		return;
	}
	if (whiteout() || mode == WHITEOUTS)
		return;
	if (mode == ENTRIES)
		count(1);
	if (entry.type == '1') {
		hard_link();
		return;
	}
	dir = parent_of(clean_name, &name, MAKE);
	switch (entry.type) {
	case '0': file(dir, name); break;
	case '2': symlink(dir, name); break;
	case '5': directory(dir, name); break;
	case '6': fifo(dir, name); break;
	default: /* a device: members have their own /dev, and need no other access to the hardware */
		if (told++ < MAX_TOLD)
			tell(UNPACK_SKIPPED, clean_name);
		replace(dir, name);
		if (mode == LAYER) {
			if (parent_fd < 0)
				dir = parent_of(clean_name, &name, MAKE);
			hide(dir, name, clean_name);
		}
	}
}

static void list(void)
{
	count(1);
	clean(entry.name, clean_name);
	if (entry.type == '0' && !entry.n_extents && entry.size == tar.remaining)
		note(UNPACK_FILE, clean_name, "", 0, entry.offset, entry.size);
	else if (entry.type == '1' || entry.type == '2')
		note(UNPACK_LINK, clean_name, entry.link, entry.type, 0, 0);
}

/* ---- main --------------------------------------------------------------------------------------- */

static long fill(void *context, char *to, size_t max)
{
	long n;
	(void)context;
	do
		n = SYS3(read, 0, to, max);
	while (n == -EINTR);
	return n;
}

/* list: the data is not read; one byte proves that it is there */
static int skip(void *context, uint64_t n)
{
	char last;
	(void)context;
	if (n > 1UL << 62 || SYS3(lseek, 0, n - 1, 1) < 0)
		return -1;
	return fill(NULL, &last, 1) == 1 ? 0 : -1;
}

int main(int argc, char **argv, char **envp)
{
	static const char *const modes[] = {"layer", "whiteouts", "entries", "list"};
	struct statx root;
	int got;
	(void)envp;
	if (argc == 2 && str_eq(argv[1], "--version")) {
		say("nsrun-unpack " NSRUN_VERSION "\n");
		return 0;
	}
	if (argc != 6) {
		say("nsrun-unpack is started by nsrun\n");
		return 2;
	}
	for (mode = LAYER; mode <= LIST && !str_eq(argv[1], modes[mode]); mode++)
		;
	max_bytes = (uint64_t)str_num(argv[2], 0);
	max_entries = (uint64_t)str_num(argv[3], 0);
	max_depth = (uint64_t)str_num(argv[4], 0);
	max_records = (uint64_t)str_num(argv[5], 0);
	if (mode > LIST || max_depth > MAX_DEPTH)
		return 2;
	SYS5(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	SYS1(umask, 0);
	tar.fill = fill;
	tar.skip = mode == LIST ? skip : NULL;
	account = (void *)SYS(mmap, NULL, sizeof *account, PROT_READ | PROT_WRITE, MAP_SHARED, UNPACK_ACCOUNT_FD, 0);
	if ((unsigned long)account > -4096UL)
		fail((int)-(long)account, "mmap(account)");
	confine();
	if (mode != LIST && stat_at(ROOT, "", &root) == 0 && root.stx_mask & STATX_BTIME)
		begun = root.stx_btime;
	while ((got = tar_next(&tar, &entry)) > 0) {
		if (mode == LIST)
			list();
		else
			one();
	}
	if (got < 0)
		fail(0, tar.error);
	entry.name[0] = 0;
	set_directory_times();
	while (fill(NULL, tar.buffer, sizeof tar.buffer) > 0)
		; /* read to the end: what follows the last entry belongs to the digest, not to the tree */
	tell_charges();
	put(UNPACK_END, 0, kept[0], kept[1], "", 0, "", 0);
	return 0;
}
