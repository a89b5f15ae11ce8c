/* SPDX-License-Identifier: Apache-2.0 */
/*
 * oci.c: the command nsrun-oci, an OCI runtime.  An engine executes it by its path, often without PATH and HOME; so it is a
 * program that finds its interpreter by itself, and not a script, and it imports no site, which would cost 2 ms of every call.
 */
#include "python.h"

int main(int argc, char **argv, char **envp)
{
	char path[PATH_MAX], text[32];
	long n;

	argc_ = argc, argv_ = argv, envp_ = envp;
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
