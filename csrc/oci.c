/* SPDX-License-Identifier: Apache-2.0 */
/*
 * oci.c: the command nsrun-oci, an OCI runtime.  An engine executes it by its path, often without PATH and HOME; so it is a
 * program that finds its interpreter by itself, and not a script, and it imports no site, which would cost 2 ms of every call.
 *
 * `create` leaves a compiled plan in the directory of the container, as nsrun does for its pods (front.c), with what start, state,
 * kill, delete and exec do: here it is carried out without Python.  And it leaves one of itself, for the next container whose
 * config.json differs in names alone (create.h).  What is anything but usual makes a step fail, or is in no plan
 * (hooks, a state of another boot, an option that we don't know, a cgroup in which somebody stays): then Python begins the very
 * same command, and decides.  Nothing that was done until then is in its way.  Only where `start` has let the process go, Python
 * gets the descriptor by which the process tells how that went (NSRUN_OCI_TOLD), since that can be heard only once.
 *
 * NSRUN_REPLAY=0 goes without; =must fails instead of executing Python, for tests.  docs/oci.md tells more.
 */
#include "compiled.h"
#include "container.h"
#define PLAIN 1 /* nothing of our caller's is changed in a launch */
#include "leave.h"
#include "steps.h"
#include "witnesses.h"

#include "create.h"

static const struct op ops[] = {
#define ENTRY(name, args) {args, op_##name},
	/* clang-format off: a table */
	REPLAY(ENTRY)
		CONTAINER(ENTRY)
	/* clang-format on */
};
#define N_OPS (sizeof ops / sizeof *ops)

/* ---- the command line ------------------------------------------------------------------------------ */

static const char *verb, *root = "/run/nsrun-oci", *wanted;

/* Whether a word is an option with a value that we know; `i` is then at its last word. */
static int is_value(int *i)
{
	static const char *ignored, *format, *preserved;
	static const struct {
		const char *name, **to;
	} values[] = {
		{"--root", &root},
		{"--log", &ignored},
		{"--log-format", &format}, /* those from here on are of some commands alone */
		{"--pid-file", &asked.pid_file},
		{"--bundle", &asked.bundle},
		{"-b", &asked.bundle},
		{"--process", &asked.process},
		{"--preserve-fds", &preserved},
	};
	const unsigned count = sizeof values / sizeof *values;
	const int makes = verb && str_eq(verb, "create"), executes = verb && str_eq(verb, "exec");

	for (unsigned n = 0; n < count; n++) {
		const char *value = str_after(argv_[*i], values[n].name);
		if ((n == 3 && !makes && !executes) || ((n == 4 || n == 5) && !makes) || (n > 5 && !executes))
			continue;
		if (!value || (*value && *value != '='))
			continue;
		if (*value)
			value++;
		else if (++*i < argc_)
			value = argv_[*i];
		else
			return 0;
		*values[n].to = value;
		return (values[n].to != &format || str_eq(value, "text") || str_eq(value, "json")) && (values[n].to != &preserved || str_eq(value, "0"));
	}
	return 0;
}

static int is_id(const char *s)
{
	if (!*s || *s == '.' || str_len(s) > NAME_MAX)
		return 0;
	for (; *s; s++)
		if (!((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || (*s >= '0' && *s <= '9') || *s == '_' || *s == '+' || *s == '-' || *s == '.'))
			return 0;
	return 1;
}

/* Whether the path of --pid-file is one that means the same wherever we are, and without links taken for directories. */
static int is_plain_path(const char *path)
{
	if (*path != '/')
		return 0;
	for (; *path; path++)
		if (*path == '/' && (path[1] == '.' || !path[1]))
			return 0;
	return 1;
}

/* Whether what makes a process is asked for such that a plan can be for it. */
static int is_usual_launch(void)
{
	return is_id(ident) && !variable("LISTEN_FDS") && (!asked.pid_file || is_plain_path(asked.pid_file));
}

/* The same of an exec: a file of --process, or a command. */
static int is_usual_exec(void)
{
	if (!is_usual_launch())
		return 0;
	if (asked.process)
		return *asked.process && !str_eq(asked.process, "-") && n_words + 1 == argc_;
	return n_words + 1 < argc_ && !str_eq(argv_[n_words + 1], "--");
}

/* The number of a signal; 0 for what Python knows better. */
static long signal_of(const char *s)
{
	static const char *const names[] = {"HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM"};
	const char *bare = str_after(s, "SIG");
	long number = str_num(s, 0);

	if (number > 0 && number <= 64 && *s != '0')
		return number;
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
		if (str_eq(bare ? bare : s, names[i]))
			return i + 1;
	return 0;
}

/* Read the words as nsrun/oci/commands.py does, if they are of the usual kind. */
static int is_usual(void)
{
	int systemd = 0;
	static const char *const verbs[] = {"create", "state", "start", "kill", "delete", "exec"};

	for (int i = 1; i < argc_; i++) {
		const char *word = argv_[i];
		if (is_value(&i))
			continue;
		if (str_eq(word, "--systemd-cgroup")) {
			systemd = 1;
			continue;
		}
		if (verb && str_eq(verb, "delete") && (str_eq(word, "--force") || str_eq(word, "-f"))) {
			forced = 1;
		} else if (verb && str_eq(verb, "exec") && (str_eq(word, "--detach") || str_eq(word, "-d"))) {
			asked.detach = 1;
		} else if (*word == '-') {
			return 0;
		} else if (!verb) {
			for (unsigned n = 0; n < sizeof verbs / sizeof *verbs; n++)
				if (str_eq(word, verbs[n]))
					verb = verbs[n];
			if (!verb)
				return 0;
		} else if (!ident) {
			ident = word;
			if (str_eq(verb, "exec")) {
				n_words = i;
				return is_usual_exec();
			}
		} else if (str_eq(verb, "kill") && !wanted) {
			wanted = word;
		} else {
			return 0;
		}
	}
	if (wanted)
		to_send = signal_of(wanted);
	if (verb && ident && str_eq(verb, "create")) {
		n_words = argc_ - 1;
		return !systemd && is_usual_launch();
	}
	return ident && is_id(ident) && to_send;
}

/* ---- the plan of a container ----------------------------------------------------------------------- */

/* Whether nobody else may change which containers there are: nsrun/oci/state.py, check_root(). */
static int is_root_ours(void)
{
	struct statx above;

	if (*root != '/' || str_len(root) + str_len(ident) + 32 > PATH_MAX || SYS5(statx, AT_FDCWD, root, 0, KNOWN, &above) < 0)
		return 0;
	*put_str(put_str(put_str(container_path, root), "/"), ident) = 0;
	return is_ours(&above);
}

static int is_same(const struct statx *a, const struct statx *b)
{
	return a->stx_ino == b->stx_ino && a->stx_dev_major == b->stx_dev_major && a->stx_dev_minor == b->stx_dev_minor;
}

/* Open the directory of the container, and lock it, unless it is only looked at; Python waits for whoever holds it. */
static int open_container(void)
{
	struct statx here, there;

	if (!is_root_ours())
		return 0;
	container = (int)SYS3(openat, AT_FDCWD, container_path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (container < 0 || (!str_eq(verb, "state") && SYS2(flock, container, LOCK_EX | LOCK_NB) < 0))
		return 0;
	return SYS5(statx, container, "", AT_EMPTY_PATH, KNOWN, &here) == 0 && is_ours(&here) &&
	       SYS5(statx, AT_FDCWD, container_path, AT_SYMLINK_NOFOLLOW, KNOWN, &there) == 0 && is_same(&here, &there);
}

/* Carry out the steps of our command: what is before the first verb, and after ours. */
static void run_plan(char *begin, char *end)
{
	const char *p = begin;
	struct replay_header head;
	struct arg a[16];
	uint32_t code;
	int found = 0, others = 0;

	plan_begin = begin, plan_end = end;
	if (!is_plan(&p, end, &head))
		return;
	for (uint32_t i = 0; i < head.count; i++) {
		if (!take(&p, end, &code, sizeof code) || code >= N_OPS || !decode_args(ops[code].args, &p, end, a))
			return;
		if (ops[code].run == op_verb) {
			if (found)
				break;
			found = str_eq(a[0].s, verb);
			others = !found;
		} else if (!others && ops[code].run(a) < 0) {
			return;
		}
	}
	done |= found;
}

/* Carry out the plan of a file in a directory. */
static void run_file(long directory, const char *name)
{
	char *text;
	size_t size;
	long fd = SYS3(openat, directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

	if (fd < 0)
		return;
	text = map_plan((int)fd, &size);
	SYS1(close, fd);
	if (text)
		run_plan(text, text + size);
}

/* Carry out the plan of a container with such a config.json, of which there may be several. */
static void run_create(void)
{
	char path[PATH_MAX], name[16];
	uint32_t members;
	long directory;

	if (!is_root_ours() || read_config(&members) < 0)
		return;
	*put_str(put_str(path, root), "/" PLANS) = 0;
	directory = SYS3(openat, AT_FDCWD, path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	for (int i = 0; i < CREATE_PLANS && directory >= 0 && !done && !begun.directory; i++) {
		*put_num(put_str(put_hex(name, members), "."), (unsigned long)i, 1) = 0;
		memset(drawn, 0, sizeof drawn);
		memset(was_same, 0, sizeof was_same);
		run_file(directory, name); /* one that is stale, or for another, has made nothing */
		if (done)
			SYS4(utimensat, directory, name, NULL, 0); /* those that are used are kept */
	}
	SYS1(close, directory);
}

static void replay(void)
{
	if (!HAS_BUILD || SYS0(geteuid) != 0 || SYS0(getuid) != 0 || !is_usual())
		return;
	to_ours();
	if (!are_free())
		return;
	if (str_eq(verb, "create")) {
		run_create();
		return;
	}
	if (!open_container())
		return;
	run_file(container, "plan");
	if (asked.unlike) /* then nothing was done */
		run_file(container, "exec");
}

/* What was begun of a new process ends; and Python hears what a process says that we have let go. */
static void undo(void)
{
	static char variable_told[32];
	const char **variables, **v;
	size_t n = 0;

	SYS1(close, channel);
	if (asked.written)
		SYS3(unlinkat, AT_FDCWD, asked.pid_file, 0);
	if (child >= 0) {
		SYS4(pidfd_send_signal, child, SIGKILL, NULL, 0);
		SYS5(waitid, P_PIDFD, child, NULL, WEXITED, NULL);
	}
	take_back_container();
	if (told >= 0) {
		while (envp_[n])
			n++;
		if ((v = variables = pointers(n + 1))) {
			*put_num(put_str(variable_told, "NSRUN_OCI_TOLD="), (unsigned long)told, 1) = 0;
			for (char **e = envp_; *e; e++)
				*v++ = *e;
			*v = variable_told;
			envp_ = (char **)(uintptr_t)variables;
			SYS3(fcntl, told, F_SETFD, 0);
		}
	}
	SYS1(close, container); /* and with it the lock */
	to_callers();
}

int main(int argc, char **argv, char **envp)
{
	char path[PATH_MAX], text[32];
	const char *wish;
	long n;

	argc_ = argc, argv_ = argv, envp_ = envp;
	wish = variable("NSRUN_REPLAY");
	if (!wish || !str_eq(wish, "0")) {
		SYS4(rt_sigprocmask, SIG_SETMASK, NULL, &mask, sizeof mask);
		replay();
		if (done)
			return 0;
		undo();
		if (lost) {
			say("nsrun-oci: setns(2) back to our own namespaces failed\n"); /* so Python would be half in the container */
			return 255;
		}
		if (wish && str_eq(wish, "must")) {
			say("nsrun-oci: nothing to replay\n");
			return 125;
		}
	}
	n = SYS4(readlinkat, AT_FDCWD, "/proc/self/exe", path, sizeof path - 1);
	if (n <= 0)
		n = find_ourselves(path, sizeof path - 1);
	if (n > 0 && to_directory(path, n))
		n = any_python(path, "/nsrun-oci-python");
	say("nsrun-oci: Python can't be executed: it is expected beside this program, with nsrun-oci-python [errno ");
	*put_str(put_num(text, n < 0 ? (unsigned long)-n : (unsigned long)ENOENT, 1), "]\n") = 0;
	say(text);
	return 1;
}
