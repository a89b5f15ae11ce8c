/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What csrc/process.h reads of a file of `exec --process`: nothing beyond its end, and nothing that is no text.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Icsrc tests/fuzz/process.c -o process-fuzzer && ./process-fuzzer SEEDS
 *
 * With -DPRINT it is a program: it reads such files, each with its length before it, and prints what they say; tests/test_fuzz.py
 * compares that with what Python reads.  The frame is that of SHAPE there.
 */
#define NSRUN_ENTRY_H
static long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	(void)n, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
	return -1;
}

#define memcpy  process_memcpy
#define memset  process_memset
#define memmove process_memmove
#define memcmp  process_memcmp
#include "../../csrc/process.h"
#undef memcpy

void *malloc(size_t size);
void free(void *p);
void abort(void);
void *memcpy(void *d, const void *s, size_t n);
long read(int fd, void *to, size_t n);
long write(int fd, const void *from, size_t n);

static const char frame[] = "\"user\":{\"uid\":0}\0\"cwd\":\"/\"";
static struct strings args, env;

static int take_one(const uint8_t *data, size_t size, char **to)
{
	char *text = malloc(size + 1); /* both at their true lengths, so that ASan sees the first byte too many */
	int is;

	*to = malloc(size);
	if (!text || (size && !*to))
		abort();
	memcpy(text, data, size);
	text[size] = 0;
	is = read_process(text, size, frame, sizeof frame, *to, &args, &env);
	free(text);
	return is;
}

#ifdef PRINT
/* Whether there is as much; a pipe may give less at once. */
static int read_all(void *to, size_t size)
{
	for (size_t at = 0; at < size;) {
		long n = read(0, (char *)to + at, size - at);
		if (n <= 0)
			return 0;
		at += (size_t)n;
	}
	return 1;
}

int main(int argc, char **argv, char **envp)
{
	uint32_t size;

	(void)argc, (void)argv, (void)envp;
	while (read_all(&size, sizeof size)) {
		uint8_t *data = malloc(size + 1);
		char *to;
		uint32_t is = 0;
		if (!data || !read_all(data, size))
			abort();
		is = (uint32_t)take_one(data, size, &to);
		write(1, &is, sizeof is);
		for (struct strings *one = &args; is && one; one = one == &args ? &env : NULL) {
			write(1, &one->len, sizeof one->len);
			write(1, one->s, one->len);
		}
		free(data);
		free(to);
	}
	return 0;
}
#else
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *to;

	if (take_one(data, size, &to))
		for (struct strings *one = &args; one; one = one == &args ? &env : NULL) {
			uint32_t count = 0;
			for (uint32_t i = 0; i < one->len; i++) {
				if (one->s[i] & 0x80)
					abort();
				count += !one->s[i];
			}
			if (count != one->count)
				abort();
		}
	free(to);
	return 0;
}
#endif
