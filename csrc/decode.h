/* SPDX-License-Identifier: Apache-2.0 */
/*
 * decode.h: read what nsrun wrote for nsrun-init (a plan), for nsrun-door (a request) and for its own front (a compiled plan).
 *
 * Nothing is copied and nothing allocated: all results point into the input.  Every length is checked against the rest of
 * the input before it is used, and a string must end with its NUL.  tests/fuzz/decode.c includes this file alone, with
 * ASan and UBSan.
 */
#ifndef NSRUN_DECODE_H
#define NSRUN_DECODE_H

#include <stddef.h>
#include <stdint.h>

/* Strings, one after the other, each with its NUL. */
struct strings {
	const char *s; /* NULL: they are missing */
	uint32_t len, count;
};

struct arg {
	const char *s;
	long i;
	uint32_t len;
};

static inline int take(const char **p, const char *end, void *out, size_t n)
{
	char *to = out;
	if ((size_t)(end - *p) < n)
		return 0;
	while (n--)
		*to++ = *(*p)++;
	return 1;
}

/* The length of a string, at most `max`. */
static inline size_t length_within(const char *s, size_t max)
{
	size_t n = 0;
	while (n < max && s[n])
		n++;
	return n;
}

/*
 * Decode the arguments of one step: each is a u32 length and the bytes.  Kinds: i = 64-bit integer, s = a string with its
 * NUL, l = any number of such strings, b = any bytes.  Returns 0 when they are malformed.
 */
static inline int decode_args(const char *kinds, const char **p, const char *end, struct arg *a)
{
	for (int i = 0; kinds[i]; i++) {
		uint32_t len;
		if (!take(p, end, &len, sizeof len) || (size_t)(end - *p) < len)
			return 0;
		a[i] = (struct arg){.s = *p, .len = len};
		if (kinds[i] == 'i') {
			const char *from = *p;
			if (len != sizeof a[i].i || !take(&from, end, &a[i].i, sizeof a[i].i))
				return 0;
		} else if (kinds[i] == 'b') {
			/* as they are */
		} else if (len ? (*p)[len - 1] != 0 : kinds[i] == 's') {
			return 0;
		} else if (kinds[i] == 's' && length_within(*p, len) + 1 != len) {
			return 0;
		}
		*p += len;
	}
	return 1;
}

/* Point to the strings of a list, with NULL after the last; returns their number, or -1 if there are more than `max`. */
static inline int split_strings(const char *p, size_t len, const char **out, int max)
{
	const char *end = p + len;
	int n = 0;
	for (; p < end; p += length_within(p, (size_t)(end - p)) + 1) {
		if (n == max)
			return -1;
		out[n++] = p;
	}
	out[n] = NULL;
	return n;
}

/* The number of strings in a list. */
static inline int count_strings(const char *p, size_t len)
{
	int n = 0;
	for (size_t i = 0; i < len; i++)
		n += !p[i];
	return n;
}

/* Read a u32 length and a list of strings, which ends with the last one's NUL; returns 0 when it is malformed. */
static inline int take_list(const char **p, const char *end, const char **list, uint32_t *len)
{
	if (!take(p, end, len, sizeof *len) || (size_t)(end - *p) < *len || (*len && (*p)[*len - 1]))
		return 0;
	*list = *p;
	*p += *len;
	return 1;
}

/* Read a u32 count and as many i32, each from 0 to below `bound`; returns the count, or -1. */
static inline int take_numbers(const char **p, const char *end, int32_t *out, uint32_t max, int32_t bound)
{
	uint32_t n;
	if (!take(p, end, &n, sizeof n) || n > max || !take(p, end, out, n * sizeof *out))
		return -1;
	for (uint32_t i = 0; i < n; i++)
		if (out[i] < 0 || out[i] >= bound)
			return -1;
	return (int)n;
}

#endif
