/* SPDX-License-Identifier: Apache-2.0 */
/*
 * front.c: what is executed first when somebody types nsrun.  It replays a plan that Python left behind, or executes Python.
 *
 * A plan is data, so what Python would do for the same words can be done without it, as long as everything that Python looked
 * at is as it was.  The front hashes the words up to the member's command, looks for a compiled plan of that name (REPLAY in
 * protocol.h), checks its witnesses (witnesses.h), and carries the steps out (steps.h, leave.h): exec in 2 ms instead of 12, join
 * in 4 and pod create in 2 instead of 16.  In every other case (no plan, a witness that changed, a step that fails) what was
 * begun ends with its descriptors or is taken back, and Python runs the very same words.  So the front knows no option and has
 * no messages; the one thing that it could do wrong is to be stale.
 *
 * No program has started until op_release(): if we are killed before, nsrun-init reads the end of its channel and exits, and
 * what lies on disk is rubbish that nobody holds, as when Python is killed.  From there on we are what Python is there: all
 * signals are blocked until we are the monitor, or have told it to go on.
 *
 * docs/replay.md tells more.  NSRUN_REPLAY=0 goes without; =must fails instead of executing Python, for tests.
 */
#include "compiled.h"
#include "leave.h"
#include "steps.h"
#include "witnesses.h"

#define SCRIPT "/nsrun-python"

static char plan_path[PATH_MAX];

/* ---- a compiled plan ------------------------------------------------------------------------------- */

static const struct op ops[] = {
#define ENTRY(name, args) {args, op_##name},
	/* clang-format off: a table */
	REPLAY(ENTRY)
	/* clang-format on */
};
#define N_OPS (sizeof ops / sizeof *ops)

/* Returns whether it is a plan for our words; one that is, and fails on the way, leaves the rest to Python. */
static int run_plan(char *begin, char *end)
{
	const char *p = begin;
	struct replay_header head;
	struct arg a[16];
	uint32_t code;

	plan_begin = begin, plan_end = end;
	if (!is_plan(&p, end, &head))
		return 0;
	for (uint32_t i = 0; i < head.count; i++)
		if (!take(&p, end, &code, sizeof code) || code >= N_OPS || !decode_args(ops[code].args, &p, end, a) || ops[code].run(a) < 0)
			return i > 0;
	return 1;
}

/* FNV-1a of the words so far, each with its NUL. */
static uint64_t hash_word(uint64_t hash, const char *word)
{
	do
		hash = (hash ^ (unsigned char)*word) * 0x100000001b3;
	while (*word++);
	return hash;
}

static int fits(const char *root)
{
	return root[0] == '/' && str_len(root) < PATH_MAX - 64;
}

static void replay(void)
{
	char *name;
	const char *root = variable("NSRUN_ROOT");
	uint64_t hash = 0xcbf29ce484222325;

	if (!HAS_BUILD || SYS0(geteuid) != 0 || SYS0(getuid) != 0 || (root && *root && !fits(root)))
		return;
	to_ours();
	if (!are_free())
		return;
	name = put_str(plan_path, root && *root ? root : "/run/nsrun");
	name = put_str(name, root && *root ? "/run/plans/" : "/plans/");
	for (n_words = 1; n_words < argc_ && n_words <= REPLAY_WORDS; n_words++) {
		char *text;
		size_t size;
		long fd;
		hash = hash_word(hash, argv_[n_words]);
		for (int i = 0; i < 16; i++)
			name[i] = "0123456789abcdef"[hash >> (60 - 4 * i) & 15];
		name[16] = 0;
		fd = SYS3(openat, AT_FDCWD, plan_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (fd < 0)
			continue;
		text = map_plan((int)fd, &size);
		SYS1(close, fd);
		if (!text)
			continue;
		if (run_plan(text, text + size))
			return;
	}
}

/* Whether the name that we took is still ours: `rm -f` may have ended it meanwhile, and another may have the name by now. */
static int is_ours(void)
{
	struct statx st;
	char path[PATH_MAX];

	if (!made.name || str_len(made.name) > sizeof path - 16)
		return 0;
	*put_str(put_str(path, made.name), "/held") = 0;
	return SYS5(statx, AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &st) == 0 && (long)st.stx_ino == member.held &&
	       (!member.since || nanoseconds(st.stx_btime) == member.since);
}

/* Whether whoever ends members (`stop`), or pods (`removing`), has left a mark meanwhile. */
static int is_marked(const char *mark)
{
	char path[PATH_MAX];

	if (str_len(made.name) > sizeof path - 16)
		return 0;
	*put_str(put_str(path, made.name), mark) = 0;
	return SYS3(faccessat, AT_FDCWD, path, 0) == 0;
}

/* Whether the cgroup of this name is still the one that we made: without a lock another may have made one. */
static int is_our_cgroup(void)
{
	struct statx st;

	return SYS5(statx, made.above, made.cgroup, AT_SYMLINK_NOFOLLOW, STATX_INO, &st) == 0 &&
	       (!member.cgroup || (long)st.stx_ino == member.cgroup);
}

/* End what is in the cgroup that we made, and remove that; returns whether it is gone, in 5 s. */
static int end_cgroup(void)
{
	const struct timespec pause = {.tv_nsec = 2000000};
	long fd, killer;
	int there;

	if (!made.cgroup)
		return 1;
	fd = SYS3(openat, made.above, made.cgroup, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0 && is_our_cgroup()) {
		killer = SYS3(openat, fd, "cgroup.kill", O_WRONLY | O_CLOEXEC);
		if (killer >= 0) {
			SYS3(write, killer, "1", 1);
			SYS1(close, killer);
		}
	}
	SYS1(close, fd);
	if (child >= 0) {
		SYS4(pidfd_send_signal, child, SIGKILL, NULL, 0);
		SYS5(waitid, P_PIDFD, child, NULL, WEXITED, NULL);
		child = -1;
	}
	for (int tries = 0; (there = is_our_cgroup()) && tries < 2500; tries++) {
		if (made.inner)
			SYS3(unlinkat, made.directory, made.inner, AT_REMOVEDIR);
		if (SYS3(unlinkat, made.above, made.cgroup, AT_REMOVEDIR) != -EBUSY) {
			there = is_our_cgroup();
			break;
		}
		SYS2(nanosleep, &pause, NULL);
	}
	return !there;
}

/*
 * Say that nothing was committed, and give the name back: what is left is nobody's, since our locks end with the next exec.  The
 * plan goes, too, so that whoever tries again and again does not leave that each time.
 */
static void take_back(void)
{
	char path[PATH_MAX];

	if (made.data && str_len(made.data) < sizeof path - 16) {
		*put_str(put_str(path, made.data), "/committed") = 0;
		SYS3(unlinkat, AT_FDCWD, path, 0);
	}
	if (made.name) {
		SYS4(renameat, AT_FDCWD, made.name, AT_FDCWD, made.claim);
		SYS3(unlinkat, AT_FDCWD, plan_path, 0);
	}
}

/*
 * What was begun ends: all processes of a new member or pod, and nsrun-init, if it was started.  Whatever can't be ended keeps its
 * notes and its data.  All of our descriptors end with the next exec; the caller's do not.  Returns whether somebody else has ended
 * it meanwhile, on purpose; and a signal that would have ended us in `by`.
 */
static int undo(long *by)
{
	uint32_t info[32]; /* struct signalfd_siginfo, which begins with the number */
	int gone, ended = 0;

	SYS1(close, channel);
	gone = end_cgroup();
	if (child >= 0) {
		SYS4(pidfd_send_signal, child, SIGKILL, NULL, 0);
		SYS5(waitid, P_PIDFD, child, NULL, WEXITED, NULL);
	}
	if (monitor > 0) { /* it ends when nsrun-init has, and nobody can tell it to go on; until then it keeps the member's name */
		struct pollfd p = {.fd = (int)SYS2(pidfd_open, monitor, 0), .events = POLLIN};
		struct timespec patience = {.tv_sec = 5};
		SYS1(close, go[0]);
		SYS1(close, go[1]);
		gone &= SYS5(ppoll, &p, 1, &patience, NULL, 0) > 0;
	}
	if (made.name) {
		ended = !is_ours() || is_marked("/stop") || is_marked("/removing");
		if (gone && is_ours())
			take_back();
	} else if (gone) {
		take_back();
	}
	*by = heard >= 0 && SYS3(read, heard, info, sizeof info) == sizeof info ? info[0] : 0; /* it is not pending any more */
	to_callers();
	return ended;
}

/* ---- Python ---------------------------------------------------------------------------------------- */

/*
 * Say in the environment what we have left below RUN/tmp and LIB/upper: Python sweeps it before it begins, and if nobody holds
 * it any more, which it finds out as for all rubbish, the command leaves no more than if Python had begun.
 */
static void say_what_is_left(void)
{
	static char text[PATH_MAX + 16];
	const char *ident = made.left, **variables, **v;
	size_t n = 0;

	while (envp_[n])
		n++;
	if (!ident || str_len(ident) >= PATH_MAX || !(v = variables = pointers(n + 1)))
		return;
	for (const char *c = ident; *c; c++)
		ident = *c == '/' ? c + 1 : ident;
	*put_str(put_str(text, "NSRUN_LEFT="), ident) = 0;
	for (char **e = envp_; *e; e++)
		if (!str_after(*e, "NSRUN_LEFT="))
			*v++ = *e;
	*v = text;
	envp_ = (char **)variables;
}

/* Have Python tell how it ended, which is not what the words say any more (nsrun/cli/internal.py, left). */
static void tell(const char *why, const char *what)
{
	static char *words[5];

	argc_ = 4, argv_ = words;
	words[0] = "nsrun", words[1] = "_left", words[2] = (char *)why, words[3] = (char *)what;
}

static int give_up(long error)
{
	char text[64];

	if (error == -E2BIG) {
		say("nsrun: the arguments and the environment are too long [E2BIG]\nhint: fewer, or shorter ones: execve(2)\n");
		return 125;
	}
	say("nsrun: Python can't be executed: it is expected beside the program nsrun, with nsrun-python");
	*put_str(put_num(put_str(text, " [errno "), (unsigned long)-error, 1), "]\n") = 0;
	say(text);
	say("hint: make build, or make install\n");
	return 125;
}

int main(int argc, char **argv, char **envp)
{
	const char *wish;
	char path[PATH_MAX], number[24];
	long n;

	argc_ = argc, argv_ = argv, envp_ = envp;
	wish = variable("NSRUN_REPLAY");
	if (!wish || !str_eq(wish, "0")) {
		int ended;
		long by;
		SYS4(rt_sigprocmask, SIG_SETMASK, NULL, &mask, sizeof mask);
		replay();
		if (unwritten) {
			to_callers();
			made.left = NULL;
			tell("unwritten", unwritten);
		} else if (ended = undo(&by), lost) {
			say("nsrun: setns(2) back to our own namespaces failed\n"); /* so Python would be half in the pod */
			return 125;
		} else if (released) {
			tell("killed", "");
		} else if (ended) {
			tell("ended", made.inner ? "pod" : "member");
		} else if (by) {
			*put_num(number, (unsigned long)by, 1) = 0;
			tell("interrupted", number);
		} else if (wish && str_eq(wish, "must")) {
			say("nsrun: nothing to replay\n");
			return 125;
		}
	}
	n = SYS4(readlinkat, AT_FDCWD, "/proc/self/exe", path, sizeof path - 1);
	if (n <= 0)
		n = find_ourselves(path, sizeof path - 1);
	say_what_is_left();
	if (n > 0 && to_directory(path, n))
		n = any_python(path, SCRIPT);
	return give_up(n < 0 ? n : -ENOENT);
}
