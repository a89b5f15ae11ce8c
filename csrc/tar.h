/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tar.h: a reader of tar streams (ustar, pax, GNU) that never trusts one.
 *
 * Pure: it calls only the given `fill`, allocates nothing, and is what the fuzzer feeds (tests/fuzz/tar.c).
 * Its results are checked: names are NUL-terminated and have at most TAR_PATH_MAX bytes, numbers are in
 * range, a sparse map ascends and adds up.  For sizes and limits see docs/threats.md, R16 and R17.
 *
 * pax(1), "ustar Interchange Format" and "pax Interchange Format"; GNU tar's manual, "Sparse Formats".
 */
#ifndef NSRUN_TAR_H
#define NSRUN_TAR_H

#include <stddef.h>
#include <stdint.h>

#define TAR_PATH_MAX   4096
#define TAR_PAX_MAX    (1 << 20) /* bytes of one extended header */
#define TAR_MAX_XATTRS 128
#define TAR_MAX_HOLES  65536
#define TAR_BUFFER     (1 << 19)

struct tar_xattr {
	const char *name, *value;
	size_t name_len, value_len;
};
struct tar_extent {
	uint64_t offset, length;
};

struct tar_entry {
	char type; /* '0' file, '1' hard link, '2' symlink, '3' '4' devices, '5' directory, '6' FIFO */
	char name[TAR_PATH_MAX + 1], link[TAR_PATH_MAX + 1];
	uint64_t size;   /* bytes in the file, holes included */
	uint64_t offset; /* of its data in the stream */
	uint32_t mode, uid, gid;
	int64_t mtime;
	uint32_t mtime_ns;
	struct tar_xattr xattrs[TAR_MAX_XATTRS];
	uint32_t n_xattrs;
	uint32_t n_extents; /* 0: not sparse */
};

struct tar {
	/* fill `to` with up to `max` bytes; return their number, 0 at the end, negative for an error */
	long (*fill)(void *context, char *to, size_t max);
	/* skip n bytes of the stream beyond the buffer; with NULL they are read */
	int (*skip)(void *context, uint64_t n);
	void *context;
	const char *error;  /* why the last call failed */
	uint64_t offset;    /* of buffer[at] in the stream */
	uint64_t remaining; /* bytes of the current entry's data that were not returned yet */
	uint32_t padding;   /* bytes to the next header after them */
	size_t at, end;
	uint32_t n_extents;
	int have_path, have_link, have_size, have_uid, have_gid, have_mtime, sparse_major, sparse_real;
	uint64_t pax_size, pax_uid, pax_gid, real_size;
	int64_t pax_mtime;
	uint32_t pax_mtime_ns;
	struct tar_extent extents[TAR_MAX_HOLES];
	char buffer[TAR_BUFFER];
	char pax[TAR_PAX_MAX + 1];
};

#define TAR_FAIL(text) \
	do { \
		t->error = (text); \
		return -1; \
	} while (0)

static inline size_t tar_len(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

static inline int tar_is(const char *key, size_t n, const char *word)
{
	size_t i = 0;
	for (; i < n && word[i]; i++)
		if (key[i] != word[i])
			return 0;
	return i == n && !word[i];
}

/* Have at least `want` bytes at buffer[at] (want <= 512); returns 1, 0 at the clean end, or -1. */
static int tar_need(struct tar *t, size_t want)
{
	if (t->end - t->at >= want)
		return 1;
	for (size_t i = t->at; i < t->end; i++)
		t->buffer[i - t->at] = t->buffer[i];
	t->end -= t->at;
	t->at = 0;
	while (t->end < want) {
		long n = t->fill(t->context, t->buffer + t->end, TAR_BUFFER - t->end);
		if (n < 0)
			TAR_FAIL("the stream can't be read");
		if (n == 0) {
			if (t->end == 0)
				return 0;
			TAR_FAIL("it ends in the middle");
		}
		t->end += (size_t)n;
	}
	return 1;
}

static inline void tar_take(struct tar *t, size_t n)
{
	t->at += n;
	t->offset += n;
}

/* Point *data at some of the current entry's data, at most `max` bytes; returns their number, 0 when there are no more. */
static long tar_data(struct tar *t, const char **data, uint64_t max)
{
	if (max > t->remaining)
		max = t->remaining;
	if (max == 0)
		return 0;
	if (t->at == t->end) {
		long n;
		t->at = t->end = 0;
		n = t->fill(t->context, t->buffer, TAR_BUFFER);
		if (n < 0)
			TAR_FAIL("the stream can't be read");
		if (n == 0)
			TAR_FAIL("it ends in the middle of a file");
		t->end = (size_t)n;
	}
	if (max > t->end - t->at)
		max = t->end - t->at;
	*data = t->buffer + t->at;
	tar_take(t, (size_t)max);
	t->remaining -= max;
	return (long)max;
}

/* Skip what is left of the current entry. */
static int tar_skip(struct tar *t)
{
	uint64_t n = t->remaining + t->padding, have = t->end - t->at;
	t->padding = 0;
	if (t->skip && n > have) {
		t->remaining = 0;
		tar_take(t, (size_t)have);
		t->offset += n - have;
		if (t->skip(t->context, n - have) < 0)
			TAR_FAIL("it ends in the middle of a file");
		return 0;
	}
	t->remaining = n;
	while (t->remaining) {
		const char *ignored;
		if (tar_data(t, &ignored, t->remaining) < 0)
			return -1;
	}
	return 0;
}

/* Parse a number of a header: octal, or GNU's base 256. */
static int tar_number(struct tar *t, const char *field, int n, int64_t *out)
{
	const unsigned char *p = (const unsigned char *)field;
	uint64_t v = 0;
	int i = 0;
	if (p[0] & 0x80) {
		int negative = !!(p[0] & 0x40);
		unsigned char fill = negative ? 0xff : 0;
		for (; i < n - 8; i++)
			if ((i == 0 ? (p[0] & 0x7f) | (negative ? 0x80 : 0) : p[i]) != fill)
				TAR_FAIL("a number of a header is out of range");
		for (; i < n; i++)
			v = v << 8 | (i == 0 ? (p[0] & 0x7f) | (negative ? 0x80u : 0u) : p[i]);
		if (n <= 8 && negative)
			TAR_FAIL("a number of a header is negative");
		if ((int64_t)v < 0 && !negative)
			TAR_FAIL("a number of a header is out of range");
		*out = (int64_t)v;
		return 0;
	}
	while (i < n && p[i] == ' ')
		i++;
	for (; i < n && p[i] >= '0' && p[i] <= '7'; i++) {
		if (v >> 60)
			TAR_FAIL("a number of a header is out of range");
		v = v << 3 | (p[i] - '0');
	}
	for (; i < n; i++)
		if (p[i] != ' ' && p[i] != 0)
			TAR_FAIL("a number of a header is no number");
	*out = (int64_t)v;
	return 0;
}

/* Decimal digits of a pax value. */
static int tar_decimal(struct tar *t, const char *p, size_t n, uint64_t *out)
{
	uint64_t v = 0;
	if (n == 0)
		TAR_FAIL("an extended header holds an empty number");
	for (size_t i = 0; i < n; i++) {
		if (p[i] < '0' || p[i] > '9' || v > (UINT64_MAX >> 1) / 10 - 1)
			TAR_FAIL("a number of an extended header is no number, or out of range");
		v = v * 10 + (uint64_t)(p[i] - '0');
	}
	*out = v;
	return 0;
}

/* [-]seconds[.fraction] */
static int tar_time(struct tar *t, const char *p, size_t n)
{
	int negative = n && *p == '-';
	size_t dot = 0;
	uint64_t v;
	uint32_t ns = 0, scale = 100000000;
	p += negative, n -= (size_t)negative;
	while (dot < n && p[dot] != '.')
		dot++;
	if (tar_decimal(t, p, dot, &v) < 0)
		return -1;
	for (size_t i = dot + 1; i < n; i++, scale /= 10) {
		if (p[i] < '0' || p[i] > '9')
			TAR_FAIL("a time of an extended header is no number");
		ns += (uint32_t)(p[i] - '0') * scale;
	}
	t->pax_mtime = negative ? -(int64_t)v : (int64_t)v;
	if (negative && ns) {
		t->pax_mtime--;
		ns = 1000000000 - ns;
	}
	t->pax_mtime_ns = ns;
	t->have_mtime = 1;
	return 0;
}

static int tar_path(struct tar *t, char *to, const char *from, size_t n)
{
	if (n > TAR_PATH_MAX)
		TAR_FAIL("a name is longer than 4096 bytes");
	for (size_t i = 0; i < n; i++) {
		if (!from[i])
			TAR_FAIL("a name holds a NUL byte");
		to[i] = from[i];
	}
	to[n] = 0;
	return 0;
}

static int tar_extent(struct tar *t, uint64_t offset, uint64_t length)
{
	if (t->n_extents == TAR_MAX_HOLES)
		TAR_FAIL("a sparse file has too many holes");
	t->extents[t->n_extents].offset = offset;
	t->extents[t->n_extents++].length = length;
	return 0;
}

/* "offset,length,offset,length…" (GNU sparse 0.1) */
static int tar_sparse_map(struct tar *t, const char *p, size_t n)
{
	uint64_t pair[2];
	int which = 0;
	t->n_extents = 0;
	while (n) {
		size_t comma = 0;
		while (comma < n && p[comma] != ',')
			comma++;
		if (tar_decimal(t, p, comma, &pair[which]) < 0)
			return -1;
		if (which && tar_extent(t, pair[0], pair[1]) < 0)
			return -1;
		which = !which;
		n -= comma, p += comma;
		if (n)
			n--, p++;
	}
	if (which)
		TAR_FAIL("a sparse map has an odd length");
	return 0;
}

/* Parse the records of an extended header, in t->pax. */
static int tar_pax(struct tar *t, struct tar_entry *e, size_t size)
{
	size_t i = 0;
	uint64_t number, pending = 0;
	int is_pending = 0;
	e->n_xattrs = 0;
	while (i < size) {
		size_t digits = 0, length = 0, key, n, value, value_len;
		const char *p = t->pax + i, *k, *v;
		while (digits < 8 && i + digits < size && p[digits] >= '0' && p[digits] <= '9')
			length = length * 10 + (size_t)(p[digits++] - '0');
		if (!digits || i + digits >= size || p[digits] != ' ' || length > size - i || length < digits + 3 || p[length - 1] != '\n')
			TAR_FAIL("an extended header is malformed");
		key = digits + 1;
		for (n = 0; key + n < length - 1 && p[key + n] != '='; n++)
			if (!p[key + n])
				TAR_FAIL("an extended header is malformed");
		if (!n || key + n >= length - 1)
			TAR_FAIL("an extended header is malformed");
		value = key + n + 1;
		value_len = length - 1 - value;
		k = p + key, v = p + value;
		i += length;
		if (tar_is(k, n, "path")) {
			if (!t->sparse_real && tar_path(t, e->name, v, value_len) < 0)
				return -1;
			t->have_path |= value_len > 0;
		} else if (tar_is(k, n, "linkpath")) {
			if (tar_path(t, e->link, v, value_len) < 0)
				return -1;
			t->have_link = value_len > 0;
		} else if (tar_is(k, n, "size")) {
			if (tar_decimal(t, v, value_len, &t->pax_size) < 0)
				return -1;
			t->have_size = 1;
		} else if (tar_is(k, n, "uid")) {
			if (tar_decimal(t, v, value_len, &t->pax_uid) < 0)
				return -1;
			t->have_uid = 1;
		} else if (tar_is(k, n, "gid")) {
			if (tar_decimal(t, v, value_len, &t->pax_gid) < 0)
				return -1;
			t->have_gid = 1;
		} else if (tar_is(k, n, "mtime")) {
			if (tar_time(t, v, value_len) < 0)
				return -1;
		} else if (n > 13 && tar_is(k, 13, "SCHILY.xattr.")) {
			struct tar_xattr *x = &e->xattrs[e->n_xattrs];
			if (e->n_xattrs++ == TAR_MAX_XATTRS)
				TAR_FAIL("an entry has too many extended attributes");
			x->name = k + 13, x->name_len = n - 13, x->value = v, x->value_len = value_len;
		} else if (tar_is(k, n, "GNU.sparse.major")) {
			t->sparse_major = tar_is(v, value_len, "1");
		} else if (tar_is(k, n, "GNU.sparse.name")) {
			if (tar_path(t, e->name, v, value_len) < 0)
				return -1;
			t->have_path = t->sparse_real = 1;
		} else if (tar_is(k, n, "GNU.sparse.realsize") || tar_is(k, n, "GNU.sparse.size")) {
			if (tar_decimal(t, v, value_len, &t->real_size) < 0)
				return -1;
			t->sparse_real = 1;
		} else if (tar_is(k, n, "GNU.sparse.map")) {
			if (tar_sparse_map(t, v, value_len) < 0)
				return -1;
		} else if (tar_is(k, n, "GNU.sparse.offset")) {
			if (tar_decimal(t, v, value_len, &pending) < 0)
				return -1;
			is_pending = 1;
		} else if (tar_is(k, n, "GNU.sparse.numbytes")) {
			if (tar_decimal(t, v, value_len, &number) < 0)
				return -1;
			if (!is_pending || tar_extent(t, pending, number) < 0)
				TAR_FAIL("a sparse map is malformed");
			is_pending = 0;
		}
	}
	return 0;
}

/* Read n bytes of data into `to`. */
static int tar_read(struct tar *t, char *to, size_t n)
{
	while (n) {
		const char *data;
		long got = tar_data(t, &data, n);
		if (got <= 0)
			return -1;
		for (long i = 0; i < got; i++)
			to[i] = data[i];
		to += got, n -= (size_t)got;
	}
	return 0;
}

/* GNU sparse 1.0: the map is before the data, as decimal lines in whole blocks. */
static int tar_sparse_lines(struct tar *t)
{
	uint64_t values[2] = {0, 0}, count = 0, v = 0;
	int state = -1; /* -1: the count; 0: an offset; 1: a length */
	size_t at = 512, digits = 0;
	char block[512];
	t->n_extents = 0;
	for (;;) {
		if (at == 512) {
			if (t->remaining < 512)
				TAR_FAIL("a sparse map is malformed");
			if (tar_read(t, block, 512) < 0)
				return -1;
			at = 0;
		}
		if (block[at] >= '0' && block[at] <= '9' && digits < 19) {
			v = v * 10 + (uint64_t)(block[at++] - '0');
			if (v > UINT64_MAX >> 1)
				TAR_FAIL("a sparse map is out of range");
			digits++;
			continue;
		}
		if (block[at++] != '\n' || !digits)
			TAR_FAIL("a sparse map is malformed");
		if (state < 0)
			count = v;
		else
			values[state] = v;
		if (state == 1) {
			if (tar_extent(t, values[0], values[1]) < 0)
				return -1;
			count--;
		}
		if (count == 0)
			return 0;
		state = state < 0 ? 0 : !state;
		v = digits = 0;
	}
}

/* Old GNU sparse: four extents in the header, 21 in each further block. */
static int tar_sparse_header(struct tar *t, const char *header)
{
	char block[512];
	const char *p = header + 386;
	int n = 4, more = header[482] != 0;
	int64_t a, b, real;
	if (tar_number(t, header + 483, 12, &real) < 0)
		return -1;
	if (real < 0)
		TAR_FAIL("a sparse map is out of range");
	t->real_size = (uint64_t)real;
	t->n_extents = 0;
	for (;;) {
		for (int i = 0; i < n && p[24 * i]; i++) {
			if (tar_number(t, p + 24 * i, 12, &a) < 0 || tar_number(t, p + 24 * i + 12, 12, &b) < 0)
				return -1;
			if (a < 0 || b < 0)
				TAR_FAIL("a sparse map is out of range");
			if (tar_extent(t, (uint64_t)a, (uint64_t)b) < 0)
				return -1;
		}
		if (!more)
			return 0;
		if (tar_need(t, 512) <= 0)
			TAR_FAIL("it ends in the middle of a sparse map");
		for (int i = 0; i < 512; i++)
			block[i] = t->buffer[t->at + (size_t)i];
		tar_take(t, 512);
		p = block, n = 21, more = block[504] != 0;
	}
}

static int tar_check_sparse(struct tar *t, struct tar_entry *e)
{
	uint64_t at = 0, sum = 0;
	for (uint32_t i = 0; i < t->n_extents; i++) {
		struct tar_extent x = t->extents[i];
		if (x.offset < at || x.length > t->real_size || x.offset > t->real_size - x.length)
			TAR_FAIL("a sparse map does not ascend, or leaves the file");
		at = x.offset + x.length;
		sum += x.length;
	}
	if (sum != t->remaining)
		TAR_FAIL("a sparse map does not add up to the data");
	e->size = t->real_size;
	e->n_extents = t->n_extents;
	return 0;
}

static int tar_header_ok(const char *h)
{
	unsigned long unsigned_sum = 0;
	long signed_sum = 0, stored = 0;
	int i, digits = 0;
	for (i = 0; i < 512; i++) {
		char c = i >= 148 && i < 156 ? ' ' : h[i];
		unsigned_sum += (unsigned char)c;
		signed_sum += (signed char)c;
	}
	for (i = 148; i < 156 && h[i] == ' '; i++)
		;
	for (; i < 156 && h[i] >= '0' && h[i] <= '7'; i++, digits++)
		stored = stored * 8 + (h[i] - '0');
	return digits && ((unsigned long)stored == unsigned_sum || stored == signed_sum);
}

/* Read the next entry; returns 1, 0 at the end, or -1 (t->error says why). */
static int tar_next(struct tar *t, struct tar_entry *e)
{
	int have_long = 0, have_long_link = 0, zero_blocks = 0, extended = 0;
	t->have_path = t->have_link = t->have_size = t->have_uid = t->have_gid = t->have_mtime = 0;
	t->sparse_major = t->sparse_real = 0;
	t->n_extents = 0;
	t->real_size = 0;
	e->n_xattrs = e->n_extents = 0;
	e->name[0] = e->link[0] = 0;
	for (;;) {
		const char *h;
		int64_t size, mode, uid, gid, mtime;
		size_t n, m;
		int got, gnu, posix;
		char type, header[512];

		if (tar_skip(t) < 0)
			return -1;
		got = tar_need(t, 512);
		if (got < 0)
			return -1;
		if (got == 0) {
			if (extended)
				TAR_FAIL("it ends after an extended header");
			return 0;
		}
		h = t->buffer + t->at;
		for (n = 0; n < 512 && !h[n]; n++)
			;
		if (n == 512) {
			tar_take(t, 512);
			if (++zero_blocks == 2) {
				if (extended)
					TAR_FAIL("it ends after an extended header");
				return 0;
			}
			continue;
		}
		if (zero_blocks)
			TAR_FAIL("an entry follows a block of zeros");
		if (!tar_header_ok(h))
			TAR_FAIL("the checksum of a header is wrong: this is no tar, or a broken one");
		for (n = 0; n < 512; n++)
			header[n] = h[n];
		h = header;
		tar_take(t, 512);
		if (tar_number(t, h + 124, 12, &size) < 0)
			return -1;
		if (size < 0)
			TAR_FAIL("the size of an entry is negative");
		type = h[156] ? h[156] : '0';
		if (type == '7')
			type = '0';
		t->remaining = (uint64_t)size;
		t->padding = (uint32_t)(-(uint64_t)size & 511);
		if (type == 'x' || type == 'X' || type == 'L' || type == 'K') {
			if (size > (type == 'x' || type == 'X' ? TAR_PAX_MAX : TAR_PATH_MAX + 1))
				TAR_FAIL("an extended header is too large");
			if (++extended > 8)
				TAR_FAIL("an entry has too many extended headers");
			if (type == 'x' || type == 'X') {
				if (tar_read(t, t->pax, (size_t)size) < 0)
					return -1;
				t->pax[size] = 0;
				if (tar_pax(t, e, (size_t)size) < 0)
					return -1;
			} else {
				char *to = type == 'L' ? e->name : e->link, scratch[TAR_PATH_MAX + 2];
				if (tar_read(t, scratch, (size_t)size) < 0)
					return -1;
				scratch[size] = 0;
				n = tar_len(scratch);
				if (n > TAR_PATH_MAX)
					TAR_FAIL("a name is longer than 4096 bytes");
				if (type == 'L' ? t->have_path : t->have_link)
					continue; /* the value of pax takes precedence */
				if (tar_path(t, to, scratch, n) < 0)
					return -1;
				*(type == 'L' ? &have_long : &have_long_link) = 1;
			}
			continue;
		}
		if (type == 'g' || type == 'V')
			continue; /* it is for the whole archive, and has nothing that we keep */
		if (tar_number(t, h + 100, 8, &mode) < 0 || tar_number(t, h + 108, 8, &uid) < 0 ||
		    tar_number(t, h + 116, 8, &gid) < 0 || tar_number(t, h + 136, 12, &mtime) < 0)
			return -1;
		gnu = h[257] == 'u' && h[258] == 's' && h[259] == 't' && h[260] == 'a' && h[261] == 'r' && h[262] == ' ';
		posix = !gnu && h[257] == 'u' && h[258] == 's' && h[259] == 't' && h[260] == 'a' && h[261] == 'r' && !h[262];
		if (!t->have_path && !have_long) {
			n = 0;
			if (posix && h[345]) {
				for (m = 0; m < 155 && h[345 + m]; m++)
					e->name[n++] = h[345 + m];
				e->name[n++] = '/';
			}
			for (m = 0; m < 100 && h[m]; m++)
				e->name[n++] = h[m];
			e->name[n] = 0;
		}
		if (!t->have_link && !have_long_link) {
			for (m = 0; m < 100 && h[157 + m]; m++)
				e->link[m] = h[157 + m];
			e->link[m] = 0;
		}
		n = tar_len(e->name);
		if (!n)
			TAR_FAIL("an entry has no name");
		if (type == '0' && e->name[n - 1] == '/')
			type = '5'; /* the form of directories before 1988 */
		if (t->have_size) {
			t->remaining = t->pax_size;
			t->padding = (uint32_t)(-t->pax_size & 511);
		}
		if (t->have_uid)
			uid = (int64_t)t->pax_uid;
		if (t->have_gid)
			gid = (int64_t)t->pax_gid;
		if (uid < 0 || uid > 0xfffffffeL || gid < 0 || gid > 0xfffffffeL)
			TAR_FAIL("the owner of an entry is out of range");
		e->uid = (uint32_t)uid, e->gid = (uint32_t)gid;
		e->mode = (uint32_t)mode & 07777;
		e->mtime = t->have_mtime ? t->pax_mtime : mtime;
		e->mtime_ns = t->have_mtime ? t->pax_mtime_ns : 0;
		e->size = 0;
		if (type == 'S') {
			if (tar_sparse_header(t, h) < 0 || tar_check_sparse(t, e) < 0)
				return -1;
			type = '0';
		} else if (type == '0') {
			e->size = t->remaining;
			if (t->sparse_real) {
				if (t->sparse_major && tar_sparse_lines(t) < 0)
					return -1;
				if (tar_check_sparse(t, e) < 0)
					return -1;
			}
		} else if (type >= '1' && type <= '6') {
			t->remaining = t->padding = 0; /* links, devices, directories and FIFOs carry no data */
		} else {
			TAR_FAIL("an entry is of an unknown type");
		}
		e->type = type;
		e->offset = t->offset;
		return 1;
	}
}

#endif
