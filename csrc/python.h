/* SPDX-License-Identifier: Apache-2.0 */
/*
 * python.h: our words and our environment, and how a command in C executes Python with the same: nsrun (front.c) and nsrun-oci.
 */
#ifndef NSRUN_PYTHON_H
#define NSRUN_PYTHON_H

#include "protocol.h"
#include "sys.h"

#include <linux/auxvec.h>

#ifndef NSRUN_HOME /* the directory of the interpreter; "": beside this program */
#define NSRUN_HOME ""
#endif
#ifndef NSRUN_FLAGS /* how it is executed */
#define NSRUN_FLAGS "-I"
#endif

static int argc_;
static char **argv_, **envp_;

static const char *variable(const char *name)
{
	for (char **e = envp_; *e; e++) {
		const char *value = str_after(*e, name);
		if (value && *value == '=')
			return value + 1;
	}
	return NULL;
}

/* Cut a path after its directory; returns 0 when it has none. */
static int to_directory(char *path, long n)
{
	while (n > 0 && path[n - 1] != '/')
		n--;
	path[n > 0 ? n - 1 : 0] = 0;
	return n > 0;
}

/* Find the file that was executed, where /proc can't tell: what the kernel was given (getauxval(3), AT_EXECFN), or where that leads. */
static long find_ourselves(char *path, size_t size)
{
	const long *vector = (const long *)envp_;
	const char *name = argv_[0];
	long n;

	while (*vector++)
		;
	for (; *vector; vector += 2)
		if (*vector == AT_EXECFN)
			name = (const char *)vector[1];
	if ((size_t)(n = (long)str_len(name)) >= size)
		return -ENAMETOOLONG;
	memcpy(path, name, (size_t)n + 1);
	for (int links = 0; links < 8; links++) {
		char target[PATH_MAX];
		long at = n, length = SYS4(readlinkat, AT_FDCWD, path, target, sizeof target - 1);
		if (length <= 0)
			break;
		while (target[0] != '/' && at > 0 && path[at - 1] != '/')
			at--;
		at = target[0] == '/' ? 0 : at;
		if ((size_t)(at + length) >= size)
			return -ENAMETOOLONG;
		memcpy(path + at, target, (size_t)length);
		path[n = at + length] = 0;
	}
	return n;
}

/* Execute an interpreter with the script beside us and our words; returns -errno. */
static long python(const char *directory, const char *name, const char *where, size_t n_where, const char *flags)
{
	char interpreter[2 * PATH_MAX], script[2 * PATH_MAX];
	const char **words = pointers((size_t)argc_ + 3);
	int n = 0;

	if (!words)
		return -ENOMEM;
	if (n_where > PATH_MAX)
		return -ENAMETOOLONG;
	*put_str((char *)memcpy(interpreter, where, n_where) + n_where, "/python3") = 0;
	*put_str(put_str(script, directory), name) = 0;
	if (SYS3(faccessat, AT_FDCWD, script, R_OK) < 0)
		return -ENOENT;
	words[n++] = interpreter;
	words[n++] = flags;
	words[n++] = script;
	for (int i = 1; i < argc_; i++)
		words[n++] = argv_[i];
	return SYS3(execve, interpreter, words, envp_);
}

/*
 * Execute Python: the interpreter that setup.py was told, or the one beside us, without site, which costs 2 ms; or, if there is
 * none, that of PATH, which finds what `pip install --user` installed.
 */
static long any_python(const char *directory, const char *name)
{
	const char *home = NSRUN_HOME[0] ? NSRUN_HOME : directory, *path = variable("PATH"), *end;
	long r = python(directory, name, home, str_len(home), NSRUN_FLAGS);

	for (path = path ? path : DEFAULT_PATH; *path && r == -ENOENT && !NSRUN_HOME[0]; path = *end ? end + 1 : end) {
		for (end = path; *end && *end != ':'; end++)
			;
		if (*path == '/')
			r = python(directory, name, path, (size_t)(end - path), "-P");
	}
	return r;
}

#endif
