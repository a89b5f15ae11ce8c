/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nsrun-pause is PID 1 of a pod.  By existing it keeps the pod's namespaces, its published ports and
 * its firewall table alive.  It reaps orphans, and ends on SIGTERM or SIGINT.
 *
 *   nsrun-pause [-v] [READY]      READY: a descriptor to which it writes one byte when the signals are blocked
 *
 * Everything dangerous has happened before: nsrun-init gave it an empty read-only root, uid 65535,
 * no capabilities, and only the descriptors that it is to hold.  See pid_namespaces(7).
 */
#include "protocol.h"
#include "sys.h"

int main(int argc, char **argv, char **envp)
{
	const sigbits wanted = SIGBIT(SIGINT) | SIGBIT(SIGTERM) | SIGBIT(SIGCHLD);
	long ready = -1;
	(void)envp;

	if (argc > 1 && str_eq(argv[1], "-v")) {
		static const char version[] = "nsrun-pause " NSRUN_VERSION "\n";
		SYS3(write, 1, version, sizeof version - 1);
		return 0;
	}
	if (argc > 1) {
		ready = str_num(argv[1], -1);
		memset(argv[1], 0, str_len(argv[1])); /* so that ps shows only "/pause" */
	}

	/* Block before anything else: a SIGTERM that reaches PID 1 earlier is lost for good. */
	sys_sigmask(SIG_BLOCK, wanted);
	/* Members that are uid 0 must not read our descriptors through /proc/1/fd. */
	SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	/* We were executed from a memfd, so our name would be a descriptor's number. */
	SYS5(prctl, PR_SET_NAME, "pause", 0, 0, 0);
	SYS1(chdir, "/");
	if (SYS0(getpid) != 1)
		say("nsrun-pause: not PID 1: orphans of this namespace will not be reaped here\n");
	for (int fd = 0; fd < 3; fd++)
		SYS1(close, fd);
	if (ready > 2) {
		static const char byte = PAUSE_READY;
		SYS3(write, ready, &byte, 1);
		SYS1(close, ready);
	}

	for (;;) {
		long sig = SYS4(rt_sigtimedwait, &wanted, NULL, NULL, sizeof wanted);
		if (sig == SIGINT || sig == SIGTERM)
			return 0;
		if (sig == SIGCHLD)
			while (SYS4(wait4, -1, NULL, WNOHANG, NULL) > 0)
				;
	}
}
