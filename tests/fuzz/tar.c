/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer target: the reader of tar streams.  What tar.h promises is checked for every entry it gives out.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Icsrc tests/fuzz/tar.c -o tar-fuzzer && ./tar-fuzzer SEEDS
 *
 * The mutator mends the checksums of headers, or nearly everything would end at the first.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tar.h"

static const char *input;
static size_t input_len, piece;
static struct tar tar;
static struct tar_entry entry;

#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "not true: %s\n", #condition); \
			abort(); \
		} \
	} while (0)

static long fill(void *context, char *to, size_t max)
{
	size_t n = max < piece ? max : piece;
	(void)context;
	if (n > input_len)
		n = input_len;
	memcpy(to, input, n);
	input += n, input_len -= n;
	return (long)n;
}

static int skip(void *context, uint64_t n)
{
	(void)context;
	if (n > input_len)
		return -1;
	input += n, input_len -= n;
	return 0;
}

static int within(const char *p, size_t n)
{
	return p >= tar.pax && p + n <= tar.pax + sizeof tar.pax;
}

static void check_entry(void)
{
	uint64_t end = 0, sum = 0;
	CHECK(memchr(entry.name, 0, sizeof entry.name) && memchr(entry.link, 0, sizeof entry.link));
	CHECK(strchr("0123456", entry.type) && entry.type);
	CHECK(entry.mtime_ns < 1000000000);
	CHECK(entry.size < (uint64_t)1 << 63 && tar.remaining < (uint64_t)1 << 63);
	CHECK(entry.n_xattrs <= TAR_MAX_XATTRS && entry.n_extents <= TAR_MAX_HOLES);
	for (uint32_t i = 0; i < entry.n_xattrs; i++) {
		CHECK(within(entry.xattrs[i].name, entry.xattrs[i].name_len));
		CHECK(within(entry.xattrs[i].value, entry.xattrs[i].value_len));
	}
	for (uint32_t i = 0; i < entry.n_extents; i++) {
		CHECK(tar.extents[i].offset >= end);
		end = tar.extents[i].offset + tar.extents[i].length;
		sum += tar.extents[i].length;
		CHECK(end >= tar.extents[i].offset && end <= entry.size);
	}
	if (entry.n_extents)
		CHECK(sum == tar.remaining);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const size_t pieces[] = {1 << 20, 512, 511, 1};
	int got, entries = 0, read = size & 1;
	memset(&tar, 0, offsetof(struct tar, extents));
	input = (const char *)data, input_len = size;
	piece = pieces[(size >> 1) & 3];
	tar.fill = fill;
	tar.skip = (size >> 3) & 1 ? skip : NULL;
	while ((got = tar_next(&tar, &entry)) > 0) {
		const char *part;
		long n;
		check_entry();
		CHECK(++entries <= 1 + (int)(size / 512));
		while (read && (n = tar_data(&tar, &part, 1 << 16)) > 0)
			CHECK(part >= tar.buffer && part + n <= tar.buffer + sizeof tar.buffer);
	}
	CHECK(got == 0 || tar.error);
	return 0;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	(void)seed;
	size = LLVMFuzzerMutate(data, size, max);
	for (size_t at = 0; at + 512 <= size; at += 512) {
		unsigned sum = 0;
		char text[8];
		if (memcmp(data + at + 257, "ustar", 5) != 0)
			continue;
		memset(data + at + 148, ' ', 8);
		for (size_t i = 0; i < 512; i++)
			sum += data[at + i];
		snprintf(text, sizeof text, "%06o", sum & 0777777);
		memcpy(data + at + 148, text, 7);
	}
	return size;
}
