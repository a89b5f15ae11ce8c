/* SPDX-License-Identifier: Apache-2.0 */
/*
 * witnesses.h: the steps of a compiled plan that change nothing: each says that something is as it was when Python looked at it.
 */
#ifndef NSRUN_WITNESSES_H
#define NSRUN_WITNESSES_H

#include "replay.h"

#include <asm/ioctls.h>

static long op_words(struct arg *a)
{
	const char *words[REPLAY_WORDS + 1];
	int n = split_strings(a[0].s, a[0].len, words, REPLAY_WORDS);

	if (n != n_words)
		return -ESTALE;
	for (int i = 0; i < n; i++)
		if (!str_eq(words[i], argv_[i + 1]))
			return -ESTALE;
	/* A word with a dash could be an option, which is for Python to understand. */
	return same(a[1].i ? argc_ > n + 1 && argv_[n + 1][0] != '-' : argc_ == n + 1);
}

/* Whether a file is the one of these five: device, inode, size, and both times. */
static long same_as(const struct statx *st, const struct arg *a)
{
	return same((long)((uint64_t)st->stx_dev_major << 32 | st->stx_dev_minor) == a[0].i && (long)st->stx_ino == a[1].i &&
	            (long)st->stx_size == a[2].i && nanoseconds(st->stx_mtime) == a[3].i && nanoseconds(st->stx_ctime) == a[4].i);
}

static long op_same_file(struct arg *a)
{
	struct statx st;

	MUST(SYS5(statx, AT_FDCWD, a[0].s, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st));
	return same_as(&st, a + 1);
}

static long op_same_text(struct arg *a)
{
	char text[4096];
	long n = read_text(a[0].s, text, sizeof text);

	MUST(n);
	return same(n + 1 == a[1].len && str_eq(text, a[1].s));
}

static long op_same_link(struct arg *a)
{
	char target[PATH_MAX];
	long n = SYS4(readlinkat, AT_FDCWD, a[0].s, target, sizeof target - 1);

	MUST(n);
	target[n] = 0;
	return same(str_eq(target, a[1].s));
}

static long op_same_variable(struct arg *a)
{
	const char *value = variable(a[0].s);
	return same(a[1].s[0] ? value && str_eq(value, a[1].s + 1) : !value);
}

static long op_same_powers(struct arg *a)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[2] = {{0}};
	long bounding = 0, r;

	MUST(SYS2(capget, &head, sets));
	for (int cap = 0; (r = SYS5(prctl, PR_CAPBSET_READ, cap, 0, 0, 0)) >= 0; cap++)
		bounding |= r << cap;
	return same((long)((uint64_t)sets[1].effective << 32 | sets[0].effective) == a[0].i && bounding == a[1].i);
}

static long op_same_inside(struct arg *a)
{
	struct statx st;
	long r, fd = open_inside(a[0].s, a[1].s, O_PATH);

	if (fd == -ENOENT && !a[2].i)
		return 0;
	MUST(fd);
	r = SYS5(statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &st);
	SYS1(close, fd);
	MUST(r);
	return same_as(&st, a + 2);
}

static long op_input_is_a_terminal(struct arg *a)
{
	char termios[256];
	(void)a;
	return SYS3(ioctl, 0, TCGETS, termios);
}

static long op_absent(struct arg *a)
{
	struct statx st;
	return same(SYS5(statx, AT_FDCWD, a[0].s, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) == -ENOENT);
}

#endif
