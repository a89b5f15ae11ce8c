/* SPDX-License-Identifier: Apache-2.0 */
/*
 * compiled.h: what is to be done before the first step of a compiled plan, whoever replays it (front.c, oci.c): what of our process
 * has to be as in Python, which file is one, and which descriptors are free.
 */
#ifndef NSRUN_COMPILED_H
#define NSRUN_COMPILED_H

#include "replay.h"

#ifndef NSRUN_BUILD /* "": nothing is replayed */
#define NSRUN_BUILD ""
#endif
#define HAS_BUILD (sizeof NSRUN_BUILD == sizeof((struct replay_header *)0)->build + 1)

struct op {
	const char *args;
	long (*run)(struct arg *);
};

/*
 * Signals that we treat as Python does: it ignores SIGPIPE, and SIGXFSZ, since files in memory count against RLIMIT_FSIZE; and
 * it has children to wait for, which the kernel would reap for a caller that ignores SIGCHLD (wait(2), ECHILD).
 */
static struct {
	int number;
	struct action ours, callers;
} ours[] = {{SIGPIPE, {.handler = SIG_IGN}, {0}}, {SIGXFSZ, {.handler = SIG_IGN}, {0}}, {SIGCHLD, {.handler = SIG_DFL}, {0}}};
static int replayed; /* whether we have begun to */

static void to_ours(void)
{
	replayed = 1;
	SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0); /* until our child execs, it is in the pod with our memory: kernel.c, hide() */
	for (unsigned i = 0; i < sizeof ours / sizeof *ours; i++)
		SYS4(rt_sigaction, ours[i].number, &ours[i].ours, &ours[i].callers, sizeof(sigbits));
}

/* What we treat otherwise is as it was for our caller, since Python is to see that. */
static void to_callers(void)
{
	if (replayed)
		for (unsigned i = 0; i < sizeof ours / sizeof *ours; i++)
			SYS4(rt_sigaction, ours[i].number, &ours[i].callers, NULL, sizeof(sigbits));
	SYS4(rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
}

/* Whether our streams are open, and the numbers of the plan's handles are free: a caller's descriptor is not ours to replace. */
static int are_free(void)
{
	struct rlimit64 files;

	for (int fd = 0; fd < 3; fd++)
		if (SYS2(fcntl, fd, F_GETFD) < 0)
			return 0;
	if (SYS4(prlimit64, 0, RLIMIT_NOFILE, NULL, &files) < 0 || files.rlim_cur < REPLAY_FIRST + REPLAY_HANDLES)
		return 0;
	for (int fd = REPLAY_FIRST; fd < REPLAY_FIRST + REPLAY_HANDLES; fd++)
		if (SYS2(fcntl, fd, F_GETFD) >= 0)
			return 0;
	return 1;
}

/* Read the header of a plan of our build. */
static int is_plan(const char **p, const char *end, struct replay_header *head)
{
	return take(p, end, head, sizeof *head) && memcmp(head->magic, REPLAY_MAGIC, sizeof head->magic) == 0 &&
	       memcmp(head->build, NSRUN_BUILD, sizeof head->build) == 0 && checksum(*p, (size_t)(end - *p)) == head->checksum;
}

/* Map a file that only we may write, and nobody else read; 0 when it is none. */
static char *map_plan(int fd, size_t *size)
{
	const uint32_t known = STATX_TYPE | STATX_MODE | STATX_UID | STATX_SIZE;
	struct statx st;
	long n;
	char *text;

	if (SYS5(statx, fd, "", AT_EMPTY_PATH, known, &st) < 0 || (st.stx_mode & S_IFMT) != S_IFREG || st.stx_mode & 077 ||
	    st.stx_uid != (uint32_t)SYS0(geteuid) || st.stx_size > REPLAY_BYTES || !(text = map_memory(st.stx_size)))
		return NULL;
	for (*size = 0; *size < st.stx_size; *size += (size_t)n)
		if ((n = SYS3(read, fd, text + *size, st.stx_size - *size)) <= 0)
			break;
	return text;
}

#endif
