/* SPDX-License-Identifier: Apache-2.0 */
/*
 * create.h: the steps that only a plan of `create` has.  Such a plan is for every container whose config.json is, byte for byte, what
 * Python understood when it left the plan (nsrun/oci/anew.py), but for the arguments and the environment of its process, which are
 * read here, and for names that an engine makes at random: those stand in the plan, and are replaced there.
 *
 * What fails here is taken back, and then Python begins.  Whoever kills us meanwhile leaves what `delete --force` removes.
 */
#ifndef NSRUN_CREATE_H
#define NSRUN_CREATE_H

#include "container.h"
#include "leave.h"
#include "steps.h"

#include <asm/statfs.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <linux/nsfs.h>

#define PLANS      ".plans" /* no id begins with a dot */
#define MAKES_MOST 32       /* cgroups of one container */

static struct strings drawn[CREATE_NAMES];
static char was_same[CREATE_NAMES]; /* whether it is the name that the plan has */
static char *config, *listed; /* config.json, and where its arguments and environment are written as strings */
static size_t config_size;
static int turned; /* whether its mounts have another order than those of the plan */

/* What is to be taken back. */
static struct {
	int directory;
	const char *cgroups[MAKES_MOST];
	int n_cgroups;
} begun;

/* ---- config.json ----------------------------------------------------------------------------------- */

static char *put_hex(char *p, uint32_t number)
{
	for (int shift = 28; shift >= 0; shift -= 4)
		*p++ = "0123456789abcdef"[number >> shift & 15];
	return p;
}

/* The checksum of the names of all members, each with a NUL: anew.py, members_of(). */
static uint32_t members_of(const char *text, char *to)
{
	char *begin = to;

	for (const char *p = text; *p; p++) {
		const char *key = p + 1, *after;
		if (*p != '"')
			continue;
		for (p++; *p && *p != '"'; p++)
			if (*p == '\\' && !*++p)
				return 0;
		if (!*p)
			break;
		after = after_blanks(p + 1);
		if (*after == ':') {
			to = put_bytes(to, key, (size_t)(p - key));
			*to++ = 0;
		}
	}
	return checksum(begin, (size_t)(to - begin));
}

/* Read the config.json of the bundle. */
static long read_config(uint32_t *members)
{
	static char here[PATH_MAX];
	char path[PATH_MAX];
	long n;

	if (!asked.bundle) {
		MUST(SYS2(getcwd, here, sizeof here));
		asked.bundle = here;
	}
	if (str_len(asked.bundle) > sizeof path - 32)
		return -ENAMETOOLONG;
	*put_str(put_str(path, asked.bundle), "/config.json") = 0;
	MUST(n = read_whole(path, &config));
	config_size = (size_t)n;
	if (str_len(config) != config_size || !(listed = map_memory(2 * config_size + 2)))
		return -EINVAL;
	*members = members_of(config, listed);
	return 0;
}

static int is_hex(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

/*
 * Whether the name at p may stand in the place of the old one, and is the same wherever that stood: a digit in the place of a digit,
 * and all others as they were, but for the id, which we know.
 */
static int is_name(const char *p, const char *old, uint32_t len, struct strings *name)
{
	for (uint32_t i = 0; i < len && !name->s; i++)
		if (p[i] != old[i] && !(is_hex(p[i]) && is_hex(old[i])))
			return 0;
	if (!name->s)
		*name = (struct strings){.s = p, .len = len};
	if (memcmp(p, old, len) == 0)
		was_same[name - drawn] = 1;
	return name->len == len && memcmp(name->s, p, len) == 0;
}

/* Whether a text has a name in it. */
static int has_name(const struct arg *text, const struct strings *name)
{
	for (uint32_t i = 0; i + name->len <= text->len; i++)
		if (text->s[i] == *name->s && memcmp(text->s + i, name->s, name->len) == 0)
			return 1;
	return 0;
}

/*
 * Whether no two names are one, which were two, and none is what the plan's config.json has anywhere: what follows from that may be
 * another thing.  A pid is part of a path, which nothing is compared with.
 */
static int are_different(const struct arg *parts)
{
	for (int i = 0; i < CREATE_NAMES; i++)
		for (int part = 0; part < 3 && drawn[i].s; part++)
			if (drawn[i].len >= 8 && !was_same[i] && has_name(&parts[part], &drawn[i]))
				return 0;
	for (int i = 0; i < CREATE_NAMES; i++)
		for (int j = 0; j < i; j++)
			if (drawn[i].s && drawn[j].s && drawn[i].len == drawn[j].len && memcmp(drawn[i].s, drawn[j].s, drawn[i].len) == 0)
				return 0;
	return 1;
}

/* Whether the bytes at p are those of a part of the plan's config.json that begins at `at`, but for names. */
static int is_like(const char *p, const char *text, int32_t size, int32_t at, const struct arg *regions)
{
	struct {
		int32_t offset, len, name;
	} next = {0};
	uint32_t region = 0;

	for (int32_t i = 0; i < size;) {
		for (; region + sizeof next <= regions->len; region += sizeof next) {
			memcpy(&next, regions->s + region, sizeof next);
			if (next.offset >= at + i)
				break;
		}
		if (region + sizeof next <= regions->len && next.offset == at + i) {
			if (next.len <= 0 || next.len > size - i || next.name < 0 || next.name >= CREATE_NAMES || !is_name(p + i, text + i, (uint32_t)next.len, &drawn[next.name]))
				return 0;
			i += next.len;
		} else if (text[i] != p[i]) {
			return 0;
		} else {
			i++;
		}
	}
	return 1;
}

/* The end of the JSON object at p; NULL when there is none. */
static const char *after_object(const char *p)
{
	int depth = 0;

	for (; *p; p++) {
		if (*p == '"') {
			for (p++; *p && *p != '"'; p++)
				if (*p == '\\' && !*++p)
					return NULL;
			if (!*p)
				return NULL;
		}
		depth += (*p == '{') - (*p == '}');
		if (depth <= 0)
			return *p == '}' ? p + 1 : NULL;
	}
	return NULL;
}

#define MOUNTS_MOST 128

/*
 * Read the mounts, which some engines name in any order: each has to be one of the plan's, and those of which one may lie in the
 * other in the order that they have there.  Returns what follows them, or NULL.
 */
static const char *take_mounts(const char *p, const char *text, int32_t at, struct arg *a)
{
	static struct strings before[CREATE_NAMES];
	int32_t element[2], pair[2], placed[MOUNTS_MOST];
	const int count = (int)(a[5].len / sizeof element);

	for (int i = 0; i < count; i++)
		placed[i] = -1;
	for (int number = 0; number < count; number++) {
		const char *end = after_object(p);
		int i;
		if (!end)
			return NULL;
		for (i = 0; i < count; i++) {
			memcpy(element, a[5].s + (size_t)i * sizeof element, sizeof element);
			if (placed[i] >= 0 || element[1] - element[0] != end - p)
				continue;
			memcpy(before, drawn, sizeof drawn);
			if (is_like(p, text + (element[0] - at), element[1] - element[0], element[0], &a[4]))
				break;
			memcpy(drawn, before, sizeof drawn);
		}
		if (i == count)
			return NULL;
		placed[i] = number;
		turned |= i != number;
		p = end;
		if (number + 1 < count) {
			p = after_blanks(p);
			if (*p++ != ',')
				return NULL;
			p = after_blanks(p);
		}
	}
	for (uint32_t i = 0; i + sizeof pair <= a[6].len; i += sizeof pair) {
		memcpy(pair, a[6].s + i, sizeof pair);
		if (pair[0] < 0 || pair[0] >= count || pair[1] < 0 || pair[1] >= count || placed[pair[0]] > placed[pair[1]])
			return NULL;
	}
	return p;
}

/* Whether the elements of the plan's mounts lie one after the other, in one of its parts. */
static int are_elements(const struct arg *a)
{
	int32_t element[2], last = 0;

	if (a[5].len % sizeof element || a[5].len / sizeof element > MOUNTS_MOST)
		return 0;
	for (uint32_t i = 0; i < a[5].len; i += sizeof element) {
		memcpy(element, a[5].s + i, sizeof element);
		if (element[0] < last || element[1] <= element[0])
			return 0;
		last = element[1];
	}
	return 1;
}

static int is_config(struct arg *a)
{
	const char *p = config, *end = config + config_size;
	char *to = listed;
	int32_t at = 0, top[2] = {-1, -1}, last[2] = {-1, -1};

	if (!are_elements(a))
		return 0;
	if (a[5].len) {
		memcpy(top, a[5].s, sizeof top);
		memcpy(last, a[5].s + a[5].len - sizeof last, sizeof last);
	}
	for (int part = 0; part < 3; part++) {
		const char *text = a[part].s;
		int32_t size = (int32_t)a[part].len, done_to = 0;
		if (top[0] >= at && last[1] <= at + size) {
			int32_t before = top[0] - at;
			if (end - p < before || !is_like(p, text, before, at, &a[4]) || !(p = take_mounts(p + before, text, at, a)))
				return 0;
			done_to = last[1] - at;
		}
		if (end - p < size - done_to || !is_like(p, text + done_to, size - done_to, at + done_to, &a[4]))
			return 0;
		p += size - done_to, at += size;
		if (part == 1 && a[3].i == ARGS_ALONE)
			asked.env = (struct strings){.s = to};
		else if (part < 2 && !(p = take_strings(p, &to, (part != 0) != (a[3].i == ENV_FIRST) ? &asked.env : &asked.args)))
			return 0;
	}
	return p == end && asked.args.count && are_different(a);
}

static long op_own_name(struct arg *a)
{
	const uint32_t len = (uint32_t)str_len(ident);

	if (a[0].i < 0 || a[0].i >= CREATE_NAMES)
		return -EBADMSG;
	drawn[a[0].i] = (struct strings){.s = ident, .len = len};
	return same(len == a[1].i);
}

static long op_config(struct arg *a)
{
	if (!config)
		return -EBADMSG;
	turned = 0;
	return same(is_config(a));
}

static long op_names(struct arg *a)
{
	struct {
		int32_t name, distance;
	} place;
	char time[32];
	const long time_size = put_time(time) - time;

	for (uint32_t i = 0; i + sizeof place <= a[0].len; i += sizeof place) {
		const char *text = time;
		long size = time_size;
		memcpy(&place, a[0].s + i, sizeof place);
		if (place.name >= 0) {
			if (place.name >= CREATE_NAMES || !(text = drawn[place.name].s))
				return -EBADMSG;
			size = drawn[place.name].len;
		}
		if (place.distance < size || place.distance > plan_end - plan_begin)
			return -EBADMSG;
		memcpy(plan_end - place.distance, text, (size_t)size);
	}
	return 0;
}

/* ---- witnesses ------------------------------------------------------------------------------------- */

static long op_new_container(struct arg *a)
{
	return same(str_eq(a[0].s, container_path) && str_eq(a[1].s, asked.bundle));
}

/* Read a whole file of the kernel's, which has no size. */
static char *read_mounts(void)
{
	size_t size = 1 << 20, n = 0;
	char *text = map_memory(size);
	long r = 0, fd = SYS3(openat, AT_FDCWD, "/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);

	while (text && fd >= 0 && n < size - 1 && (r = SYS3(read, fd, text + n, size - 1 - n)) > 0)
		n += (size_t)r;
	SYS1(close, fd);
	return text && fd >= 0 && r == 0 && n < size - 1 ? text : NULL;
}

static long op_same_hierarchies(struct arg *a)
{
	const char *left = a[0].s, *line = read_mounts(), *end;

	for (; line && *line; line = end) {
		int is_cgroup = 0;
		for (end = line; *end && *end != '\n'; end++)
			is_cgroup |= str_after(end, " - cgroup") != NULL;
		end += *end == '\n';
		if (!is_cgroup)
			continue;
		for (; line < end; line++, left++)
			if (*line != *left)
				return -ESTALE;
	}
	return same(line && !*left);
}

/* Whether a path leads to a hierarchy of that kind. */
static int is_hierarchy(const char *path, long kind)
{
	struct statfs fs;
	return SYS2(statfs, path, &fs) == 0 && (uint32_t)fs.f_type == (kind == CGROUP_UNIFIED ? CGROUP2_SUPER_MAGIC : CGROUP_SUPER_MAGIC);
}

static long op_hidden(struct arg *a)
{
	return same(!is_hierarchy(a[0].s, a[1].i));
}

static long op_plain_path(struct arg *a)
{
	struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
	long fd = open_how(AT_FDCWD, a[0].s, &how);

	MUST(fd);
	return SYS1(close, fd);
}

/* Whether a file below a root directory says just this; none says nothing. */
static long is_text_inside(const char *top, const char *path, const struct arg *text, struct statx *st)
{
	char *there = NULL;
	long n = 0, r, fd = open_inside(top, path, O_RDONLY | O_NONBLOCK);

	memset(st, 0, sizeof *st);
	if (fd == -ENOENT)
		return text->len == 0;
	MUST(fd);
	r = SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, st);
	if (r == 0 && ((st->stx_mode & S_IFMT) != S_IFREG || st->stx_size != text->len || !(there = map_memory((size_t)text->len + 1))))
		r = -ESTALE;
	for (; r >= 0 && n < (long)text->len; n += r)
		if ((r = SYS3(read, fd, there + n, text->len - (uint32_t)n)) == 0)
			r = -ESTALE;
	SYS1(close, fd);
	r = r < 0 ? r : memcmp(there, text->s, text->len) == 0;
	if (there)
		SYS2(munmap, there, (size_t)text->len + 1);
	return r;
}

static long op_plain_targets(struct arg *a)
{
	const struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS};
	long root, r = 0;

	if (!turned)
		return 0;
	MUST(root = SYS3(openat, AT_FDCWD, a[0].s, O_PATH | O_DIRECTORY | O_CLOEXEC));
	for (const char *path = a[1].s; path < a[1].s + a[1].len && r != -ELOOP; path += str_len(path) + 1) {
		r = open_how((int)root, path, &how);
		if (r >= 0)
			SYS1(close, r);
	}
	SYS1(close, root);
	return same(r != -ELOOP);
}

static struct arg passwd; /* what the image's says, which the home is from */

static long op_home_of_image(struct arg *a)
{
	struct statx st;

	passwd = a[2];
	if (has_home(&asked.env))
		return 0;
	asked.home = a[0].s;
	return same(is_text_inside(a[1].s, "/etc/passwd", &a[2], &st) == 1);
}

/* ---- what is made ---------------------------------------------------------------------------------- */

static long op_make_container(struct arg *a)
{
	(void)a;
	/* from here on a signal waits until all is done, or taken back */
	MUST(hold_signals());
	MUST(SYS3(mkdirat, AT_FDCWD, container_path, 0700));
	container = (int)SYS3(openat, AT_FDCWD, container_path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (container < 0) {
		SYS3(unlinkat, AT_FDCWD, container_path, AT_REMOVEDIR);
		return container;
	}
	MUST(SYS2(flock, container, LOCK_EX | LOCK_NB)); /* otherwise `delete --force` has found it, and removes it */
	begun.directory = 1;
	noted[0] = asked.args, noted[1] = asked.env;
	if (asked.home && !has_home(&asked.env)) {
		const uint32_t len = (uint32_t)str_len(asked.home) + 1;
		char *env = map_memory((size_t)asked.env.len + len);
		if (!env)
			return -ENOMEM;
		put_bytes(put_bytes(env, asked.env.s, asked.env.len), asked.home, len);
		asked.env.s = env;
		asked.env.len += len, asked.env.count++;
		noted[1] = asked.env;
	}
	asked.home = NULL;
	return 0;
}

static long op_fifo(struct arg *a)
{
	MUST(SYS4(mknodat, container, a[0].s, S_IFIFO | 0600, 0));
	return move_to(SYS3(openat, container, a[0].s, O_RDWR | O_CLOEXEC | O_NOFOLLOW), a[1].i);
}

static long op_namespace(struct arg *a)
{
	MUST(move_to(SYS3(openat, AT_FDCWD, a[0].s, O_RDONLY | O_CLOEXEC | O_NONBLOCK), a[2].i));
	return same(SYS2(ioctl, a[2].i, NS_GET_NSTYPE) == a[1].i);
}

static long op_open_tree(struct arg *a)
{
	const unsigned below = a[1].i ? AT_RECURSIVE : 0;
	struct mount_attr propagation = {.propagation = (uint64_t)a[2].i};
	struct mount_attr attrs = {.attr_set = (uint64_t)a[4].i, .attr_clr = (uint64_t)a[5].i};
	struct mount_attr deep = {.attr_set = (uint64_t)a[6].i, .attr_clr = (uint64_t)a[7].i};
	const long fd = a[8].i;

	MUST(move_to(SYS3(open_tree, AT_FDCWD, a[0].s, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | below), fd));
	MUST(SYS5(mount_setattr, fd, "", AT_EMPTY_PATH | (a[3].i ? AT_RECURSIVE : 0), &propagation, sizeof propagation));
	if (a[4].i || a[5].i)
		MUST(SYS5(mount_setattr, fd, "", AT_EMPTY_PATH, &attrs, sizeof attrs));
	if (a[6].i || a[7].i)
		return SYS5(mount_setattr, fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &deep, sizeof deep);
	return 0;
}

/* ---- cgroups --------------------------------------------------------------------------------------- */

static long write_text(const char *path, const char *text)
{
	long r, fd = SYS3(openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);

	MUST(fd);
	r = SYS3(write, fd, text, str_len(text));
	SYS1(close, fd);
	return r < 0 ? r : 0;
}

static long op_write(struct arg *a)
{
	return write_text(a[0].s, a[1].s);
}

/* Give a new cgroup of v1 what the one above has of cpuset.cpus and cpuset.mems.  `end` is that of its path. */
static long inherit_cpuset(char *path, char *end)
{
	static const char *const files[] = {"/cpuset.cpus", "/cpuset.mems"};
	char text[4096], *above = end;

	do
		above--;
	while (*above != '/');
	for (int i = 0; i < 2; i++) {
		char kept[NAME_MAX + 2];
		long n;
		*put_str(end, files[i]) = 0;
		MUST(n = read_text(path, text, sizeof text));
		if (n > 1)
			continue;
		if (end - above > NAME_MAX + 1)
			return -ENAMETOOLONG;
		put_bytes(kept, above, (size_t)(end - above)); /* the last component */
		*put_str(above, files[i]) = 0;
		MUST(n = read_text(path, text, sizeof text));
		put_bytes(above, kept, (size_t)(end - above));
		*put_str(end, files[i]) = 0;
		if (n && text[n - 1] == '\n')
			text[n - 1] = 0;
		MUST(write_text(path, text));
	}
	*end = 0;
	return 0;
}

/* Offer to those below what a cgroup of v2 has, as far as that is possible: cgroups.py, _offer(). */
static void offer(char *path, char *end)
{
	char all[1024], there[1024], word[256] = "+";

	*put_str(end, "/cgroup.subtree_control") = 0;
	if (read_text(path, there, sizeof there) < 0)
		there[0] = 0;
	*put_str(end, "/cgroup.controllers") = 0;
	if (read_text(path, all, sizeof all) < 0)
		all[0] = 0;
	*put_str(end, "/cgroup.subtree_control") = 0;
	for (const char *p = all; *p;) {
		size_t n = 0;
		while (p[n] && p[n] != ' ' && p[n] != '\n')
			n++;
		if (n && n < sizeof word - 1) {
			*put_bytes(word + 1, p, n) = 0;
			if (!has_word(there, word + 1))
				write_text(path, word); /* if it can't be had, a limit that needs it says so */
		}
		p += n + (p[n] != 0);
	}
	*end = 0;
}

static long op_make_cgroup(struct arg *a)
{
	static const char *const limits[][2] = {{"/cgroup.max.depth", "100"}, {"/cgroup.max.descendants", "10000"}};
	char path[PATH_MAX], *end = path;
	const char *rest;
	struct statfs fs;
	long r;

	if (*a[0].s != '/' || a[1].i < 1 || a[1].i >= (long)a[0].len || a[0].len > sizeof path - 64 || begun.n_cgroups == MAKES_MOST)
		return -EBADMSG;
	rest = a[0].s + a[1].i;
	end = put_bytes(path, a[0].s, (size_t)a[1].i);
	*end = 0;
	if (!is_hierarchy(path, a[2].i)) /* something else lies over it */
		return -ENODEV;
	while (*rest) {
		const int was = *rest == '/';
		if (was && a[2].i == CGROUP_UNIFIED)
			offer(path, end);
		do
			*end++ = *rest++;
		while (*rest && *rest != '/');
		*end = 0;
		r = SYS3(mkdirat, AT_FDCWD, path, 0755);
		if (r == 0 && !*rest)
			begun.cgroups[begun.n_cgroups++] = a[0].s;
		if (r < 0 && (r != -EEXIST || !*rest)) /* that of the container itself is new */
			return r;
		if (r == 0 && (*rest || a[2].i == CGROUP_CPUSET))
			MUST(SYS3(fchmodat, AT_FDCWD, path, 0755));
		if (a[2].i == CGROUP_CPUSET)
			MUST(inherit_cpuset(path, end));
	}
	if (a[2].i != CGROUP_UNIFIED) {
		*put_str(end, "/tasks") = 0;
		return move_to(SYS3(openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC), a[3].i);
	}
	for (int i = 0; i < 2; i++) {
		*put_str(end, limits[i][0]) = 0;
		r = write_text(path, limits[i][1]);
		if (r < 0 && r != -EACCES && r != -EPERM && r != -EROFS && r != -ENOENT)
			return r;
	}
	*end = 0;
	MUST(move_to(SYS3(openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), a[3].i));
	MUST(SYS2(fstatfs, a[3].i, &fs));
	if (fs.f_type != CGROUP2_SUPER_MAGIC)
		return -ENODEV;
	{
		struct statx st;
		MUST(SYS5(statx, a[3].i, "", AT_EMPTY_PATH, STATX_INO, &st));
		member.cgroup = (long)st.stx_ino;
	}
	return 0;
}

static long op_device_filter(struct arg *a)
{
	union bpf_attr load, attach;
	long r, program;

	memset(&load, 0, sizeof load);
	memset(&attach, 0, sizeof attach);
	load.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, load.insns = (uintptr_t)a[1].s, load.insn_cnt = a[1].len / 8;
	load.license = (uintptr_t)"GPL";
	MUST(program = SYS3(bpf, BPF_PROG_LOAD, &load, sizeof load));
	attach.target_fd = (uint32_t)a[0].i, attach.attach_type = BPF_CGROUP_DEVICE, attach.attach_flags = BPF_F_ALLOW_MULTI;
	attach.attach_bpf_fd = (uint32_t)program;
	r = SYS3(bpf, BPF_PROG_ATTACH, &attach, sizeof attach);
	SYS1(close, program);
	return r;
}

static long op_joins(struct arg *a)
{
	long n = numbers(&a[0], joins, MOST);

	MUST(n);
	n_joins = (int)n;
	return 0;
}

/* ---- the plan of the container --------------------------------------------------------------------- */

static void number_file(int64_t *to, const struct statx *st)
{
	*to++ = (long)((uint64_t)st->stx_dev_major << 32 | st->stx_dev_minor);
	*to++ = (long)st->stx_ino;
	*to++ = (long)st->stx_size;
	*to++ = nanoseconds(st->stx_mtime);
	*to++ = nanoseconds(st->stx_ctime);
}

/* What is known now: enum container_number. */
static long number_container(int64_t *to, long theirs)
{
	struct statx st;
	struct timespec now;
	char root[64];
	long r;

	to[OF_PID] = member.pid;
	MUST(to[OF_START] = start_of(member.pid));
	to[OF_CGROUP] = member.cgroup;
	MUST(SYS5(statx, container, "state", AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st));
	number_file(to + OF_STATE, &st);
	MUST(SYS5(statx, container, "config", AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st));
	number_file(to + OF_CONFIG, &st);
	*put_str(put_num(put_str(root, "/proc/"), (unsigned long)member.pid, 1), "/root") = 0;
	r = is_text_inside(root, "/etc/passwd", &passwd, &st);
	SYS2(clock_gettime, CLOCK_REALTIME, &now);
	if (r == 1 && (!st.stx_ino || (now.tv_sec - st.stx_ctime.tv_sec) > 1)) /* one that has just been changed could be changed again */
		number_file(to + OF_PASSWD, &st);
	else
		to[OF_PASSWD] = -1; /* then Python looks the home up */
	for (unsigned i = 0; i < N_NAMESPACES; i++) {
		to[OF_OURS + i] = namespace_of(0, namespaces[i]);
		to[OF_THEIRS + i] = namespace_of(member.pid, namespaces[i]);
		if (to[OF_OURS + i] < 0 || to[OF_THEIRS + i] < 0 || (to[OF_OURS + i] != to[OF_THEIRS + i]) != (theirs >> i & 1))
			return -ESTALE; /* an exec joins others than the plan says */
	}
	return 0;
}

static long op_leave(struct arg *a)
{
	struct {
		int32_t half, offset, number;
	} place;
	int64_t found[CONTAINER_NUMBERS] = {0};
	char path[PATH_MAX], new[PATH_MAX], *text, *halves[2], *end;
	const size_t size = (size_t)a[0].len + sizeof asked.env.len + asked.env.len + a[1].len, n_head = sizeof(struct replay_header);
	uint32_t crc;

	MUST(number_container(found, a[3].i));
	if (a[0].len < n_head || a[2].len % sizeof place || size > REPLAY_BYTES || !(text = map_memory(size)))
		return -EBADMSG;
	halves[0] = text;
	end = put_bytes(text, a[0].s, a[0].len);
	if (a[1].len) {
		end = put_bytes(end, &asked.env.len, sizeof asked.env.len);
		end = put_bytes(end, asked.env.s, asked.env.len);
	}
	halves[1] = end;
	end = put_bytes(end, a[1].s, a[1].len);
	for (uint32_t i = 0; i < a[2].len; i += sizeof place) {
		memcpy(&place, a[2].s + i, sizeof place);
		if (place.half < 0 || place.half > 1 || place.offset < 0 || place.number < 0 || place.number >= CONTAINER_NUMBERS ||
		    (uint32_t)place.offset + sizeof *found > a[place.half].len)
			return -EBADMSG;
		memcpy(halves[place.half] + place.offset, &found[place.number], sizeof *found);
	}
	crc = checksum(text + n_head, (size_t)(end - text) - n_head);
	memcpy(text + offsetof(struct replay_header, checksum), &crc, sizeof crc);
	*put_str(put_str(path, container_path), "/plan") = 0;
	*put_str(put_str(new, path), ".tmp") = 0;
	MUST(write_file(new, text, (size_t)(end - text), O_TRUNC));
	return SYS4(renameat, AT_FDCWD, new, AT_FDCWD, path);
}

/* Remove what was made of a container, whose process has ended. */
static void take_back_container(void)
{
	int left = 0;

	while (begun.n_cgroups)
		left |= remove_cgroup(begun.cgroups[--begun.n_cgroups], 200) < 0;
	if (begun.directory && container >= 0 && !left) /* otherwise what is written stays, for `delete --force` */
		op_remove(NULL);
	begun.directory = 0;
}

#endif
