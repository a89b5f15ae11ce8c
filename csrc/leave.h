/* SPDX-License-Identifier: Apache-2.0 */
/*
 * leave.h: the steps of a compiled plan that leave something on disk or make mounts of it: the name of a new member or pod,
 * its notes and what it writes.  nsrun/state tells what lies where; the notes are its, byte for byte, with holes that are filled here.
 */
#ifndef NSRUN_LEAVE_H
#define NSRUN_LEAVE_H

#include "replay.h"

static long lock_role(long fd, long byte)
{
	return lock_byte((int)fd, F_RDLCK, byte, 1);
}

/* Put the fresh value in the place of the old one; `at` holds the distances from the end of the plan. */
static long replace(const struct arg *at, const char *value, long size)
{
	int32_t distance;

	for (uint32_t i = 0; i + sizeof distance <= at->len; i += sizeof distance) {
		memcpy(&distance, at->s + i, sizeof distance);
		if (distance < size || distance > plan_end - plan_begin)
			return -EBADMSG;
		memcpy(plan_end - distance, value, (size_t)size);
	}
	return 0;
}

static long op_fresh(struct arg *a)
{
	char random[6], id[12], time[32];

	for (char **word = argv_ + 1 + n_words; *word; word++)
		for (const char *c = *word; *c; c++)
			if (*c & 0x80)
				return -ESTALE; /* JSON has it in another form, which Python knows */
	if (SYS3(getrandom, random, sizeof random, 0) != sizeof random)
		return -ENOSYS;
	for (int i = 0; i < 12; i++)
		id[i] = "0123456789abcdef"[random[i / 2] >> 4 * (i % 2) & 15];
	MUST(replace(&a[0], id, sizeof id));
	return replace(&a[1], time, put_time(time) - time);
}

static long op_lock(struct arg *a)
{
	return is_handle(a[0].i) ? lock_role(a[0].i, a[1].i) : -EBADMSG;
}

static long make_directory(const char *path)
{
	MUST(SYS3(mkdirat, AT_FDCWD, path, 0700));
	return SYS3(fchmodat, AT_FDCWD, path, 0700);
}

/*
 * From here on a signal that would end us is left pending: hear() and op_release() see it, what was made is taken back, and
 * Python says so.
 */
static long hold_signals(void)
{
	static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
	struct action now;

	if (heard >= 0)
		return 0;
	for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
		if (SYS4(rt_sigaction, numbers[i], NULL, &now, sizeof(sigbits)) == 0 && now.handler == SIG_DFL)
			ends |= SIGBIT(numbers[i]);
	ends &= ~mask; /* a caller may have blocked one */
	sys_sigmask(SIG_BLOCK, ends);
	return heard = (int)SYS4(signalfd4, -1, &ends, sizeof ends, SFD_CLOEXEC | SFD_NONBLOCK);
}

static long op_claim(struct arg *a)
{
	struct statx st;
	char path[PATH_MAX];

	if (a[0].len > sizeof path - 8)
		return -ENAMETOOLONG;
	MUST(hold_signals());
	made.left = a[0].s;
	MUST(make_directory(a[0].s));
	*put_str(put_str(path, a[0].s), "/held") = 0;
	MUST(move_to(SYS4(openat, AT_FDCWD, path, O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600), a[1].i));
	if (made.n_locks < 2)
		made.locks[made.n_locks++] = (int)a[1].i;
	MUST(lock_role(a[1].i, MAKER)); /* not before it has its number: to close another descriptor of the file ends the lock */
	MUST(SYS5(statx, a[1].i, "", AT_EMPTY_PATH, STATX_INO | STATX_NLINK | STATX_BTIME, &st));
	if (a[2].i) {
		member.held = (long)st.stx_ino;
		member.since = st.stx_mask & STATX_BTIME ? nanoseconds(st.stx_btime) : 0;
	} else {
		made.data = a[0].s;
	}
	return same(st.stx_nlink > 0); /* a sweep may have come between the open and the lock */
}

static long write_file(const char *path, const char *text, size_t size, int flags)
{
	long r = 0, fd = SYS4(openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | flags, 0600);

	MUST(fd);
	if (flags & O_TRUNC)
		r = SYS2(fchmod, fd, 0600); /* whatever the umask is */
	for (size_t at = 0; at < size && r >= 0; at += (size_t)r)
		r = SYS3(write, fd, text + at, size - at);
	SYS1(close, fd);
	return r < 0 ? r : 0;
}

static long op_file(struct arg *a)
{
	return write_file(a[0].s, a[1].s, a[1].len, 0);
}

static long op_rename(struct arg *a)
{
	MUST(SYS4(renameat, AT_FDCWD, a[0].s, AT_FDCWD, a[1].s));
	made.claim = a[0].s, made.name = a[1].s;
	return 0;
}

/* Write a string as Python's json does, where it has only bytes of ASCII. */
static char *put_json(char *p, const char *s)
{
	for (*p++ = '"'; *s; s++) {
		const char *short_form = "\"\"\\\\\bb\ff\nn\rr\tt";
		while (*short_form && *short_form != *s)
			short_form += 2;
		if (*short_form) {
			*p++ = '\\';
			*p++ = short_form[1];
		} else if ((unsigned char)*s < ' ' || *s == 0x7f) {
			p = put_str(p, "\\u00");
			*p++ = "01234567"[*s >> 4];
			*p++ = "0123456789abcdef"[*s & 15];
		} else {
			*p++ = *s;
		}
	}
	*p++ = '"';
	return p;
}

static char *put_list(char *p, const struct strings *list)
{
	for (const char *s = list->s; s && s < list->s + list->len; s += str_len(s) + 1)
		p = put_json(s > list->s ? put_str(p, ", ") : p, s);
	return p;
}

static char *put_hole(char *p, char kind)
{
	switch (kind) {
	case HOLE_ARGS:
		return put_list(p, &noted[0]);
	case HOLE_ENV:
		return put_list(p, &noted[1]);
	case HOLE_PID:
		return put_num(p, (unsigned long)member.pid, 1);
	case HOLE_START:
		return put_num(p, (unsigned long)start_of(member.pid), 1);
	case HOLE_COMMAND:
		for (char **word = argv_ + 1 + n_words; *word; word++) {
			if (word != argv_ + 1 + n_words)
				p = put_str(p, ", ");
			p = put_json(p, *word);
		}
		return p;
	case HOLE_PROCESS:
		p = put_str(put_num(p, (unsigned long)member.pid, 1), ", ");
		return put_num(p, (unsigned long)start_of(member.pid), 1);
	case HOLE_HELD:
		return put_num(p, (unsigned long)member.held, 1);
	case HOLE_SINCE:
		return put_num(p, (unsigned long)member.since, 1);
	case HOLE_CGROUP:
		return put_num(p, (unsigned long)member.cgroup, 1);
	case HOLE_NAMESPACES:
		for (int i = 0; i < 7; i++) {
			static const char *const names[] = {"net", "ipc", "uts", "pid", "mnt", "cgroup", "user"};
			struct statx st = {0};
			char path[64];
			*put_str(put_str(put_num(put_str(path, "/proc/"), (unsigned long)member.pid, 1), "/ns/"), names[i]) = 0;
			SYS5(statx, AT_FDCWD, path, 0, STATX_INO, &st);
			p = put_str(put_str(put_str(p, i ? ", \"" : "{\""), names[i]), "\": ");
			p = put_num(p, st.stx_ino, 1);
		}
		return put_str(p, "}");
	default:
		return p;
	}
}

static long op_note(struct arg *a)
{
	static const char head[] = "{\"crc\": \"00000000\", ";
	const size_t n_head = sizeof head - 1;
	char path[PATH_MAX], *text, *p;
	size_t size = n_head + a[1].len + 64, command = 6 * (noted[0].len + noted[1].len) + 4 * (noted[0].count + noted[1].count), all;
	uint32_t crc;
	long r;

	if (a[0].len > sizeof path - 8)
		return -ENAMETOOLONG;
	for (char **word = argv_ + 1 + n_words; *word; word++)
		command += 6 * str_len(*word) + 4;
	for (const char *c = a[1].s; *c; c++)
		if (*c == HOLE)
			size += c[1] == HOLE_COMMAND || c[1] == HOLE_ARGS || c[1] == HOLE_ENV ? command : c[1] == HOLE_NAMESPACES ? 256
			                                                                                                          : 48;
	if (!(text = map_memory(size)))
		return -ENOMEM;
	p = (char *)memcpy(text, head, n_head) + n_head;
	for (const char *c = a[1].s; *c; c++) {
		if (*c != HOLE)
			*p++ = *c;
		else if (*++c)
			p = put_hole(p, *c);
		else
			return -EBADMSG;
	}
	all = (size_t)(p - text);
	crc = checksum(text + n_head, all - n_head);
	for (int i = 0; i < 8; i++)
		text[9 + i] = "0123456789abcdef"[crc >> (28 - 4 * i) & 15];
	*put_str(put_str(path, a[0].s), ".tmp") = 0;
	r = write_file(path, text, all, O_TRUNC);
	SYS2(munmap, text, size);
	MUST(r);
	return SYS4(renameat, AT_FDCWD, path, AT_FDCWD, a[0].s);
}

static long op_directory(struct arg *a)
{
	MUST(SYS3(mkdirat, AT_FDCWD, a[0].s, 0700));
	if (!a[1].i)
		return 0;
	MUST(SYS3(fchmodat, AT_FDCWD, a[0].s, a[1].i));
	return SYS5(fchownat, AT_FDCWD, a[0].s, a[2].i, a[3].i, 0);
}

static long op_open_directory(struct arg *a)
{
	return move_to(SYS3(openat, AT_FDCWD, a[0].s, O_RDONLY | O_DIRECTORY | O_CLOEXEC), a[1].i);
}

static long op_share(struct arg *a)
{
	MUST(move_to(SYS3(openat, AT_FDCWD, a[0].s, O_RDONLY | O_NONBLOCK | O_CLOEXEC), a[1].i));
	return SYS2(flock, a[1].i, LOCK_SH);
}

static long set_string(long fs, const char *key, const char *value)
{
	return SYS5(fsconfig, fs, FSCONFIG_SET_STRING, key, value, 0);
}

/* Name a directory by its descriptor, so that no `:` or `,` of its path is special (kernel.py, overlay). */
static long set_directory(long fs, const char *key, long at, const char *path)
{
	long r, fd = SYS3(openat, at, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	char name[32];

	MUST(fd);
	*put_num(put_str(name, "/proc/self/fd/"), (unsigned long)fd, 1) = 0;
	r = set_string(fs, key, name);
	SYS1(close, fd);
	return r;
}

static long op_overlay(struct arg *a)
{
	static const char *const off[] = {"metacopy", "index", "redirect_dir"};
	const char *lower = a[0].s, *end = a[0].s + a[0].len;
	const char *key = count_strings(a[0].s, a[0].len) > 1 ? "lowerdir+" : "lowerdir";
	long r, upper, fs;

	MUST(upper = SYS3(openat, AT_FDCWD, a[1].s, O_PATH | O_DIRECTORY | O_CLOEXEC));
	MUST(fs = SYS2(fsopen, "overlay", FSOPEN_CLOEXEC));
	MUST(set_string(fs, "source", "nsrun"));
	for (; lower < end; lower += str_len(lower) + 1)
		MUST(set_directory(fs, key, AT_FDCWD, lower));
	MUST(set_directory(fs, "upperdir", upper, "upper"));
	MUST(set_directory(fs, "workdir", upper, "work"));
	for (int i = 0; i < 3; i++)
		MUST(set_string(fs, off[i], "off"));
	MUST(SYS5(fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	r = move_to(SYS3(fsmount, fs, FSMOUNT_CLOEXEC, a[2].i), a[3].i);
	SYS1(close, fs);
	SYS1(close, upper);
	return r;
}

static long op_tree(struct arg *a)
{
	const unsigned below = a[1].i ? AT_RECURSIVE : 0;
	struct mount_attr attrs = {.attr_set = (uint64_t)a[2].i, .propagation = MS_PRIVATE};

	MUST(move_to(SYS3(open_tree, AT_FDCWD, a[0].s, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | below), a[3].i));
	return SYS5(mount_setattr, a[3].i, "", AT_EMPTY_PATH | below, &attrs, sizeof attrs);
}

#endif
