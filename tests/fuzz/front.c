/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer target: the steps of compiled plans (csrc/front.c; with -DOCI csrc/oci.c), each with arguments of any kind, and a kernel that answers
 * anything.  What they read and write must be theirs; what they say to the kernel is not looked at.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Icsrc tests/fuzz/front.c -o front-fuzzer && ./front-fuzzer SEEDS
 *
 * An input is a number of bytes for the answers (its first byte, times four), which lie at its end, and the steps between.
 */
#define NSRUN_ENTRY_H
#define NSRUN_FLAGS ""
static long sys6(long n, long a, long b, long c, long d, long e, long f);

/* The program's own, beside those of the C library, whose headers do not go with the kernel's. */
#define memcpy  front_memcpy
#define memset  front_memset
#define memmove front_memmove
#define memcmp  front_memcmp
#define main    front_main
#ifdef OCI
#include "../../csrc/oci.c"
#else
#include "../../csrc/front.c"
#endif
#undef memcpy
#undef memset

#include <linux/filter.h>
#include <linux/seccomp.h>

void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void free(void *p);
void abort(void);
size_t strlen(const char *s);
void *memcpy(void *d, const void *s, size_t n);
void *memset(void *d, int c, size_t n);
long syscall(long number, ...);
int _setjmp(long *at) __attribute__((returns_twice));
void longjmp(long *at, int value) __attribute__((noreturn));

static const char *answers, *answers_end;
static void *maps[256];
static int n_maps, budget;
static long over[64]; /* a jmp_buf, which is smaller */

/* Write the next bytes of the answers, or zeros; returns how many there were. */
static long fill(void *to, size_t size)
{
	size_t n = (size_t)(answers_end - answers) < size ? (size_t)(answers_end - answers) : size;
	memset(to, 0, size);
	memcpy(to, answers, n);
	answers += n;
	return (long)n;
}

static void look_at(const void *bytes, size_t size)
{
	volatile unsigned char sum = 0;
	for (size_t i = 0; i < size; i++)
		sum ^= ((const unsigned char *)bytes)[i];
}

static long map(size_t size)
{
	if (size > 4 << 20 || n_maps == sizeof maps / sizeof *maps || !(maps[n_maps] = calloc(1, size ? size : 1)))
		return -ENOMEM;
	return (long)maps[n_maps++];
}

static long unmap(long at)
{
	for (int i = 0; i < n_maps; i++)
		if ((long)maps[i] == at) {
			free(maps[i]);
			maps[i] = maps[--n_maps];
			return 0;
		}
	return -EINVAL;
}

static long any_error(long otherwise)
{
	unsigned char wish = 0;
	fill(&wish, 1);
	return wish > 200 ? -(long)(wish - 200) : otherwise;
}

static long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	(void)d, (void)f;
	if (n == __NR_exit_group || --budget < 0)
		longjmp(over, 1);
	switch (n) {
	case __NR_mmap:
		return map((size_t)b);
	case __NR_munmap:
		return unmap(a);
	case __NR_read:
		return fill((void *)b, (size_t)c);
	case __NR_write:
		look_at((const void *)b, (size_t)c);
		return any_error(c);
	case __NR_getdents64:
		return fill((void *)b, (size_t)c);
	case __NR_getrandom:
		fill((void *)a, (size_t)b);
		return b;
	case __NR_clock_gettime:
		*(struct timespec *)b = (struct timespec){.tv_sec = 1700000000, .tv_nsec = 5};
		return 0;
	case __NR_capget:
		fill((void *)b, 2 * sizeof(struct __user_cap_data_struct));
		return 0;
	case __NR_prctl:
		return b < 41 ? b & 1 : -EINVAL;
	case __NR_pipe2:
		memcpy((void *)a, (int[]){100, 101}, 2 * sizeof(int));
		return any_error(0);
	case __NR_socketpair:
		memcpy((void *)d, (int[]){100, 101}, 2 * sizeof(int));
		return any_error(0);
	case __NR_statx:
		look_at((const void *)b, strlen((const char *)b));
		fill((void *)e, sizeof(struct statx));
		return any_error(0);
	case __NR_readlinkat:
		look_at((const void *)b, strlen((const char *)b));
		return fill((void *)c, (size_t)d);
	case __NR_bind:
		look_at((const void *)b, (size_t)c);
		return any_error(0);
	case __NR_fstatfs:
		fill((void *)b, sizeof(struct statfs));
		return 0;
	case __NR_fcntl:
		return b == F_GETFD ? -EBADF : any_error(a);
	case __NR_renameat:
		look_at((const void *)d, strlen((const char *)d));
		/* fallthrough */
	case __NR_openat:
	case __NR_openat2:
	case __NR_open_tree:
	case __NR_mkdirat:
	case __NR_unlinkat:
	case __NR_fchmodat:
	case __NR_fchownat:
	case __NR_execveat:
		look_at((const void *)b, strlen((const char *)b));
		return any_error(102);
	default:
		return any_error(0);
	}
}

/* What begins a process is written in assembler (launch.h): here it gets an error from the kernel itself. */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct sock_filter refuse[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_clone3, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {.len = sizeof refuse / sizeof *refuse, .filter = refuse};

	(void)argc, (void)argv;
	syscall(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (syscall(__NR_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0)
		abort();
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char *words[] = {"nsrun", "exec", "m", "sh", "-c", "echo \"\\\t\x01", NULL};
	static char *variables[] = {"NSRUN_ROOT=/a", "TERM=x", NULL};
#ifdef OCI
	static const char text[] = "{\"a\":\"c1\",\"process\":{\"args\":[\"x\"],\"env\":[\"A=b\"]},\"mounts\":[{\"a\":1}, {\"b\":2}]}";
#endif
	size_t n_answers = size ? 4 * (size_t)data[0] : 0, n_steps;
	char *steps;
	const char *p, *end;

	if (size < 1 + n_answers)
		return 0;
	n_steps = size - 1 - n_answers;
	steps = malloc(n_steps); /* at its true length, so that ASan sees the first byte too many */
	if (!steps)
		abort();
	memcpy(steps, data + 1, n_steps);
	answers = (const char *)data + 1 + n_steps, answers_end = answers + n_answers;
	argc_ = 6, argv_ = words, envp_ = variables, n_words = 2, budget = 20000;
	plan_begin = steps, plan_end = steps + n_steps;
#ifdef OCI
	asked.process = n_steps % 2 ? "process" : NULL, asked.pid_file = "/run/x/pid", asked.bundle = "/a/b";
	ident = "c1", config_size = sizeof text - 1;
	config = malloc(sizeof text), listed = malloc(2 * sizeof text);
	if (!config || !listed)
		abort();
	memcpy(config, text, sizeof text);
#endif
	p = steps, end = steps + n_steps;
	if (!_setjmp(over)) {
		struct arg a[16];
		uint32_t code;
		while (take(&p, end, &code, sizeof code) && code < N_OPS && decode_args(ops[code].args, &p, end, a))
			ops[code].run(a);
	}
	while (n_maps)
		free(maps[--n_maps]);
	free(steps);
	channel = child = monitor = go[0] = go[1] = -1, lost = released = 0;
#ifdef OCI
	container = told = -1, done = forced = n_joins = 0;
	free(config), free(listed);
	memset(drawn, 0, sizeof drawn);
	memset(was_same, 0, sizeof was_same);
	memset(&begun, 0, sizeof begun);
	memset(noted, 0, sizeof noted);
	memset(&passwd, 0, sizeof passwd);
	memset(&asked, 0, sizeof asked);
	memset(&first, 0, sizeof first);
#endif
	return 0;
}
