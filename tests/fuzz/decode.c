/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer target: what nsrun-init and nsrun-door read (csrc/decode.h).  What is given out must lie within the input.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Icsrc tests/fuzz/decode.c -o decode-fuzzer && ./decode-fuzzer SEEDS
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decode.h"

#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "not true: %s\n", #condition); \
			abort(); \
		} \
	} while (0)

#define MAX 64

static const char *const kinds[] = {"", "i", "s", "l", "ii", "is", "ss", "sssi", "isi", "ssi", "sl", "iii", "iili", "ll", "ill",
                                    "li", "siiiii", "ssiiiii", "sbi", "bbbi", "bb", "sisii", "lsii", "iiiiiiibbilbb", "ilb"};

static void check_strings(const char *const *strings, int n, const char *from, const char *end)
{
	size_t sum = 0;
	CHECK(n <= MAX && strings[n] == NULL);
	for (int i = 0; i < n; i++) {
		CHECK(strings[i] >= from && strings[i] < end && memchr(strings[i], 0, (size_t)(end - strings[i])));
		sum += strlen(strings[i]) + 1;
	}
	CHECK(sum <= (size_t)(end - from));
}

static void read_plan(const char *p, const char *end)
{
	const char *strings[MAX + 1];
	struct arg a[16];
	uint32_t code;

	while (take(&p, end, &code, sizeof code) && code < sizeof kinds / sizeof *kinds) {
		const char *from = p;
		if (!decode_args(kinds[code], &p, end, a))
			return;
		CHECK(p >= from && p <= end);
		for (int i = 0; kinds[code][i]; i++) {
			CHECK(a[i].s >= from && a[i].s + a[i].len <= end);
			if (kinds[code][i] == 's')
				CHECK(strlen(a[i].s) + 1 == a[i].len);
			if (kinds[code][i] == 'l') {
				int n = split_strings(a[i].s, a[i].len, strings, MAX);
				if (n >= 0)
					check_strings(strings, n, a[i].s, a[i].s + a[i].len);
			}
		}
	}
}

static void read_request(const char *p, const char *end)
{
	const char *strings[MAX + 1], *list;
	int32_t numbers[MAX];

	for (int i = 0; i < 3; i++) {
		int n = take_numbers(&p, end, numbers, MAX, 512);
		CHECK(n <= MAX && p <= end);
		for (int k = 0; k < n; k++)
			CHECK(numbers[k] >= 0 && numbers[k] < 512);
		if (n < 0)
			return;
	}
	for (int i = 0; i < 3; i++) {
		uint32_t len;
		int n;
		if (!take_list(&p, end, &list, &len))
			return;
		CHECK(p <= end && list + len == p);
		n = split_strings(list, len, strings, MAX);
		CHECK(count_strings(list, len) <= MAX ? n == count_strings(list, len) : n < 0);
		if (n >= 0)
			check_strings(strings, n, list, end);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* at its true length, so that ASan sees the first byte too many */
	char *copy = malloc(size ? size : 1);
	memcpy(copy, data, size);
	if (size) {
		if (copy[0] & 1)
			read_plan(copy + 1, copy + size);
		else
			read_request(copy + 1, copy + size);
	}
	free(copy);
	return 0;
}
